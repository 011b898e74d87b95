"""Rank and precision together: which pair to deploy for each latency.

quality
  |   int8 50 % #    # int8 dense   o dense        each bundle its own mark, one line through the pairs that no other
  |  #         o                                   one beats in both
  +------------------------------- ms
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nsn_edge.report.axes import Frame, Scale, tick_labels, ticks, x_axis, y_axis
from nsn_edge.report.headline import metric_name, milliseconds
from nsn_edge.report.markup import Markup, el
from nsn_edge.report.parts import missing, rung_name, section, table
from nsn_edge.report.profile_view import ProfileView, Rung
from nsn_edge.report.style import RungColours

_WIDTH, _HEIGHT = 940, 400
_FRAME = Frame(left=46, top=30, right=920, bottom=350)


@dataclass(frozen=True)
class Pair:
    """A rung of a bundle."""

    precision: str
    rung: Rung
    quality: float

    @property
    def label(self) -> str:
        """How it is called."""
        return f"{self.precision} {self.rung.label}"


def pairs_section(profiles: Sequence[ProfileView], metric: str | None, colours: RungColours) -> Markup | None:
    """The section; nothing where there is one profile alone.

    Args:
        profiles: of one model on one machine, a bundle each.
        metric: the quality to compare by.
        colours: of the ranks of all profiles.
    """
    if len(profiles) < 2:
        return None
    title = "Which rank in which precision"
    found = [
        Pair(profile.precision, rung, rung.quality[metric])
        for profile in profiles
        for rung in profile.rungs
        if metric is not None and metric in rung.quality
    ]
    if metric is None or len({pair.precision for pair in found}) < 2:
        return section(title, missing("No two precisions have a quality that can be compared. Verify both bundles."))
    best = frontier(found)
    beaten = len(found) - len(best)
    dense = next((pair for pair in reversed(best) if pair.rung.dense), None)
    sentence = (
        f"{len(best)} of {len(found)} pairs are worth deploying; for each of the other {beaten} there is one that is "
        "at least as fast and at least as good."
        if beaten
        else f"All {len(found)} pairs are worth deploying: none is both slower and worse than another."
    )
    name = metric_name(metric)
    header = [
        el("th", heading, scope="col", class_=None if index < 2 else "n")
        for index, heading in enumerate(("If it must take at most", "deploy", name.capitalize(), "p50 ms", "p99 ms"))
    ]
    rows = [_row(pair, colours) for pair in reversed(best)]
    caption = f"Pairs that no other beats, the best first. All measured at {_conditions(profiles[0])}."
    return section(
        title,
        el("p", sentence, " ", f"Full quality: {dense.label}." if dense else ""),
        el("figure", _chart(found, best, name, colours)),
        table(header, rows, caption),
    )


def frontier(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that no other beats: each faster one is worse. The fastest comes first."""
    best: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: (pair.rung.p50_ms, -pair.quality)):
        if not best or pair.quality > best[-1].quality:
            best.append(pair)
    return best


def _row(pair: Pair, colours: RungColours) -> Markup:
    rung = pair.rung
    return el(
        "tr",
        el("td", f"{milliseconds(rung.p50_ms)} ms"),
        el("th", rung_name(rung.rank, pair.label, colours), scope="row"),
        *(el("td", value, class_="n") for value in (f"{pair.quality:.3f}", f"{rung.p50_ms:.2f}", f"{rung.p99_ms:.2f}")),
    )


def _conditions(profile: ProfileView) -> str:
    settings = profile.settings
    return f"batch {settings.get('batch_size', '?')}, sequence length {settings.get('sequence_length', '?')}"


