"""Profiles as Markdown: the tables alone, for a README, an issue or a wiki."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.report.headline import milliseconds
from nsn_edge.report.profile_view import ProfileView, Rung, profile_view

_UNKNOWN = "–"
_FACTS = ("machine", "cpu", "cores", "gpu", "governor", "l4t", "system", "measured_at")


def build_markdown(profiles: Sequence[Mapping[str, Any]]) -> str:
    """A document of one or several profiles, one after the other.

    Raises:
        NsnEdgeError: one is not a profile, is too new, or lacks a key.
    """
    parts = [part for data in profiles for part in _profile(profile_view(data))]
    return "\n\n".join(parts) + "\n"


def save_markdown(profiles: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Build the document and write it in one step.

    Raises:
        NsnEdgeError: as `build_markdown`, or the disk is full or the folder cannot be written.
    """
    atomic_write_bytes(path, build_markdown(profiles).encode())


def _profile(profile: ProfileView) -> list[str]:
    engine = [profile.settings.get("engine"), profile.settings.get("version")]
    threads = profile.settings.get("threads")
    facts = [
        *(f"{key.replace('_', ' ')}: {profile.host[key]}" for key in _FACTS if profile.host.get(key) is not None),
        f"engine: {' '.join(str(part) for part in engine if part)}{f', {threads} threads' if threads else ''}",
        f"precision: {profile.precision}",
        *([f"device key: `{profile.device}`"] if profile.device else []),
    ]
    parts = [f"# {_text(profile.model)}: profile", "\n".join(f"- {_text(fact)}" for fact in facts)]
    for view in profile.grid or (profile,):
        parts += [f"## {_text(view.name)}", _rungs(view)]
        if about := _about(view):
            parts.append("\n".join(f"- {_text(line)}" for line in about))
    parts += [f"Not measured: {_text(name)}: {_text(why)}" for name, why in profile.failed]
    return parts


def _rungs(view: ProfileView) -> str:
    metrics = sorted({name for rung in view.rungs for name in rung.quality})
    header = [
        "rung",
        "rank",
        "FLOPs",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "× dense",
        "per s",
        "mJ",
        "load ms",
        "first ms",
        "+ MB",
    ]
    rows = [[*header, *metrics], ["---", *["---:"] * (len(header) - 1 + len(metrics))]]
    for rung in reversed(view.rungs):
        relative = view.relative(rung)
        cells = [
            rung.label,
            str(rung.rank),
            f"{rung.flops_fraction:.1%}",
            *(milliseconds(value) for value in (rung.p50_ms, rung.p90_ms, rung.p99_ms)),
            _UNKNOWN if relative is None else f"{relative:.2f}",
            *(_number(value) for value in _rest(rung)),
            *(f"{rung.quality[name]:.3f}" if name in rung.quality else _UNKNOWN for name in metrics),
        ]
        rows.append(cells)
    return "\n".join(f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows)


def _rest(rung: Rung) -> tuple[float | None, ...]:
    return (rung.throughput_per_s, rung.energy_mj, rung.load_ms, rung.first_run_ms, rung.memory_mb)


def _about(view: ProfileView) -> list[str]:
    lines = []
    if view.peak_memory_mb is not None:
        lines.append(f"peak memory of the process: {view.peak_memory_mb:.0f} MB, all rungs loaded")
    if view.energy_method is not None:
        idle = f"; idle {view.idle_mw / 1e3:.3g} W" if view.idle_mw is not None else ""
        lines.append(f"energy of a call: {view.energy_method}{idle}")
    if (seen := view.conditions) is not None:
        said = {True: "yes", False: "no", None: "cannot be told"}
        warmth = [sample.temperature_c for sample in seen.samples if sample.temperature_c is not None]
        heat = f"{warmth[0]:.0f} to {warmth[-1]:.0f} °C, " if warmth else ""
        lines.append(
            f"conditions: {heat}{seen.duration_s:.0f} s, steady: {said[seen.steady]}, throttled: {said[seen.throttled]}"
        )
    return [*lines, *(f"warning: {warning}" for warning in view.warnings)]


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else milliseconds(value)


def _text(text: str) -> str:
    """Characters that would end a cell or begin a tag are escaped."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
