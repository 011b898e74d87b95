from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.profiling import LatencyStats, MeasureSettings, measure


class FakeMachine:
    """A clock that only the work moves; the machine slows down by `drift` per second."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now_s = 100.0
        self.drift = drift
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now_s

    def work(self, name: str, took_ms: float) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now_s += took_ms / 1e3 * (1 + self.drift * (self.now_s - 100.0))

        return call

    def candidates(self, **took_ms: float) -> dict[str, Callable[[], None]]:
        return {name: self.work(name, ms) for name, ms in took_ms.items()}


def settings(**changes: float) -> MeasureSettings:
    plain = {"warmup": 2, "min_repetitions": 10, "min_time_s": 0.0, "max_time_s": 1e6, "calls_per_turn": 5}
    return MeasureSettings(**{**plain, **changes})  # type: ignore[arg-type]


def test_samples_are_what_the_clock_says() -> None:
    machine = FakeMachine()
    samples = measure(machine.candidates(a=10.0, b=4.0), settings(), clock=machine.clock)
    assert samples["a"] == pytest.approx([10.0] * 10)
    assert samples["b"] == pytest.approx([4.0] * 10)
    # Warm-up, and an untimed call before each of two turns.
    assert Counter(machine.calls) == {"a": 2 + 2 + 10, "b": 2 + 2 + 10}


def test_a_drifting_machine_leaves_the_ratio_alone() -> None:
    machine = FakeMachine(drift=0.5)
    samples = measure(machine.candidates(slow=20.0, fast=10.0), settings(min_repetitions=100), clock=machine.clock)
    slow, fast = (LatencyStats.from_samples(samples[name]) for name in ("slow", "fast"))
    assert slow.max_ms > 1.5 * slow.min_ms  # the drift is real
    assert slow.mean_ms / fast.mean_ms == pytest.approx(2.0, rel=0.05)


def test_candidates_take_turns() -> None:
    machine = FakeMachine()
    measure(machine.candidates(a=1.0, b=1.0, c=1.0), settings(warmup=0), clock=machine.clock)
    turns = [machine.calls[start : start + 6] for start in range(0, len(machine.calls), 6)]
    assert all(len(set(turn)) == 1 for turn in turns)
    rounds = [[turn[0] for turn in turns[start : start + 3]] for start in range(0, len(turns), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)


def test_the_order_changes_and_can_be_repeated() -> None:
    def orders(seed: int) -> list[str]:
        machine = FakeMachine()
        measure(
            machine.candidates(a=1.0, b=1.0, c=1.0),
            settings(warmup=0, calls_per_turn=1, min_repetitions=30, seed=seed),
            clock=machine.clock,
        )
        return machine.calls

    assert orders(0) == orders(0)
    assert len({tuple(orders(0)[start : start + 6 : 2]) for start in range(0, 180, 6)}) > 1


def test_a_fast_candidate_gets_enough_time() -> None:
    machine = FakeMachine()
    samples = measure(machine.candidates(a=1.0, b=100.0), settings(min_time_s=2.0), clock=machine.clock)
    assert sum(samples["a"]) >= 2000.0 - 1e-6
    assert len(samples["a"]) == len(samples["b"])


def test_it_stops_at_the_longest_time() -> None:
    machine = FakeMachine()
    chosen = settings(min_repetitions=1000, max_time_s=3.0)
    samples = measure(machine.candidates(a=100.0, b=100.0), chosen, clock=machine.clock)
    assert machine.now_s - 100.0 <= 3.0 + 0.1
    assert all(1 <= len(taken) < 1000 for taken in samples.values())


def test_every_candidate_is_timed_once_whatever_it_takes() -> None:
    machine = FakeMachine()
    chosen = settings(warmup=5, max_time_s=0.001)
    samples = measure(machine.candidates(a=1000.0, b=1000.0, c=1000.0), chosen, clock=machine.clock)
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 1, "b": 1, "c": 1}
    assert len(machine.calls) == 3 + 3  # one round of warm-up, then the samples alone


def test_progress_rises_to_the_end() -> None:
    heard: list[tuple[str, int, int]] = []
    machine = FakeMachine()
    measure(
        machine.candidates(a=1.0, b=1.0),
        settings(min_repetitions=50),
        clock=machine.clock,
        progress=lambda *report: heard.append(report),
    )
    done = [count for _, count, _ in heard]
    assert done == sorted(set(done))
    assert heard[-1] == ("measure", 100, 100)


def test_a_failing_candidate_is_not_hidden() -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        measure({"a": fail}, settings())


def test_nothing_to_measure() -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        measure({}, settings())


@pytest.mark.parametrize(
    "changes",
    [
        {"warmup": -1},
        {"min_repetitions": 0},
        {"calls_per_turn": 0},
        {"max_time_s": 0.0},
        {"min_time_s": 2e6},
        {"min_time_s": math.nan},
        {"max_time_s": math.nan},
        {"min_time_s": math.inf, "max_time_s": math.inf},
    ],
)
def test_settings_without_sense(changes: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        settings(**changes)
