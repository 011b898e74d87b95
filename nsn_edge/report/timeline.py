"""The replayed trace: battery, temperature, rung and latency on one time axis, every switch marked.

      1  2      3                 numbers of the switches, as in the table below the chart
    battery, %  |
    temperature |                 a gap in a line is a time at which the sensor said nothing
    rung     ===|====             one lane per rung
    latency  ...|...              one dot per answer, in its rung's colour
    0          10        20 min

Drawn twice, wide for screens and paper, narrow for phones: shrunk text would not be readable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nsn_edge.report.axes import Frame, Scale, tick_labels, ticks, time_ticks, x_axis, y_axis
from nsn_edge.report.markup import Markup, el, join, number
from nsn_edge.report.style import RungColours
from nsn_edge.report.views import Moment, SimulationView

_GAP = 34
_LANE = 22
_CURVE = 84


@dataclass(frozen=True)
class _Layout:
    """Where things are in one of the two versions."""

    width: int
    left: int
    time_ticks: int
    number_gap: float

    @property
    def right(self) -> float:
        return self.width - 12


_WIDE = _Layout(width=1040, left=58, time_ticks=10, number_gap=15)
_NARROW = _Layout(width=400, left=48, time_ticks=5, number_gap=15)


def timeline(simulation: SimulationView, colours: RungColours) -> Markup:
    """Both versions; the style sheet shows one.

    Args:
        simulation: with at least one row.
        colours: of the rungs.
    """
    return join(
        el("div", _draw(simulation, colours, _WIDE), class_="wide"),
        el("div", _draw(simulation, colours, _NARROW), class_="narrow"),
    )


def _draw(simulation: SimulationView, colours: RungColours, layout: _Layout) -> Markup:
    rows = simulation.timeline
    end_s = max(simulation.duration_s, rows[-1].time_s)
    x = Scale(0.0, end_s, layout.left, layout.right)
    body: list[Markup] = []
    top = 26.0
    for title, value in (
        ("battery, %", lambda row: row.battery_pct),
        ("temperature, °C", lambda row: row.temperature_c),
    ):
        frame = Frame(layout.left, top + 18, layout.right, top + 18 + _CURVE)
        body.append(_curve(rows, value, title, frame, x, mains=title.startswith("battery")))
        top = frame.bottom + _GAP - 18
    lanes = Frame(layout.left, top + 18, layout.right, top + 18 + _LANE * len(simulation.labels))
    body.append(_lanes(simulation, lanes, x, colours, end_s))
    bottom = lanes.bottom
    if any(row.latency_ms is not None for row in rows):
        frame = Frame(layout.left, bottom + _GAP, layout.right, bottom + _GAP + _CURVE)
        body.append(_latencies(rows, frame, x, colours))
        bottom = frame.bottom
    seconds, unit_s, unit = time_ticks(end_s, layout.time_ticks)
    whole = Frame(layout.left, 26, layout.right, bottom)
    labels = tick_labels([round(value / unit_s, 3) for value in seconds])
    body.append(x_axis(whole, x, seconds, labels, f"time, {unit}"))
    marks = _switch_marks(simulation, x, whole, layout)
    # The marks come first, so that the data is drawn over them.
    return el(
        "svg",
        marks,
        body,
        viewBox=f"0 0 {layout.width} {number(bottom + 46)}",
        role="img",
        aria_label=f"Battery, temperature, rung and latency over {end_s / unit_s:.3g} {unit} of the "
        f"trace {simulation.trace}, with {len(simulation.switches)} switches of rank, listed in the table below",
    )


def _switch_marks(simulation: SimulationView, x: Scale, frame: Frame, layout: _Layout) -> list[Markup]:
    """A dashed line per switch; a number too, unless the one before it is so near that they would overlap."""
    marks: list[Markup] = []
    free_from = 0.0
    for index, switch in enumerate(simulation.switches, start=1):
        at = x(switch.time_s)
        marks.append(
            el(
                "g",
                el("title", f"switch {index}: {switch.reason}"),
                el("line", x1=at, y1=frame.top, x2=at, y2=frame.bottom, class_="switch"),
                el("text", str(index), x=at, y=frame.top - 6, text_anchor="middle", class_="tick")
                if at >= free_from
                else None,
            )
        )
        if at >= free_from:
            free_from = at + layout.number_gap + 4 * len(str(index))
    return marks


def _curve(
    rows: Sequence[Moment],
    value: Callable[[Moment], float | None],
    title: str,
    frame: Frame,
    x: Scale,
    mains: bool,
) -> Markup:
    points = [(row.time_s, value(row)) for row in rows]
    known = [(time_s, reading) for time_s, reading in points if reading is not None]
    heading = el("text", title, x=frame.left, y=frame.top - 8, class_="title")
    if not known:
        silent = el("text", "the trace has none", x=frame.left + 8, y=frame.top + 20, class_="aside")
        return el("g", heading, silent)
    low, high = min(reading for _, reading in known), max(reading for _, reading in known)
    pad = max((high - low) * 0.08, 1.0)
    y = Scale(low - pad, high + pad, frame.bottom, frame.top)
    marks = ticks(y.low, y.high, 3)
    path, drawing = [], False
    for time_s, reading in points:
        if reading is None:
            drawing = False
            continue
        path.append(f"{'L' if drawing else 'M'}{number(round(x(time_s), 1))} {number(round(y(reading), 1))}")
        drawing = True
    last_s, last = known[-1]
    return el(
        "g",
        heading,
        _mains(rows, frame, x) if mains else None,
        y_axis(frame, y, marks, tick_labels(marks)),
        el("path", d="".join(path), class_="curve"),
        el(
            "text",
            f"{last:.0f}",
            x=min(x(last_s), frame.right) - 2,
            y=y(last) - 6,
            text_anchor="end",
            class_="strong",
        ),
    )


def _mains(rows: Sequence[Moment], frame: Frame, x: Scale) -> list[Markup]:
    """Shade the times on mains; say so in the first that is wide enough for the words."""
    shades: list[Markup] = []
    named = False
    start: float | None = None
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        if row.on_mains and start is None:
            start = row.time_s
        if start is None or (following is not None and following.on_mains):
            continue
        left, right = x(start), x(following.time_s if following else row.time_s)
        start = None
        size = {"width": max(right - left, 1.0), "height": frame.bottom - frame.top}
        shades.append(el("rect", el("title", "on mains"), x=left, y=frame.top, **size, class_="mains"))
        if not named and right - left > 64:
            named = True
            # Beside the curve's own heading, where no curve can cross it.
            shades.append(el("text", "on mains", x=max(left, frame.left + 76), y=frame.top - 8, class_="aside"))
    return shades


def _lanes(simulation: SimulationView, frame: Frame, x: Scale, colours: RungColours, end_s: float) -> Markup:
    """A thick bar in the lane of the rung that was active, one per stretch of time."""
    ranks = list(simulation.labels)
    middle = {rank: frame.bottom - _LANE * (index + 0.5) for index, rank in enumerate(ranks)}
    bars: list[Markup] = []
    rows = simulation.timeline
    start = 0
    for index, row in enumerate(rows):
        if index + 1 < len(rows) and rows[index + 1].rank == row.rank:
            continue
        until_s = rows[index + 1].time_s if index + 1 < len(rows) else end_s
        left, right = x(rows[start].time_s), x(until_s)
        start = index + 1
        if row.rank in middle:
            size = {"width": max(right - left, 1.0), "height": 10}
            colour = f"fill:{colours(row.rank)}"
            bars.append(el("rect", x=left, y=middle[row.rank] - 5, **size, style=colour))
    lanes = [
        el(
            "g",
            el("line", x1=frame.left, y1=middle[rank], x2=frame.right, y2=middle[rank], class_="grid"),
            el("text", label, x=frame.left - 8, y=middle[rank] + 4, text_anchor="end", class_="tick"),
        )
        for rank, label in simulation.labels.items()
    ]
    heading = el("text", "rung, share of linear FLOPs", x=frame.left, y=frame.top - 6, class_="title")
    return el("g", heading, lanes, bars)


def _latencies(rows: Sequence[Moment], frame: Frame, x: Scale, colours: RungColours) -> Markup:
    """A dot per answer, as one path per rung: a line of length 0 with round ends is a dot, and takes twelve bytes."""
    known = [(row.time_s, row.answered_by, row.latency_ms) for row in rows if row.latency_ms is not None]
    y = Scale(0.0, max(latency for *_, latency in known) * 1.08, frame.bottom, frame.top)
    dots: dict[int, dict[str, None]] = {}
    for time_s, rank, latency in known:
        # Dots nearer than a pixel look like one: keep one of them.
        dots.setdefault(rank, {})[f"M{x(time_s):.0f} {number(round(y(latency), 1))}h0"] = None
    marks = ticks(0.0, y.high, 3)
    paths = [
        el("path", d="".join(places), style=f"stroke:{colours(rank)}", stroke_width=3.4, stroke_linecap="round")
        for rank, places in sorted(dots.items())
    ]
    return el(
        "g",
        el("text", "latency of each answer, ms", x=frame.left, y=frame.top - 8, class_="title"),
        y_axis(frame, y, marks, tick_labels(marks)),
        paths,
    )