def _chart(pairs: Sequence[Pair], best: Sequence[Pair], name: str, colours: RungColours) -> Markup:
    x = Scale(0.0, max(pair.rung.p50_ms for pair in pairs) * 1.06, _FRAME.left, _FRAME.right)
    qualities = [pair.quality for pair in pairs]
    pad = max((max(qualities) - min(qualities)) * 0.08, 0.01)
    y = Scale(min(qualities) - pad, max(qualities) + pad, _FRAME.bottom, _FRAME.top)
    precisions = list(dict.fromkeys(pair.precision for pair in pairs))
    x_values, y_values = ticks(0.0, x.high, 8), ticks(y.low, y.high, 5)
    body = [
        y_axis(_FRAME, y, y_values, tick_labels(y_values)),
        x_axis(_FRAME, x, x_values, tick_labels(x_values), "ms per answer (median)"),
        el("text", name, x=0, y=14, class_="title"),
        el(
            "polyline",
            points=" ".join(f"{x(pair.rung.p50_ms):.1f},{y(pair.quality):.1f}" for pair in best),
            class_="trend",
        ),
    ]
    places = [(x(pair.rung.p50_ms), y(pair.quality)) for pair in pairs]
    labels = _labels(pairs, places, best)
    for pair, at, named in zip(pairs, places, labels, strict=True):
        body.append(_mark(pair, at, precisions.index(pair.precision), colours, named))
    body.append(_legend(precisions))
    summary = "; ".join(f"{pair.label}: {pair.rung.p50_ms:.1f} ms, {pair.quality:.3f}" for pair in pairs)
    label = f"{name} against measured latency, every rank and precision. {summary}"
    return el("svg", body, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)


def _labels(pairs: Sequence[Pair], places: Sequence[tuple[float, float]], best: Sequence[Pair]) -> list[Markup | None]:
    """A label beside each mark where there is room for it: those worth deploying first. One that would lie on a mark or
    on another label is left out; the mark still says what it is when it is pointed at."""
    taken = [(px - 6.0, py - 6.0, px + 6.0, py + 6.0) for px, py in places]
    labels: list[Markup | None] = [None] * len(pairs)
    for strong in (True, False):
        for index, (pair, (px, py)) in enumerate(zip(pairs, places, strict=True)):
            if (pair in best) is not strong:
                continue
            width = len(pair.label) * (8.0 if strong else 7.2)
            spots = [("end", px - 8, py - 9), ("start", px + 9, py + 14)]
            spots += [("start", px + 9, py - 9), ("end", px - 8, py + 18)]
            for anchor, at_x, at_y in spots if strong else [*spots[1:], spots[0]]:
                left = at_x - width if anchor == "end" else at_x
                box = (left, at_y - 11, left + width, at_y + 3)
                inside = box[0] >= _FRAME.left and box[2] <= _WIDTH and box[3] <= _FRAME.bottom
                if inside and not any(_meet(box, other) for other in taken):
                    taken.append(box)
                    class_ = "strong" if strong else "aside"
                    labels[index] = el("text", pair.label, x=at_x, y=at_y, text_anchor=anchor, class_=class_)
                    break
    return labels


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, top, right, bottom) share a point."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _legend(precisions: Sequence[str]) -> Markup:
    """Which mark is which precision, in the corner below the slow and bad, where few marks are."""
    items: list[Markup] = []
    right = _FRAME.right
    for kind, precision in reversed(list(enumerate(precisions))):
        right -= len(precision) * 7.6
        items.append(el("text", precision, x=right, y=_FRAME.bottom - 9, class_="aside"))
        items.append(_shape((right - 10, _FRAME.bottom - 13), kind, "fill:var(--soft)"))
        right -= 32
    return el("g", items)


def _shape(at: tuple[float, float], kind: int, style: str) -> Markup:
    """A disc for the first precision, a square for the second, a diamond for the others."""
    at_x, at_y = at
    if kind == 0:
        return el("circle", cx=at_x, cy=at_y, r=5.5, style=style)
    turned = f"rotate(45 {at_x:.1f} {at_y:.1f})" if kind > 1 else None
    return el("rect", x=at_x - 5, y=at_y - 5, width=10, height=10, style=style, transform=turned)


def _mark(pair: Pair, at: tuple[float, float], kind: int, colours: RungColours, label: Markup | None) -> Markup:
    title = f"{pair.label}, rank {pair.rung.rank}: {pair.rung.p50_ms:.1f} ms, quality {pair.quality:.3f}"
    return el("g", el("title", title), _shape(at, kind, f"fill:{colours(pair.rung.rank)}"), label)
