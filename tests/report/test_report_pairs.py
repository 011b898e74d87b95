"""Rank and precision together: what is worth deploying, and what cannot be compared."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.errors import UsageError
from nsn_edge.report import ReportData, build_report
from nsn_edge.report.pairs import Pair, frontier
from nsn_edge.report.profile_view import profile_view

Sample = Callable[[], ReportData]


def in_int8(profile: Any) -> dict[str, Any]:
    """The same model, twice as fast and a little worse."""
    other: dict[str, Any] = copy.deepcopy(dict(profile))
    other["settings"]["precision"] = "int8"
    for rung in other["rungs"]:
        for key in ("min_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "mean_ms"):
            rung[key] *= 0.5
        rung["quality"] = {name: value - 0.004 for name, value in rung["quality"].items()}
    return other


def test_the_page_names_the_pair_for_each_latency(report_data: Sample) -> None:
    data = report_data()
    alone = build_report(data)
    assert "Which rank in which precision" not in alone
    page = build_report(replace(data, others=[in_int8(data.profile)]))
    assert "Which rank in which precision" in page
    # Halved latency for 0.004 of quality: of fp32 only dense, which nothing equals, is left beside all of int8.
    assert "6 of 10 pairs are worth deploying; for each of the other 4" in page
    assert "Full quality: fp32 dense." in page
    table = page[page.index("Pairs that no other beats") - 4000 :]
    for label in ("int8 dense", "fp32 dense"):
        assert label in table


def test_profiles_that_cannot_be_compared_are_refused(report_data: Sample) -> None:
    data = report_data()
    changes: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
        ("model", lambda other: other["bundle"].update(model="another"), "of two models"),
        ("precision", lambda other: other["settings"].update(precision="fp32"), "two of these profiles are in fp32"),
        ("length", lambda other: other["settings"].update(sequence_length=8), "sequence_length 128 and 8"),
        ("threads", lambda other: other["settings"].update(threads=2), "threads 1 and 2"),
    ]
    for _, change, message in changes:
        other = in_int8(data.profile)
        change(other)
        with pytest.raises(UsageError, match=message):
            build_report(replace(data, others=[other]))


def test_without_a_common_quality_it_says_so(report_data: Sample) -> None:
    data = report_data()
    other = in_int8(data.profile)
    for rung in other["rungs"]:
        rung["quality"] = {}
    assert "Verify both bundles." in build_report(replace(data, others=[other]))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=30), st.data())
def test_the_frontier_beats_all_else_and_nothing_of_itself(points: list[tuple[int, int]], data: Any) -> None:
    rung = profile_view(EXAMPLE).rungs[0]
    pairs = [Pair("fp32", replace(rung, p50_ms=float(ms)), float(quality)) for ms, quality in points]
    best = frontier(data.draw(st.permutations(pairs)))
    for a, b in itertools.pairwise(best):
        assert a.rung.p50_ms < b.rung.p50_ms
        assert a.quality < b.quality
    for pair in pairs:
        assert any(other.rung.p50_ms <= pair.rung.p50_ms and other.quality >= pair.quality for other in best)


EXAMPLE: dict[str, Any] = {
    "schema_version": 1,
    "kind": "profile",
    "bundle": {"model": "m"},
    "host": {},
    "settings": {},
    "rungs": [
        {
            "rank": 1,
            "dense": False,
            "flops_fraction": 0.5,
            **{f"{name}_ms": 1.0 for name in ("p50", "p90", "p99", "mean", "std", "load")},
            "repetitions": 1,
            "steady": True,
            "quality": {},
        }
    ],
    "warnings": [],
}


def test_labels_of_pairs_that_are_close_do_not_lie_on_each_other(report_data: Sample) -> None:
    data = report_data()
    near = copy.deepcopy(dict(data.profile))
    near["settings"]["precision"] = "fp16"
    for rung in near["rungs"]:
        rung["p50_ms"] *= 0.98
    page = build_report(replace(data, others=[near, in_int8(data.profile)]))
    chart = page[page.index("every rank and precision") :].split("</svg>")[0]
    text = r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="(?:strong|aside)">(\w+ [^<]+)</text>'
    boxes = []
    for x, y, anchor, label in re.findall(text, chart):
        right = float(x) if anchor == "end" else float(x) + 6 * len(label)
        boxes.append((right - 6 * len(label), float(y) - 10, right, float(y)))
    assert len(boxes) > 10
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
