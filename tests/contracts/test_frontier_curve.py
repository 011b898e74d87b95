"""Losses, the line between neighbours, and the prediction: checked on curves whose law is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.errors import UsageError
from nsn_edge.frontier.curve import Decay, Metric, Point, frontier

ACCURACY = Metric("accuracy", "accuracy")
PERPLEXITY = Metric("perplexity", "perplexity", higher_is_better=False)
DECAY = Decay((0.5, 1.0), (0.9, 1.0), 0.9, 0.8)


def point(rank: int, quality: float, *, rung: bool = True, left_out: float = 0.1, flops: float | None = None) -> Point:
    return Point(rank, False, rank / 100 if flops is None else flops, rung, None, 1 - left_out, left_out, quality)


DENSE = Point(100, True, 1.0, True, None, 1.0, 0.0, 0.9)


def test_losses_are_points_against_the_reference() -> None:
    found = frontier(ACCURACY, "dense", [point(25, 0.85), point(50, 0.91), DENSE], 0.9, DECAY)
    assert [p.loss for p in found.points] == pytest.approx([5.0, -1.0, 0.0])


def test_a_loss_of_perplexity_is_per_cent_in_logarithms() -> None:
    found = frontier(PERPLEXITY, "dense", [point(25, 4 * math.exp(0.2)), point(50, 4.0)], 4.0, DECAY)
    assert [p.loss for p in found.points] == pytest.approx([20.0, 0.0])
    assert found.metric.value(found.metric.level(7.25)) == pytest.approx(7.25)


def test_a_rank_between_two_rungs_is_held_against_their_line() -> None:
    points = [point(20, 0.60), point(30, 0.75, rung=False), point(40, 0.80), point(50, 0.81, rung=False), DENSE]
    found = frontier(ACCURACY, "dense", points, 0.9, DECAY)
    # From 0.60 to 0.80 the middle is 0.70; from 0.80 at 40 % to 0.90 at 100 %, a sixth of the way is 0.8167.
    assert [p.off_line for p in found.points] == [None, pytest.approx(5.0), None, pytest.approx(-2 / 3), None]
    assert found.worst_off_line == pytest.approx(5.0)


def test_without_rungs_on_both_sides_there_is_no_line() -> None:
    found = frontier(ACCURACY, "dense", [point(20, 0.6, rung=False), point(40, 0.8)], 0.9, DECAY)
    assert found.worst_off_line is None
    flat = [point(20, 0.6, flops=1.0), point(30, 0.7, rung=False, flops=1.0), point(40, 0.8, flops=1.0)]
    assert frontier(ACCURACY, "dense", flat, 0.9, DECAY).worst_off_line is None


@given(st.floats(0.5, 1.5), st.floats(1.0, 100.0))
def test_a_law_that_holds_is_found_and_foretells_the_small_ranks(g, c):
    best, left_out = 0.9, {10: 0.4, 25: 0.2, 50: 0.1, 75: 0.04, 90: 0.01}
    points = [point(rank, (90 * math.exp(-c * x**g / 90)) / 100, left_out=x) for rank, x in left_out.items()]
    found = frontier(ACCURACY, "dense", [*points, DENSE], best, DECAY)
    assert found.prediction == pytest.approx((c, g), rel=1e-6)
    assert found.prediction_error == pytest.approx(0.0, abs=1e-6)
    assert [p.fitted for p in found.points] == [False, False, True, True, True, False]
    assert found.points[-1].predicted is None


@given(st.floats(0.5, 1.5), st.floats(1.0, 100.0))
def test_perplexity_has_no_end(g, c):
    points = [point(rank, 3 * math.exp(c * x**g / 100), left_out=x) for rank, x in ((10, 0.4), (50, 0.1), (75, 0.02))]
    found = frontier(PERPLEXITY, "dense", points, 3.0, DECAY)
    assert found.prediction == pytest.approx((c, g), rel=1e-6)
    assert found.prediction_error == pytest.approx(0.0, abs=1e-6)


def test_the_error_is_of_what_was_not_fitted() -> None:
    points = [point(25, 0.5, left_out=0.2), point(50, 0.8, left_out=0.1), point(75, 0.87, left_out=0.03), DENSE]
    found = frontier(ACCURACY, "dense", points, 0.9, DECAY)
    predicted = found.points[0].predicted
    assert predicted is not None
    assert found.prediction_error == pytest.approx(abs(predicted - 0.5) * 100)


def test_without_a_loss_at_the_large_ranks_nothing_is_foretold() -> None:
    found = frontier(ACCURACY, "dense", [point(25, 0.5), point(50, 0.95), DENSE], 0.9, DECAY)
    assert found.prediction is None
    assert found.prediction_error is None
    assert found.to_json()["prediction"] is None


def test_one_point_is_enough_for_a_line_through_the_origin() -> None:
    found = frontier(ACCURACY, "dense", [point(25, 0.7, left_out=0.2), point(50, 0.8, left_out=0.1)], 0.9, DECAY)
    assert found.prediction is not None
    assert found.prediction[1] == 1.0


def test_ranks_that_do_not_rise_are_refused() -> None:
    with pytest.raises(UsageError, match="ranks that rise"):
        frontier(ACCURACY, "dense", [point(50, 0.5), point(25, 0.5)], 0.9, DECAY)
    with pytest.raises(UsageError, match="ranks that rise"):
        frontier(ACCURACY, "dense", [], 0.9, DECAY)
