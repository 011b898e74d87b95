from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.report.axes import Scale, tick_labels, ticks, time_ticks

finite = st.floats(min_value=-1e6, max_value=1e6)


@given(finite, st.floats(min_value=1e-3, max_value=1e6), st.integers(min_value=2, max_value=12))
def test_ticks_lie_inside_and_rise(low: float, span: float, most: int) -> None:
    high = low + span
    values = ticks(low, high, most)
    assert 1 <= len(values) <= most
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert all(low - slack <= value <= high + slack for value in values)
    assert values == sorted(set(values))


def test_round_ticks() -> None:
    assert ticks(0.0, 23.0, 6) == [0.0, 5.0, 10.0, 15.0, 20.0]
    assert ticks(0.59, 1.03, 5) == [0.6, 0.7, 0.8, 0.9, 1.0]
    assert ticks(3.0, 3.0, 5) == [3.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_ticks_without_a_range(bad: float) -> None:
    with pytest.raises(ValueError, match="no ticks"):
        ticks(0.0, bad, 5)


def test_labels_have_the_same_decimals() -> None:
    assert tick_labels([0.9, 1.0]) == ["0.9", "1.0"]
    assert tick_labels([0.0, 50.0, 100.0]) == ["0", "50", "100"]
    assert tick_labels([0.975, 1.0]) == ["0.975", "1.000"]


@given(st.floats(min_value=0.1, max_value=1e6), st.integers(min_value=3, max_value=12))
def test_time_ticks_begin_at_zero_and_end_in_time(duration_s: float, most: int) -> None:
    seconds, per_unit, unit = time_ticks(duration_s, most)
    assert seconds[0] == 0.0
    assert seconds[-1] <= duration_s + 1e-6
    assert len(seconds) <= most + 1
    assert (per_unit, unit) in [(1.0, "s"), (60.0, "min"), (3600.0, "h")]


def test_time_units() -> None:
    assert time_ticks(30.0, 6) == ([0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0], 1.0, "s")
    assert time_ticks(1200.0, 10)[0] == [120.0 * index for index in range(11)]
    assert time_ticks(86_400.0, 8)[1:] == (3600.0, "h")


@given(finite, finite.filter(lambda value: abs(value) > 1e-3))
def test_a_scale_maps_its_ends(low: float, span: float) -> None:
    scale = Scale(low, low + abs(span), 10.0, 200.0)
    assert scale(scale.low) == pytest.approx(10.0)
    assert scale(scale.high) == pytest.approx(200.0)
    assert Scale(5.0, 5.0, 10.0, 200.0)(5.0) == 105.0
