"""The last sections: answers side by side, the comparison with torch, and how to repeat it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nsn_edge.report.headline import milliseconds
from nsn_edge.report.markup import Markup, el
from nsn_edge.report.parts import missing, rung_name, section, table
from nsn_edge.report.profile_view import ProfileView
from nsn_edge.report.style import RungColours
from nsn_edge.report.views import Answer, Check, VerificationView, same_hits

_EXCERPT = 280


def answers_section(profile: ProfileView, top: Answer | None, lowest: Answer | None, colours: RungColours) -> Markup:
    """(d) The same query at the top and the lowest rung."""
    title = "The same question at both ends"
    if top is None or lowest is None:
        return section(title, missing("No query was answered at two rungs."))
    labels = profile.labels
    shared = same_hits(top.hits, lowest.hits)
    return section(
        title,
        el("p", "“", el("strong", top.query), f"” – {shared} of {len(top.hits)} results are the same."),
        el(
            "div",
            _answer(top, lowest, labels.get(top.rank, "top rung"), "the lower rung", colours),
            _answer(lowest, top, labels.get(lowest.rank, "lowest rung"), "the upper rung", colours),
            class_="pair",
        ),
    )


def _answer(answer: Answer, other: Answer, label: str, other_name: str, colours: RungColours) -> Markup:
    places = {(hit.title, hit.text): index for index, hit in enumerate(other.hits, start=1)}
    took = f", {milliseconds(answer.latency_ms)} ms" if answer.latency_ms is not None else ""
    hits = []
    for index, hit in enumerate(answer.hits, start=1):
        place = places.get((hit.title, hit.text))
        where = f"not among the results of {other_name}" if place is None else f"no. {place} at {other_name}"
        hits.append(
            el(
                "li",
                el("span", f"{hit.score:.3f}", class_="score"),
                el("b", hit.title),
                el("span", _excerpt(hit.text), class_="text") if hit.text and hit.text != hit.title else None,
                el("span", where, class_="where") if place != index else None,
            )
        )
    return el("div", el("h3", rung_name(answer.rank, label, colours), took), el("ol", hits, class_="hits"))


def _excerpt(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _EXCERPT else words[:_EXCERPT].rsplit(" ", 1)[0] + " …"


def verification_section(
    verification: VerificationView | None, labels: Mapping[int, str], colours: RungColours
) -> Markup:
    """(e) Every graph against torch."""
    title = "Do the exported graphs compute what torch computes?"
    if verification is None:
        return section(title, missing("The bundle was not verified against torch."))
    forms = list(dict.fromkeys(check.form for check in verification.checks))
    cells: dict[tuple[int, str], dict[str, Markup]] = {}
    for check in verification.checks:
        label = labels.get(check.rank, f"rank {check.rank}")
        if label == "dense" and check.dense is False:
            label = f"rank {check.rank}"  # graphs with a rank input hold factors alone, at the top rank too
        cells.setdefault((check.rank, label), {})[check.form] = _check(check)
    header = [el("th", name, scope="col") for name in ("Rung", *forms)]
    rows = [
        el(
            "tr",
            el("th", rung_name(rank, label, colours), scope="row"),
            [cells[rank, label].get(form, el("td", "–")) for form in forms],
        )
        for rank, label in sorted(cells, key=lambda row: (row[0], row[1] == "dense"), reverse=True)
    ]
    tolerances = ", ".join(sorted({f"{check.tolerance:.0e}" for check in verification.checks}))
    of = " of the tensor's largest magnitude" if any(check.relative for check in verification.checks) else ""
    verdict = "Yes, within the tolerance, on real inputs." if verification.passed else "No. See the cells that differ."
    caption = f"Largest absolute difference of any output by rung and form of graph. Tolerance: {tolerances}{of}"
    return section(title, el("p", verdict), table(header, rows, caption))


def _check(check: Check) -> Markup:
    difference = "not a number" if check.max_abs_diff is None else f"{check.max_abs_diff:.1e}"
    if check.passed:
        return el("td", difference, el("span", " agrees", class_="good"))
    return el("td", difference, el("span", f" differs in {check.worst_tensor or 'an output'}", class_="bad"))


def method_section(profile: ProfileView, commands: Sequence[tuple[str, str]], versions: Mapping[str, str]) -> Markup:
    """(f) The machine, the commands and the versions."""
    facts = [(name, str(profile.host[key])) for key, name in _HOST_NAMES.items() if profile.host.get(key) is not None]
    for key, name, unit, divisor in _HOST_NUMBERS:
        if isinstance(profile.host.get(key), (int, float)):
            facts.append((name, f"{profile.host[key] / divisor:.4g} {unit}"))
    facts += [(f"{key.replace('_', ' ')}", _plain(value)) for key, value in profile.settings.items()]
    packages = profile.host.get("packages")
    tools = {**(packages if isinstance(packages, Mapping) else {}), **versions}
    steps = [[el("p", what, class_="small"), el("pre", el("code", line))] for what, line in commands]
    return section(
        "What it was measured on, and how to repeat it",
        el("dl", [[el("dt", name), el("dd", value)] for name, value in facts]),
        el("h3", "Commands", style="margin-top:28px") if steps else None,
        steps,
        el("p", "Versions: ", ", ".join(f"{name} {version}" for name, version in tools.items()), class_="small soft")
        if tools
        else None,
    )


_HOST_NAMES = {
    "machine": "Machine",
    "cpu": "Processor",
    "architecture": "Architecture",
    "cores": "Cores",
    "usable_cores": "Cores this process may use",
    "governor": "Clock governor",
    "load_1m": "Load average before",
    "l4t": "Linux for Tegra",
    "system": "System",
    "kernel": "Kernel",
    "python": "Python",
    "measured_at": "Measured at",
}
_HOST_NUMBERS = (
    ("frequency_mhz", "Clock", "GHz", 1e3),
    ("max_frequency_mhz", "Highest clock", "GHz", 1e3),
    ("memory_mb", "Memory", "GB", 1e3),
)


def warnings_box(warnings: Sequence[str]) -> Markup | None:
    """What makes the numbers less than sure; nothing when there is nothing."""
    if not warnings:
        return None
    return el("div", el("ul", [el("li", warning) for warning in warnings]), class_="warn", role="note")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)
