"""The frontier as one SVG file that stands alone: quality against FLOPs, against measured latency, and the energy.

quality                      quality                    energy
  |        __o---o  o rung     |       o---o              |   .---------
  |    o·´    · between        |   o´                     |  /
  | ,´ - - - predicted         |                          | /
  +------------- FLOPs         +---------- ms             +----------- rank
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsn_edge.errors import NsnEdgeError
from nsn_edge.report.axes import Frame, Scale, tick_labels, ticks, x_axis, y_axis
from nsn_edge.report.markup import Markup, el
from nsn_edge.report.profile_view import percent
from nsn_edge.report.style import DRAWING

_PANEL_WIDTH, _HEIGHT = 460, 350
_TOP, _BOTTOM = 40, 296
_MARGIN, _GAP = 14, 24
_MOST_TICKS = 7
_STYLE = (
    DRAWING
    + """
.told{fill:none;stroke:var(--told);stroke-width:1.6;stroke-dasharray:5 4}.toldtext{fill:var(--told)}
.rung{fill:var(--mark)}.between{fill:var(--paper);stroke:var(--mark);stroke-width:1.6}
.whole{stroke:var(--soft);stroke-dasharray:2 3}
"""
)


def frontier_svg(data: Mapping[str, Any]) -> str:
    """Draw an evaluation.

    Args:
        data: the JSON document of `nsn-edge eval`.

    Raises:
        NsnEdgeError: a key is missing, or there is no point to draw.
    """
    try:
        points = list(data["points"])
        quality = _Quality(data["metric_title"], logarithmic=not data["higher_is_better"])
        panels = [_by_flops(points, quality)]
        timed = [point for point in points if point.get("p50_ms") is not None]
        if timed:
            panels.append(_by_latency(timed, quality))
        panels.append(_energy(data["decay"]))
        title = f"{data['model']}: {data['metric_title']} at every rank"
    except (KeyError, TypeError, ValueError) as error:
        raise NsnEdgeError(f"this is no evaluation that can be drawn: {error!r}") from error
    body = [el("g", panel, transform=f"translate({at * (_PANEL_WIDTH + _GAP)} 0)") for at, panel in enumerate(panels)]
    width = (_PANEL_WIDTH + _GAP) * len(panels) - _GAP
    return el(
        "svg",
        el("title", title),
        el("style", Markup(_STYLE.strip())),
        body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"{-_MARGIN} {-_MARGIN} {width + 2 * _MARGIN} {_HEIGHT + 2 * _MARGIN}",
        width=width + 2 * _MARGIN,
        height=_HEIGHT + 2 * _MARGIN,
        role="img",
    )


@dataclass(frozen=True)
class _Quality:
    """How quality is drawn: as it is, or, where it multiplies, by its logarithm."""

    name: str
    logarithmic: bool

    def at(self, value: float) -> float:
        """Where a value stands on the axis."""
        return math.log10(value) if self.logarithmic else value

    def scale(self, points: Sequence[Mapping[str, Any]], frame: Frame) -> Scale:
        """Of the measured values; what is foretold far off may leave the frame, and is not drawn."""
        values = [self.at(point["quality"]) for point in points]
        pad = max((max(values) - min(values)) * 0.08, 1e-3)
        return Scale(min(values) - pad, max(values) + pad, frame.bottom, frame.top)

    def axis(self, frame: Frame, y: Scale) -> Markup:
        """Round values: 1, 2, 5 of every decade, or every decade where those are many."""
        if not self.logarithmic:
            stops = ticks(y.low, y.high, 5)
            return y_axis(frame, y, stops, tick_labels(stops))
        decades = range(math.floor(y.low), math.ceil(y.high) + 1)
        for factors in ((1, 2, 5), (1,)):
            values = [float(factor) * 10.0**decade for decade in decades for factor in factors]
            inside = [value for value in values if y.low <= math.log10(value) <= y.high]
            if len(inside) <= _MOST_TICKS:
                break
        return y_axis(frame, y, [math.log10(value) for value in inside], [f"{value:g}" for value in inside])


def _by_flops(points: Sequence[Mapping[str, Any]], quality: _Quality) -> Markup:
    frame = Frame(left=52, top=_TOP, right=_PANEL_WIDTH - 16, bottom=_BOTTOM)
    x = Scale(0.0, 1.06, frame.left, frame.right)
    y = quality.scale(points, frame)
    told = [
        (x(point["flops_fraction"]), y(quality.at(point["predicted"])))
        for point in points
        if point["predicted"] is not None and point["predicted"] > 0
    ]
    told = [(px, py) for px, py in told if frame.top <= py <= frame.bottom]
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    labels = [f"{share:.0%}" for share in shares]
    spots = [(x(point["flops_fraction"]), y(quality.at(point["quality"])), point) for point in points]
    return el(
        "g",
        *_axes(frame, x, y, quality, shares, labels, "linear FLOPs"),
        _line([(px, py) for px, py, point in spots if point["rung"]], "trend"),
        _line(told, "told") if told else None,
        [_mark(px, py, point, quality.logarithmic) for px, py, point in spots],
        _legend(frame, points, bool(told)),
    )


def _by_latency(points: Sequence[Mapping[str, Any]], quality: _Quality) -> Markup:
    frame = Frame(left=52, top=_TOP, right=_PANEL_WIDTH - 16, bottom=_BOTTOM)
    x = Scale(0.0, max(point["p50_ms"] for point in points) * 1.12, frame.left, frame.right)
    y = quality.scale(points, frame)
    stops = ticks(0.0, x.high, 6)
    spots = [(x(point["p50_ms"]), y(quality.at(point["quality"])), point) for point in points]
    return el(
        "g",
        *_axes(frame, x, y, quality, stops, tick_labels(stops), "ms per answer, measured (median)"),
        _line([(px, py) for px, py, _ in spots], "trend"),
        [_mark(px, py, point, quality.logarithmic) for px, py, point in spots],
    )


def _energy(decay: Mapping[str, Any]) -> Markup:
    frame = Frame(left=52, top=_TOP, right=_PANEL_WIDTH - 16, bottom=_BOTTOM)
    x, y = Scale(0.0, 1.0, frame.left, frame.right), Scale(0.0, 1.0, frame.bottom, frame.top)
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    labels = [f"{share:.0%}" for share in shares]
    kept = list(zip(decay["share_of_rank"], decay["energy_kept"], strict=True))
    body = [
        y_axis(frame, y, shares, labels),
        x_axis(frame, x, shares, labels, "of the layer's directions"),
        el("text", "energy of the layers' outputs that is kept", x=0, y=16, class_="title"),
        _line([(x(share), y(value)) for share, value in [(0.0, 0.0), *kept]], "trend"),
        *(el("circle", cx=x(share), cy=y(value), r=3, class_="rung") for share, value in kept),
    ]
    if decay["exponential_r2"] is not None:
        fit = f"R²: exponential {decay['exponential_r2']:.2f}, power law {decay['power_r2']:.2f}"
        body.append(el("text", fit, x=frame.right, y=frame.bottom - 12, text_anchor="end", class_="aside"))
    return el("g", body)


def _axes(
    frame: Frame, x: Scale, y: Scale, quality: _Quality, x_values: list[float], x_labels: list[str], x_title: str
) -> list[Markup]:
    return [
        quality.axis(frame, y),
        x_axis(frame, x, x_values, x_labels, x_title),
        el("text", quality.name, x=0, y=16, class_="title"),
    ]


def _line(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    return el("polyline", points=" ".join(f"{px:.1f},{py:.1f}" for px, py in points), class_=kind)


def _mark(at_x: float, at_y: float, point: Mapping[str, Any], falls: bool) -> Markup:
    """A point, and a rung's name on the side that the curve leaves free."""
    label = "dense" if point["dense"] else percent(point["flops_fraction"])
    note = f"rank {point['rank']}, {label}: {point['quality']:.4g}"
    if not point["rung"]:
        return el("g", el("title", f"{note}, between rungs"), el("circle", cx=at_x, cy=at_y, r=4, class_="between"))
    place: dict[str, str | float]
    if not falls:
        place = {"x": at_x - 4, "y": at_y - 9, "text_anchor": "end"}
    elif point["dense"]:
        place = {"x": at_x - 10, "y": at_y + 5, "text_anchor": "end"}
    else:
        place = {"x": at_x + 6, "y": at_y - 8, "text_anchor": "start"}
    text = el("text", label, class_="strong", **place)
    return el("g", el("title", note), el("circle", cx=at_x, cy=at_y, r=5.5, class_="rung"), text)


def _legend(frame: Frame, points: Sequence[Mapping[str, Any]], foretold: bool) -> Markup:
    """In the corner that the curve leaves free: quality rises with FLOPs, perplexity falls."""
    rises = points[-1]["quality"] >= points[0]["quality"]
    at = frame.bottom - 44 if rises else frame.top + 14
    rows = [("rung", "rung"), ("between", "between rungs")]
    body: list[Markup] = []
    for step, (kind, text) in enumerate(rows):
        body.append(el("circle", cx=frame.right - 170, cy=at + 18 * step - 4, r=4.5, class_=kind))
        body.append(el("text", text, x=frame.right - 158, y=at + 18 * step, class_="aside"))
    if foretold:
        body.append(_line([(frame.right - 178, at + 32), (frame.right - 162, at + 32)], "told"))
        body.append(el("text", "foretold by the energy", x=frame.right - 158, y=at + 36, class_="aside"))
    return el("g", body)
