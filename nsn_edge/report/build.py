"""Put the report together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nsn_edge._version import __version__
from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.errors import UsageError
from nsn_edge.report import evidence, sections
from nsn_edge.report.device import conditions_section, energy_section, memory_section
from nsn_edge.report.footprint import Footprint
from nsn_edge.report.grid import grid_section
from nsn_edge.report.headline import choose_metric, facts, headline
from nsn_edge.report.markup import Markup, el, join
from nsn_edge.report.pairs import pairs_section
from nsn_edge.report.profile_view import ProfileView, profile_view
from nsn_edge.report.style import RungColours, style_sheet
from nsn_edge.report.views import (
    Answer,
    SimulationView,
    VerificationView,
    answer_view,
    simulation_view,
    verification_view,
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class ReportData:
    """What the report is made of: result JSONs as the verbs write them. All but the profile may be missing."""

    profile: Mapping[str, Any]
    """`kind` is `profile`."""
    others: Sequence[Mapping[str, Any]] = ()
    """Profiles of the same model's bundles in other precisions, taken on the same machine with the same inputs."""
    simulation: Mapping[str, Any] | None = None
    """`kind` is `simulation`."""
    verification: Mapping[str, Any] | None = None
    """`kind` is `verification`."""
    top_answer: Mapping[str, Any] | None = None
    """`kind` is `search`, at the top rung."""
    lowest_answer: Mapping[str, Any] | None = None
    """`kind` is `search`, the same query at the lowest rung."""
    footprint: Footprint | None = None
    """`Footprint.from_bundle(bundle)`."""
    commands: Sequence[tuple[str, str]] = ()
    """What each step does and the command line that repeats it."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Tools that took part but are not in the profile's host (torch, transformers, ...)."""
    trace_note: str = ""
    """What the trace is, in a few words: scripted or recorded, and of what."""
    quality_note: str = ""
    """A sentence that says how the quality was measured."""


def build_report(data: ReportData) -> str:
    """One self-contained HTML document.

    Raises:
        NsnEdgeError: a part is not of its kind, is too new, or lacks a key.
        UsageError: the profiles cannot be compared with each other.
    """
    profile = profile_view(data.profile)
    verification = verification_view(data.verification) if data.verification is not None else None
    profile = _with_verified_quality(profile, verification)
    simulation = simulation_view(data.simulation) if data.simulation is not None else None
    top = answer_view(data.top_answer) if data.top_answer is not None else None
    lowest = answer_view(data.lowest_answer) if data.lowest_answer is not None else None
    profiles = [profile, *(profile_view(other) for other in data.others)]
    _check_comparable(profiles)
    colours = RungColours(rung.rank for view in profiles for one in (view, *view.grid) for rung in one.rungs)
    metric = choose_metric(profile)
    title = headline(profile, metric)
    figures = facts(profile, data.footprint, simulation, verification)
    body = el(
        "main",
        el(
            "header",
            el("p", f"{profile.model}, one model at {len(profile.rungs)} ranks", class_="kicker"),
            el("h1", title, "."),
            el("ul", [el("li", el("b", figure), what) for figure, what in figures], class_="facts"),
            evidence.warnings_box(profile.warnings),
        ),
        sections.quality_section(profile, metric, data.quality_note, colours),
        pairs_section(profiles, metric, colours),
        sections.latency_section(profile, metric, colours),
        grid_section(profile, colours),
        energy_section(profile, colours),
        memory_section(profile, colours),
        conditions_section(profile, colours),
        sections.footprint_section(data.footprint),
        _of_the_demo(data, profile, colours, simulation, verification, top, lowest),
        evidence.method_section(profile, data.commands, data.versions),
        el("footer", f"Written by nsn-edge {__version__}. One file, no scripts; it opens offline."),
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"{profile.model}: {title}"),
        el("style", Markup(style_sheet(len(colours)))),
    )
    return join(Markup("<!doctype html>\n"), el("html", head, el("body", body), lang="en"), "\n")


def _of_the_demo(
    data: ReportData,
    profile: ProfileView,
    colours: RungColours,
    simulation: SimulationView | None,
    verification: VerificationView | None,
    top: Answer | None,
    lowest: Answer | None,
) -> list[Markup | None]:
    """What is made of other documents than profiles. A page of profiles alone does not miss them; where there is one
    of them, a sentence stands for each of the others."""
    if simulation is None and verification is None and top is None and lowest is None:
        return []
    return [
        sections.simulation_section(simulation, data.trace_note, colours),
        evidence.answers_section(profile, top, lowest, colours),
        evidence.verification_section(verification, profile.labels, colours),
    ]


def save_report(data: ReportData, path: Path) -> None:
    """Build the report and write it in one step.

    Raises:
        NsnEdgeError: as `build_report`, or the disk is full or the folder cannot be written.
    """
    atomic_write_bytes(path, build_report(data).encode())


def _check_comparable(profiles: Sequence[ProfileView]) -> None:
    first = profiles[0]
    seen = {first.precision}
    for other in profiles[1:]:
        if other.model != first.model:
            raise UsageError(f"these profiles are of two models, {first.model} and {other.model}")
        if other.precision in seen:
            raise UsageError(
                f"two of these profiles are in {other.precision}", "give one profile for each precision of the model"
            )
        seen.add(other.precision)
        for key in ("batch_size", "sequence_length", "dimensions", "threads"):
            if other.settings.get(key) != first.settings.get(key):
                raise UsageError(
                    f"these profiles were taken with {key} {first.settings.get(key)} and {other.settings.get(key)}",
                    "profile both bundles with the same inputs and threads",
                )


def _with_verified_quality(profile: ProfileView, verification: VerificationView | None) -> ProfileView:
    """The profile with the quality that verification measured, where the bundle did not have it yet."""
    if verification is None:
        return profile
    rungs = tuple(
        replace(rung, quality={**verification.quality.get(rung.rank, {}), **rung.quality}) for rung in profile.rungs
    )
    return replace(profile, rungs=rungs)
