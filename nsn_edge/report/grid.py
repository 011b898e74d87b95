"""Every configuration of a profile: how the rungs scale with batch and sequence, in each form.

static, batch 1     static, batch 8     gated, batch 1 ...     a panel each, x: sequence length (or batch size)
ms |      /dense    ms |     /
   |    /_/35 %        |   /                                   a line per rung
   +---------          +--------
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nsn_edge.report.axes import Frame, Scale, tick_labels, ticks, x_axis, y_axis
from nsn_edge.report.headline import milliseconds
from nsn_edge.report.markup import Markup, el
from nsn_edge.report.parts import rung_name, section, table
from nsn_edge.report.profile_view import ProfileView, Rung
from nsn_edge.report.style import RungColours

_WIDTH, _HEIGHT = 460, 300
_FRAME = Frame(left=46, top=28, right=392, bottom=250)
_FURTHER: tuple[tuple[str, Callable[[Rung], str | None]], ...] = (
    ("99th percentile, ms", lambda rung: milliseconds(rung.p99_ms)),
    (
        "Sequences per second",
        lambda rung: None if rung.throughput_per_s is None else milliseconds(rung.throughput_per_s),
    ),
    ("Millijoules of a call", lambda rung: None if rung.energy_mj is None else milliseconds(rung.energy_mj)),
)
_AXES = (("sequence_length", "tokens per sequence"), ("batch_size", "sequences per call"))


def grid_section(profile: ProfileView, colours: RungColours) -> Markup | None:
    """The section; nothing where there is one configuration alone."""
    if len(profile.grid) < 2 and not profile.failed:
        return None
    along, title = _along(profile.grid)
    panels = _panels(profile.grid, along) if along else []
    charts = [el("figure", el("h3", name), _chart(name, views, along or "", title, colours)) for name, views in panels]
    intro = (
        f"Median latency of a call, by {title}. Rungs are interleaved within a configuration, not across them."
        if charts
        else "Rungs are interleaved within a configuration, not across them."
    )
    return section(
        f"All {len(profile.grid)} configurations",
        el("p", intro),
        el("p", [[" ", *rung_name(r.rank, r.label, colours)] for r in reversed(_rungs(profile.grid))], class_="small")
        if charts
        else None,
        el("div", charts, class_="panels") if charts else None,
        _matrix(profile.grid, "Median latency of a call, ms", lambda rung: milliseconds(rung.p50_ms), colours),
        [_folded(profile.grid, caption, cell, colours) for caption, cell in _FURTHER],
        [el("p", el("span", "not measured: ", class_="bad"), f"{name}: {why}") for name, why in profile.failed],
    )


def _folded(
    grid: Sequence[ProfileView], caption: str, cell: Callable[[Rung], str | None], colours: RungColours
) -> Markup | None:
    matrix = _matrix(grid, caption, cell, colours)
    return None if matrix is None else el("details", el("summary", caption), matrix)


def _along(grid: Sequence[ProfileView]) -> tuple[str | None, str]:
    """The setting that the x axis is, and its title: the first that has several values."""
    for key, title in _AXES:
        if len({view.settings.get(key) for view in grid}) > 1:
            return key, title
    return None, ""


def _panels(grid: Sequence[ProfileView], along: str) -> list[tuple[str, list[ProfileView]]]:
    """Configurations that differ in the x axis alone, by what they have in common."""
    panels: dict[str, list[ProfileView]] = {}
    for view in grid:
        other = "batch_size" if along == "sequence_length" else "sequence_length"
        word = "batch" if other == "batch_size" else "sequence"
        extra = [f"{key} {size}" for key, size in (view.settings.get("dimensions") or {}).items()]
        name = ", ".join([str(view.settings.get("form", "")), f"{word} {view.settings.get(other)}", *extra])
        panels.setdefault(name, []).append(view)
    return [(name, views) for name, views in panels.items() if len(views) > 1]


def _chart(name: str, views: Sequence[ProfileView], along: str, title: str, colours: RungColours) -> Markup:
    views = sorted(views, key=lambda view: float(view.settings[along]))
    sizes = [int(view.settings[along]) for view in views]
    # Sizes usually double: places of equal width keep the small ones apart.
    x = Scale(0.0, len(sizes) - 1.0, _FRAME.left + 14, _FRAME.right - 14)
    y = Scale(0.0, max(rung.p50_ms for view in views for rung in view.rungs) * 1.05, _FRAME.bottom, _FRAME.top)
    marks = ticks(0.0, y.high, 5)
    body = [
        y_axis(_FRAME, y, marks, tick_labels(marks)),
        x_axis(_FRAME, x, [float(index) for index in range(len(sizes))], [str(size) for size in sizes], title),
        el("text", "ms", x=0, y=11, class_="title"),
    ]
    ends: list[tuple[float, str]] = []
    for rung in _rungs(views):
        points = [
            (x(float(index)), y(found.p50_ms))
            for index, view in enumerate(views)
            if (found := _same(view, rung)) is not None
        ]
        style = f"fill:none;stroke:{colours(rung.rank)};stroke-width:1.8"
        body.append(el("polyline", points=" ".join(f"{px:.1f},{py:.1f}" for px, py in points), style=style))
        body += [el("circle", cx=px, cy=py, r=3.4, style=f"fill:{colours(rung.rank)}") for px, py in points]
        ends.append((points[-1][1], rung.label))
    body += [el("text", label, x=_FRAME.right - 4, y=at + 4, class_="aside") for at, label in _apart(ends, 14.0)]
    summary = "; ".join(
        f"{size}: {milliseconds(view.rungs[-1].p50_ms)} ms" for size, view in zip(sizes, views, strict=True)
    )
    label = f"Median latency by {title}, {name}. {views[0].rungs[-1].label}: {summary}"
    return el("svg", body, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)


def _apart(ends: Sequence[tuple[float, str]], least: float) -> list[tuple[float, str]]:
    """Labels pushed up so far that none lies over another; places are pixels, from the bottom one upwards."""
    placed: list[tuple[float, str]] = []
    for at, label in sorted(ends, reverse=True):
        placed.append((min(at, placed[-1][0] - least) if placed else at, label))
    return placed


def _matrix(
    grid: Sequence[ProfileView], caption: str, cell: Callable[[Rung], str | None], colours: RungColours
) -> Markup | None:
    """A row per configuration, a column per rung; nothing where no cell is known."""
    rungs = list(reversed(_rungs(grid)))
    cells = [[None if (own := _same(view, rung)) is None else cell(own) for rung in rungs] for view in grid]
    if not any(value is not None for row in cells for value in row):
        return None
    header = [
        el("th", "Configuration", scope="col"),
        *(el("th", rung_name(rung.rank, rung.label, colours), scope="col", class_="n") for rung in rungs),
    ]
    rows = [
        el("tr", el("th", view.name, scope="row"), [el("td", value or "–", class_="n") for value in row])
        for view, row in zip(grid, cells, strict=True)
    ]
    return table(header, rows, caption)


def _rungs(grid: Sequence[ProfileView]) -> list[Rung]:
    """One of each rung that any configuration has, rising. Forms that hold factors alone have another top."""
    found: dict[tuple[int, bool], Rung] = {}
    for view in grid:
        for rung in view.rungs:
            found.setdefault((rung.rank, rung.dense), rung)
    return [found[key] for key in sorted(found)]


def _same(view: ProfileView, rung: Rung) -> Rung | None:
    return next((other for other in view.rungs if (other.rank, other.dense) == (rung.rank, rung.dense)), None)
