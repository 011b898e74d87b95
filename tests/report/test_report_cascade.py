"""The drawing of a cascade: what is in it, where it stands, and documents that cannot be drawn."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from nsn_edge.errors import NsnEdgeError
from nsn_edge.report.cascade import cascade_svg

RUNGS = [
    {"rank": 8, "flops_fraction": 0.1, "right": 0.5},
    {"rank": 48, "flops_fraction": 0.2, "right": 0.93},
    {"rank": 384, "flops_fraction": 1.0, "right": 0.95},
]
CURVE = [
    {"flops_fraction": 0.1, "right": 0.5},
    {"flops_fraction": 0.5, "right": 0.94},
    {"flops_fraction": 1.1, "right": 0.95},
]
CHOSEN = {"flops_fraction": 0.36, "right": 0.949}
SVG = "{http://www.w3.org/2000/svg}"


def test_what_is_drawn_stands_within_the_frame() -> None:
    root = ElementTree.fromstring(cascade_svg(RUNGS, [CURVE], CHOSEN, "right & wrong", max_loss_points=0.5))
    text = "|".join(root.itertext()).replace("\N{NO-BREAK SPACE}", " ")
    for part in ("right & wrong", "0.5 points below the top rung", "36 %: 94.90 %", "20 %", "100 %"):
        assert part in text
    assert "10 %" not in text.split("|"), "a rung far below the others would press them into one line"
    points = [
        tuple(map(float, pair.split(",")))
        for line in root.iter(f"{SVG}polyline")
        for pair in line.get("points", "").split()
    ]
    circles = [(float(circle.get("cx", "")), float(circle.get("cy", ""))) for circle in root.iter(f"{SVG}circle")]
    assert len(circles) == 2 + 1 + 2, "two rungs, the rule, and the legend"
    for x, y in (*points, *circles):
        assert 52 <= x <= 544
        assert 40 <= y <= 336.1
    assert "0.5 points" not in cascade_svg(RUNGS, [CURVE], CHOSEN, "t")


@pytest.mark.parametrize("rungs", [[], [{"rank": 1}], [{"rank": 1, "flops_fraction": "a", "right": 1}]])
def test_what_cannot_be_drawn_is_refused(rungs: list[dict[str, object]]) -> None:
    with pytest.raises(NsnEdgeError, match="no cascade that can be drawn"):
        cascade_svg(rungs, [], CHOSEN, "t")
