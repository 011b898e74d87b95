from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.profiling import LatencyStats

latencies = st.lists(st.floats(min_value=0.0, max_value=1e6), min_size=1, max_size=200)


def test_known_numbers() -> None:
    stats = LatencyStats.from_samples([float(value) for value in range(1, 101)])
    assert stats.n == 100
    assert stats.mean_ms == pytest.approx(50.5)
    assert stats.p50_ms == pytest.approx(50.5)
    assert stats.p90_ms == pytest.approx(90.1)  # position 0.9 * 99 = 89.1, between 90 and 91
    assert stats.p99_ms == pytest.approx(99.01)
    assert (stats.min_ms, stats.max_ms) == (1.0, 100.0)
    assert stats.std_ms == pytest.approx(math.sqrt(100 * 101 / 12))
    assert stats.cv == pytest.approx(stats.std_ms / 50.5)
    assert not stats.steady
    assert not stats.p99_is_thin


@given(latencies)
def test_the_order_of_the_percentiles(samples: list[float]) -> None:
    stats = LatencyStats.from_samples(samples)
    ordered = [stats.min_ms, stats.p50_ms, stats.p90_ms, stats.p95_ms, stats.p99_ms, stats.max_ms]
    assert ordered == sorted(ordered)
    assert stats.min_ms <= stats.mean_ms <= stats.max_ms
    assert stats.std_ms >= 0.0


@given(latencies, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(samples: list[float], random: object) -> None:
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = LatencyStats.from_samples(samples), LatencyStats.from_samples(shuffled)
    assert (first.p50_ms, first.p99_ms) == (second.p50_ms, second.p99_ms)
    assert first.mean_ms == pytest.approx(second.mean_ms)


@given(st.floats(min_value=0.0, max_value=1e6), st.integers(min_value=1, max_value=50))
def test_equal_samples_are_steady(value: float, count: int) -> None:
    stats = LatencyStats.from_samples([value] * count)
    assert stats.mean_ms == stats.p50_ms == stats.max_ms == value
    assert stats.cv == pytest.approx(0.0, abs=1e-9)
    assert stats.steady
    assert stats.p99_is_thin


def test_steady_ends_at_the_threshold() -> None:
    # Two samples m - d and m + d have the deviation d * sqrt(2).
    assert LatencyStats.from_samples([100 - 7.0, 100 + 7.0]).steady
    assert not LatencyStats.from_samples([100 - 7.2, 100 + 7.2]).steady


@pytest.mark.parametrize("samples", [[], [-1.0], [math.nan], [math.inf]])
def test_no_sense_is_refused(samples: list[float]) -> None:
    with pytest.raises(UsageError):
        LatencyStats.from_samples(samples)


@given(latencies)
def test_percentiles_are_numpys(samples: list[float]) -> None:
    stats = LatencyStats.from_samples(samples)
    assert stats.p95_ms == float(np.percentile(samples, 95, method="linear"))
