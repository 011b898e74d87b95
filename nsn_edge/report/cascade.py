"""Rungs alone against a cascade of two, as one SVG file that stands alone: right answers by what an answer costs.

right answers
  |      ___.----o------ cascade: from the low rung alone to everything asked twice
  |    o´   ,-o--------o rungs alone
  |   /  ,o´
  +------------------------- linear FLOPs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nsn_edge.errors import NsnEdgeError
from nsn_edge.report.axes import Frame, Scale, tick_labels, ticks, x_axis, y_axis
from nsn_edge.report.markup import Markup, el
from nsn_edge.report.profile_view import percent
from nsn_edge.report.style import DRAWING

_WIDTH, _HEIGHT, _MARGIN = 560, 390, 14
_FRAME = Frame(left=52, top=40, right=544, bottom=336)
_WORST = 0.04
_STYLE = (
    DRAWING
    + """
.rung{fill:var(--mark)}.cascade{fill:none;stroke:var(--told);stroke-width:1.8}.chosen{fill:var(--told)}
.least{stroke:var(--soft);stroke-dasharray:2 3}
"""
)


def cascade_svg(
    rungs: Sequence[Mapping[str, Any]],
    curves: Sequence[Sequence[Mapping[str, Any]]],
    chosen: Mapping[str, Any],
    title: str,
    max_loss_points: float | None = None,
) -> str:
    """Draw what rungs alone and a cascade keep, by their mean linear FLOPs.

    Args:
        rungs: `flops_fraction` and `right`, lowest first, the top rung last.
        curves: of each cascade the same at several thresholds, the lowest threshold first.
        chosen: the same of the rule.
        title: what the answers are, for people.
        max_loss_points: a line so many points of a hundred below the top rung; None for no line.

    Raises:
        NsnEdgeError: a key is missing, or there is no rung to draw.
    """
    try:
        top = float(rungs[-1]["right"])
        shown = [point for line in (rungs, *curves) for point in line]
        highest = max(float(point["flops_fraction"]) for point in shown)
        # What lies far below would press the rest, which differs by a point or less, into one line.
        lowest = max(min(float(point["right"]) for point in rungs), top - _WORST)
        lowest = min(lowest, float(chosen["right"]), top - (max_loss_points or 0.0) / 100)
        best = max(float(point["right"]) for point in (chosen, *shown))
        x = Scale(0.0, max(1.06, highest * 1.02), _FRAME.left, _FRAME.right)
        y = Scale(lowest - (best - lowest) * 0.2, best + (best - lowest) * 0.15, _FRAME.bottom, _FRAME.top)
        body = [*_axes(x, y), *(_least(y, top, max_loss_points))]
        body += [_line(_inside(x, y, curve), "cascade") for curve in curves]
        body += [_line(_inside(x, y, rungs), "trend"), *(_rung(x, y, rung) for rung in rungs)]
        body += [_chosen(x, y, chosen), _legend()]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise NsnEdgeError(f"this is no cascade that can be drawn: {error!r}") from error
    return el(
        "svg",
        el("title", title),
        el("style", Markup(_STYLE.strip())),
        el("text", title, x=0, y=16, class_="title"),
        body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"{-_MARGIN} {-_MARGIN} {_WIDTH + 2 * _MARGIN} {_HEIGHT + 2 * _MARGIN}",
        width=_WIDTH + 2 * _MARGIN,
        height=_HEIGHT + 2 * _MARGIN,
        role="img",
    )


def _axes(x: Scale, y: Scale) -> tuple[Markup, Markup]:
    shares = [value for value in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25) if value <= x.high]
    stops = ticks(y.low, y.high, 6)
    labels = [f"{text} %" for text in tick_labels([round(100 * stop, 8) for stop in stops])]
    return (
        y_axis(_FRAME, y, stops, labels),
        x_axis(_FRAME, x, shares, [percent(share) for share in shares], "mean linear FLOPs of an answer"),
    )


def _least(y: Scale, top: float, points: float | None) -> list[Markup]:
    if points is None:
        return []
    at = y(top - points / 100)
    return [
        el("line", x1=_FRAME.left, y1=at, x2=_FRAME.right, y2=at, class_="least"),
        el(
            "text",
            f"{points:g} points below the top rung",
            x=_FRAME.right,
            y=at + 15,
            text_anchor="end",
            class_="aside",
        ),
    ]


def _inside(x: Scale, y: Scale, points: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Pixels of the points within the frame, with the crossing of its lower edge where the line comes in."""
    found: list[tuple[float, float]] = []
    for before, point in zip([None, *points[:-1]], points, strict=True):
        if point["right"] < y.low:
            continue
        if before is not None and before["right"] < y.low:
            share = (y.low - before["right"]) / (point["right"] - before["right"])
            entry = before["flops_fraction"] + share * (point["flops_fraction"] - before["flops_fraction"])
            found.append((x(entry), y(y.low)))
        found.append((x(point["flops_fraction"]), y(point["right"])))
    return found


def _line(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    return el("polyline", points=" ".join(f"{px:.1f},{py:.1f}" for px, py in points), class_=kind)


def _rung(x: Scale, y: Scale, rung: Mapping[str, Any]) -> Markup:
    if rung["right"] < y.low:
        return Markup("")
    at_x, at_y, label = x(rung["flops_fraction"]), y(rung["right"]), percent(rung["flops_fraction"])
    note = el("title", f"rank {rung['rank']}, {label}: {100 * rung['right']:.2f}\N{NO-BREAK SPACE}%")
    text = el("text", label, x=at_x + 2, y=at_y + 19, text_anchor="middle", class_="strong")
    return el("g", note, el("circle", cx=at_x, cy=at_y, r=5.5, class_="rung"), text)


def _chosen(x: Scale, y: Scale, chosen: Mapping[str, Any]) -> Markup:
    at_x, at_y = x(chosen["flops_fraction"]), y(chosen["right"])
    text = f"{percent(chosen['flops_fraction'])}: {100 * chosen['right']:.2f}\N{NO-BREAK SPACE}%"
    return el(
        "g",
        el("circle", cx=at_x, cy=at_y, r=6.5, class_="chosen"),
        el("text", text, x=at_x - 4, y=at_y - 12, text_anchor="middle", class_="strong"),
    )


def _legend() -> Markup:
    rows = (("rung", "a rung alone"), ("chosen", "the rule"), ("cascade", "the same rungs, other thresholds"))
    body: list[Markup] = []
    for step, (kind, text) in enumerate(rows):
        at = _FRAME.bottom - 50 + 18 * step
        left = _FRAME.right - 236
        if kind == "cascade":
            body.append(_line([(left - 8, at - 4), (left + 8, at - 4)], kind))
        else:
            body.append(el("circle", cx=left, cy=at - 4, r=4.5, class_=kind))
        body.append(el("text", text, x=left + 14, y=at, class_="aside"))
    return el("g", body)
