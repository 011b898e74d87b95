"""A simulated device as one SVG file: heat, battery, rung, latency and queue on one time axis.

    temperature  ~~~~/---\\~~~   limit dashed, warmer surroundings shaded
    battery      --------\\___   off mains shaded
    rung         === == ====    one lane per rung
    latency      ..:.....:..    median and worst of each moment, deadline dashed, loads shaded
    queue        ____|_____

It stands alone: its colours are written out, as not every viewer knows style sheets with variables.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nsn_edge.errors import UsageError
from nsn_edge.report.axes import Frame, Scale, tick_labels, ticks, time_ticks, x_axis, y_axis
from nsn_edge.report.markup import Child, Markup, el, number

_WIDTH, _LEFT, _RIGHT = 1040, 64, 1024
_CURVE, _SMALL, _LANE, _GAP = 110, 48, 20, 42

_STYLE = """text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;fill:#1b1f24}
.title,.aside,.said{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}
.tick,.title,.aside{fill:#57606a}.tick,.aside{font-size:12px}.name{font-weight:600}
.axis{stroke:#57606a;stroke-width:1}.grid{stroke:#d5dae0;stroke-width:1}
.curve{fill:none;stroke:#1b1f24;stroke-width:1.5;stroke-linejoin:round}
.worst{fill:none;stroke:#9aa4af;stroke-width:1}
.limit{stroke:#c02f2f;stroke-width:1.4;stroke-dasharray:5 3}.said{fill:#c02f2f;font-size:12px}
.heat{fill:#c02f2f;opacity:.10}.off{fill:#57606a;opacity:.16}.load{fill:#2676be;opacity:.12}
.switch{stroke:#57606a;stroke-width:1;stroke-dasharray:2 3;opacity:.6}"""
_STOPS = ((20, 150, 130), (38, 118, 190), (86, 72, 178), (116, 34, 128))

_Rows = Sequence[Mapping[str, Any]]
_Events = Sequence[Mapping[str, Any]]


def scenario_svg(document: Mapping[str, Any]) -> str:
    """Draw the JSON document of `nsn-edge simulate --scenario`.

    Args:
        document: kind `scenario`, with its timeline.

    Raises:
        UsageError: it is something else, or has no timeline.
    """
    if document.get("kind") != "scenario" or not document.get("timeline"):
        raise UsageError("this is no simulated scenario with a timeline", "nsn-edge simulate BUNDLE --scenario FILE")
    rows: _Rows = document["timeline"]
    scenario, start_s = document["scenario"], float(rows[0]["time_s"])
    x = Scale(0.0, float(document["trace"]["duration_s"]), _LEFT, _RIGHT)
    at = [row["time_s"] - start_s for row in rows]
    panels: list[Child] = []
    top = 64.0

    def frame(height: float) -> Frame:
        nonlocal top
        placed = Frame(_LEFT, top, _RIGHT, top + height)
        top = placed.bottom + _GAP
        return placed

    placed = frame(_CURVE)
    limit_c = document["device"]["temperature_limit_c"]
    y = _scale([row["temperature_c"] for row in rows], placed, limit_c)
    panels += [
        _shade(scenario["heat"], placed, x, "heat"),
        _panel("temperature, °C", placed, y),
        _line(placed, y, limit_c, f"limit {limit_c:g} °C") if limit_c is not None else None,
        _curve(at, [row["temperature_c"] for row in rows], x, y),
        _names(scenario["heat"], placed, x, lambda event: f"surroundings {event['rise_c']:+g} °C"),
    ]
    battery = scenario["battery"]
    if battery is not None:
        placed = frame(_CURVE * 0.7)
        unplugged = _off_mains(rows, at, x.high)
        charge = [100.0 * row["battery_j"] / (3600.0 * battery["capacity_wh"]) for row in rows]
        y = _scale(charge, placed, battery["reserve_pct"])
        panels += [
            _shade(unplugged, placed, x, "off"),
            _panel("battery, %", placed, y),
            _line(placed, y, battery["reserve_pct"], f"reserve {battery['reserve_pct']:g} %"),
            _curve(at, charge, x, y),
            _names(unplugged, placed, x, lambda _: "off mains"),
        ]
    ranks = [rung["rank"] for rung in document["rungs"]["rungs"]]
    placed = frame(_LANE * len(ranks))
    panels.append(_lanes(rows, at, ranks, placed, x))
    lanes = placed
    placed = frame(_CURVE)
    y = _scale([row["worst_latency_ms"] for row in rows], placed, scenario["deadline_ms"], low=0.0)
    panels += [
        _shade(scenario["load"], placed, x, "load"),
        _panel("latency with waiting, ms: median (black) and worst (grey) of each moment", placed, y),
        _curve(at, [row["worst_latency_ms"] for row in rows], x, y, "worst"),
        _curve(at, [row["latency_ms"] for row in rows], x, y),
        _names(scenario["load"], placed, x, _load),
        _line(placed, y, scenario["deadline_ms"], f"deadline {scenario['deadline_ms']:g} ms"),
    ]
    placed = frame(_SMALL)
    y = _scale([row["waiting"] for row in rows], placed, None, low=0.0)
    panels += [_panel("requests waiting", placed, y), _curve(at, [row["waiting"] for row in rows], x, y)]
    seconds, unit_s, unit = time_ticks(x.high, 12)
    axis = x_axis(placed, x, seconds, tick_labels([value / unit_s for value in seconds]), f"time, {unit}")
    marks = [
        el("line", el("title", switch["reason"]), x1=x(switch["time_s"] - start_s), x2=x(switch["time_s"] - start_s),
           y1=lanes.top, y2=lanes.bottom, class_="switch")
        for switch in document["switches"]
    ]  # fmt: skip
    height = placed.bottom + 50
    svg = el(
        "svg",
        el("title", f"Simulation of {scenario['name']} with the policy {document['policy'].get('name', '')}"),
        el("style", Markup(_STYLE)),
        el("rect", width=_WIDTH, height=height, fill="#fff"),
        _heading(document),
        marks,
        panels,
        axis,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {number(height)}",
        width=_WIDTH,
        height=height,
        role="img",
    )
    return svg + "\n"


def _heading(document: Mapping[str, Any]) -> list[Markup]:
    summary = document["summary"]
    name = f"{document['scenario']['name']} on {document['trace']['name']}, seed {document['seed']}: "
    quality, fraction = summary["quality_per_request"], summary["oracle_fraction"]
    words = [
        f"missed {summary['miss_fraction']:.2%}",
        f"{summary['seconds_above_limit']:.0f} s above the limit",
        f"{summary['switches_per_minute']:.1f} switches/min",
    ]
    if quality is not None:
        words.insert(0, f"quality {quality:.3f}" + ("" if fraction is None else f" ({fraction:.1%} of the oracle's)"))
    return [
        el("text", name + f"policy {document['policy'].get('name', 'custom')}", x=_LEFT, y=20, class_="name"),
        el("text", "; ".join(words), x=_LEFT, y=38, class_="aside"),
    ]


def _panel(title: str, frame: Frame, y: Scale) -> Markup:
    marks = ticks(y.low, y.high, 4)
    heading = el("text", title, x=frame.left, y=frame.top - 7, class_="title")
    return el("g", heading, y_axis(frame, y, marks, tick_labels(marks)))


def _scale(values: Sequence[float | None], frame: Frame, also: float | None, low: float | None = None) -> Scale:
    known = [value for value in (*values, also) if value is not None] or [0.0]
    bottom, top = min(known) if low is None else low, max(known)
    pad = max((top - bottom) * 0.08, 0.5)
    return Scale(bottom - (pad if low is None else 0.0), top + pad, frame.bottom, frame.top)


def _line(frame: Frame, y: Scale, value: float, words: str) -> Markup:
    at = y(value)
    return el(
        "g",
        el("line", x1=frame.left, x2=frame.right, y1=at, y2=at, class_="limit"),
        el("text", words, x=frame.left + 4, y=at + 13, class_="said"),
    )


def _curve(at: Sequence[float], values: Sequence[float | None], x: Scale, y: Scale, look: str = "curve") -> Markup:
    path, drawing = [], False
    for time_s, value in zip(at, values, strict=True):
        if value is None:
            drawing = False
            continue
        path.append(f"{'L' if drawing else 'M'}{number(round(x(time_s), 1))} {number(round(y(value), 1))}")
        drawing = True
    return el("path", d="".join(path), class_=look)


def _shade(events: _Events, frame: Frame, x: Scale, look: str) -> list[Markup]:
    marks = []
    for event in events:
        left = x(event["from_s"])
        right = x(min(x.high if event["until_s"] is None else event["until_s"], x.high))
        marks.append(el("rect", x=left, y=frame.top, width=right - left, height=frame.bottom - frame.top, class_=look))
    return marks


def _names(events: _Events, frame: Frame, x: Scale, words: Callable[[Mapping[str, Any]], str]) -> list[Markup]:
    """What the shades mean; drawn over the curves."""
    y = frame.top + 0.62 * (frame.bottom - frame.top)
    return [el("text", words(event), x=x(event["from_s"]) + 4, y=y, class_="aside") for event in events]


def _load(event: Mapping[str, Any]) -> str:
    words = [] if event["arrivals_per_s"] is None else [f"{event['arrivals_per_s']:g} requests/s"]
    return ", ".join(words + ([f"{event['slowdown']:g} times slower"] if event["slowdown"] != 1.0 else []))


def _off_mains(rows: _Rows, at: Sequence[float], end_s: float) -> list[dict[str, float]]:
    spans = []
    for mains, group in itertools.groupby(zip(rows, at, strict=True), key=lambda pair: pair[0]["on_mains"]):
        times = [time_s for _, time_s in group]
        if not mains:
            spans.append({"from_s": times[0], "until_s": next((t for t in at if t > times[-1]), end_s)})
    return spans


def _lanes(rows: _Rows, at: Sequence[float], ranks: Sequence[int], frame: Frame, x: Scale) -> Markup:
    middle = {rank: frame.bottom - _LANE * (index + 0.5) for index, rank in enumerate(ranks)}
    bars = []
    for rank, group in itertools.groupby(zip(rows, [*at, x.high], strict=False), key=lambda pair: pair[0]["rank"]):
        times = [time_s for _, time_s in group]
        if rank is not None:
            left, right = x(times[0]), x(next((time_s for time_s in at if time_s > times[-1]), x.high))
            size = {"width": max(right - left, 1.0), "height": 10}
            bars.append(el("rect", x=left, y=middle[rank] - 5, fill=_colour(ranks.index(rank), len(ranks)), **size))
    lanes = [
        el(
            "g",
            el("line", x1=frame.left, y1=middle[rank], x2=frame.right, y2=middle[rank], class_="grid"),
            el("text", str(rank), x=frame.left - 8, y=middle[rank] + 4, text_anchor="end", class_="tick"),
        )
        for rank in ranks
    ]
    return el("g", el("text", "rung, its rank", x=frame.left, y=frame.top - 7, class_="title"), lanes, bars)


def _colour(index: int, count: int) -> str:
    scaled = index / max(count - 1, 1) * (len(_STOPS) - 1)
    low = min(int(scaled), len(_STOPS) - 2)
    mixed = [round(a + (b - a) * (scaled - low)) for a, b in zip(_STOPS[low], _STOPS[low + 1], strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)
