"""The drawing of a frontier: a point per rank, what is foretold, logarithms for perplexity."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from nsn_edge.errors import NsnEdgeError
from nsn_edge.report.frontier import frontier_svg


def document(values: list[float], predicted: list[float | None], higher_is_better: bool = True) -> dict[str, object]:
    last = len(values) - 1
    return {
        "model": "a <model>",
        "metric_title": "accuracy" if higher_is_better else "perplexity",
        "higher_is_better": higher_is_better,
        "points": [
            {
                "rank": 8 * (at + 1),
                "dense": at == last,
                "rung": at != 1,
                "flops_fraction": (at + 1) / len(values),
                "quality": value,
                "predicted": told,
                "p50_ms": None,
            }
            for at, (value, told) in enumerate(zip(values, predicted, strict=True))
        ],
        "decay": {
            "share_of_rank": [0.5, 1.0],
            "energy_kept": [0.9, 1.0],
            "exponential_r2": None,
            "power_r2": None,
        },
    }


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]


def of_class(svg: str, name: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(svg).iter() if element.get("class") == name]


def test_every_point_is_drawn_and_rungs_are_named() -> None:
    svg = frontier_svg(document([0.5, 0.7, 0.8, 0.9], [0.4, 0.65, 0.8, None]))
    assert len(of_class(svg, "rung")) == 3 + 1 + 2  # three rungs, the legend's, and the energy's two
    assert len(of_class(svg, "between")) == 1 + 1
    assert "dense" in texts(svg)
    assert "foretold by the energy" in texts(svg)
    assert "a &lt;model&gt;" in svg


def test_higher_quality_stands_higher_and_more_perplexity_lower_on_its_axis() -> None:
    rising = [float(c.get("cy", "")) for c in of_class(frontier_svg(document([0.5, 0.7, 0.9], [None] * 3)), "rung")]
    assert rising[0] > rising[1]
    svg = frontier_svg(document([1000.0, 100.0, 10.0, 4.0], [None] * 4, higher_is_better=False))
    heights = {float(c.get("cx", "")): float(c.get("cy", "")) for c in of_class(svg, "rung")[:3]}
    spots = [heights[x] for x in sorted(heights)]
    assert spots == sorted(spots)
    between = float(of_class(svg, "between")[0].get("cy", ""))
    assert between - spots[0] == pytest.approx(spots[1] - between, abs=0.1)  # a decade is a decade
    assert {"10", "100", "1000"} <= set(texts(svg))


def test_what_is_foretold_far_off_is_not_drawn() -> None:
    svg = frontier_svg(document([50.0, 20.0, 10.0, 4.0], [1e30, 21.0, 10.0, None], higher_is_better=False))
    (line,) = [element for element in of_class(svg, "told") if len((element.get("points") or "").split()) > 1][:1]
    assert len((line.get("points") or "").split()) == 2
    assert "foretold by the energy" not in texts(frontier_svg(document([0.5, 0.7, 0.9], [None] * 3)))


def test_milliseconds_have_a_panel_of_their_own() -> None:
    data = document([0.5, 0.7, 0.9], [None] * 3)
    assert "ms per answer, measured (median)" not in texts(frontier_svg(data))
    data["points"][0]["p50_ms"] = 3.0  # type: ignore[index]
    assert "ms per answer, measured (median)" in texts(frontier_svg(data))


def test_what_is_no_evaluation_is_refused() -> None:
    with pytest.raises(NsnEdgeError, match="no evaluation that can be drawn"):
        frontier_svg({"points": []})
