"""Quality against what it costs: measured latency on the left, counted FLOPs on the right, the same quality axis.

quality                         quality
  |        25% o--  50% o---      |      o     o
  |   o (where FLOPs alone        |   o
  |      would have put it)       |
  +------------------ ms          +------------- % of linear FLOPs
"""

from __future__ import annotations

from collections.abc import Sequence

from nsn_edge.report.axes import Frame, Scale, tick_labels, ticks, x_axis, y_axis
from nsn_edge.report.markup import Markup, el
from nsn_edge.report.profile_view import ProfileView, Rung
from nsn_edge.report.style import RungColours

_WIDTH, _HEIGHT = 460, 340
_FRAME = Frame(left=46, top=30, right=444, bottom=290)


def quality_by_latency(profile: ProfileView, metric: str, name: str, colours: RungColours) -> Markup:
    """A dot per rung at its median, a line on to its 90th percentile, and a hollow dot where FLOPs alone would put it.

    Args:
        profile: at least one rung has the metric.
        metric: its key in `Rung.quality`.
        name: its name for people.
        colours: of the rungs.
    """
    rungs = [rung for rung in profile.rungs if metric in rung.quality]
    dense = profile.dense
    x = Scale(0.0, max(rung.p90_ms for rung in rungs) * 1.06, _FRAME.left, _FRAME.right)
    y = _quality_scale([rung.quality[metric] for rung in rungs])
    body: list[Markup] = [*_frame(x, y, name, ticks(0.0, x.high, 6), "ms per answer (median; the line ends at p90)")]
    body.append(_trend([(x(rung.p50_ms), y(rung.quality[metric])) for rung in rungs]))
    factored = [rung for rung in rungs if not rung.dense]
    if dense:
        body.extend(_ideal(x(dense.p50_ms * rung.flops_fraction), y(rung.quality[metric])) for rung in factored)
        if factored:
            at = {"x": _FRAME.right, "y": _FRAME.bottom - 10}
            body.append(el("text", "○ if time followed FLOPs", **at, text_anchor="end", class_="aside"))
    for rung in rungs:
        quality = rung.quality[metric]
        ends = {"x1": x(rung.p50_ms), "y1": y(quality), "x2": x(rung.p90_ms), "y2": y(quality)}
        body.append(el("line", **ends, style=f"stroke:{colours(rung.rank)}", class_="spread"))
        cost = f"{rung.p50_ms:.1f} ms, p90 {rung.p90_ms:.1f} ms"
        body.append(_dot(x(rung.p50_ms), y(quality), rung, colours, cost, quality))
    summary = "; ".join(f"{rung.label}: {rung.p50_ms:.1f} ms, {rung.quality[metric]:.3f}" for rung in rungs)
    return _svg(f"{name} against measured latency. {summary}", body)


def quality_by_flops(profile: ProfileView, metric: str, name: str, colours: RungColours) -> Markup:
    """A dot per rung at its share of the dense model's linear FLOPs; arguments as in `quality_by_latency`."""
    rungs = [rung for rung in profile.rungs if metric in rung.quality]
    x = Scale(0.0, 1.06, _FRAME.left, _FRAME.right)
    y = _quality_scale([rung.quality[metric] for rung in rungs])
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    body = [
        *_frame(x, y, name, shares, "% of the dense model's linear FLOPs", scale_labels=100),
        _trend([(x(rung.flops_fraction), y(rung.quality[metric])) for rung in rungs]),
        *(
            _dot(
                x(rung.flops_fraction),
                y(rung.quality[metric]),
                rung,
                colours,
                f"{rung.flops_fraction:.1%} of linear FLOPs",
                rung.quality[metric],
            )
            for rung in rungs
        ),
    ]
    summary = "; ".join(f"{rung.label}: {rung.quality[metric]:.3f}" for rung in rungs)
    return _svg(f"{name} against the share of linear FLOPs. {summary}", body)


def _quality_scale(values: Sequence[float]) -> Scale:
    """From a little below the worst to a little above the best. Dots, not bars: the axis need not begin at 0."""
    pad = max((max(values) - min(values)) * 0.08, 0.01)
    return Scale(min(values) - pad, max(values) + pad, _FRAME.bottom, _FRAME.top)


def _frame(
    x: Scale, y: Scale, name: str, x_values: list[float], x_title: str, scale_labels: float = 1.0
) -> tuple[Markup, Markup, Markup]:
    y_values = ticks(y.low, y.high, 5)
    return (
        y_axis(_FRAME, y, y_values, tick_labels(y_values)),
        x_axis(_FRAME, x, x_values, tick_labels([value * scale_labels for value in x_values]), x_title),
        el("text", name, x=0, y=14, class_="title"),
    )


def _trend(points: Sequence[tuple[float, float]]) -> Markup:
    return el("polyline", points=" ".join(f"{px:.1f},{py:.1f}" for px, py in points), class_="trend")


def _ideal(at_x: float, at_y: float) -> Markup:
    return el("circle", cx=at_x, cy=at_y, r=3.5, class_="ideal")


def _dot(at_x: float, at_y: float, rung: Rung, colours: RungColours, cost: str, quality: float) -> Markup:
    # Cost and quality rise together, so the space up and to the left of a dot is free.
    return el(
        "g",
        el("title", f"{rung.label}, rank {rung.rank}: {cost}, quality {quality:.3f}"),
        el("circle", cx=at_x, cy=at_y, r=5.5, style=f"fill:{colours(rung.rank)}"),
        el("text", rung.label, x=at_x - 4, y=at_y - 9, text_anchor="end", class_="strong"),
    )


def _svg(label: str, body: Sequence[Markup]) -> Markup:
    return el("svg", body, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)
