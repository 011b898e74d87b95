"""Time several candidates against each other on a machine that will not hold still.

    round 1   C . ....   A . ....   B . ....        . an untimed call: caches and branch predictors settle on this one
    round 2   B . ....   C . ....   A . ....        .... timed calls, back to back
    round 3   ...                                   the order is shuffled in every round

Measuring one candidate after the other would give all the trouble (a warming chip, a neighbour's job) to whichever
happens to be running. Interleaved, a drifting machine disturbs all alike, so ratios hold when absolute times do not.
The untimed call keeps a candidate from paying for the caches its predecessor left behind.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nsn_edge.errors import UsageError
from nsn_edge.progress import Progress, silent

Clock = Callable[[], float]
"""Seconds from an arbitrary start, never running backwards."""

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class MeasureSettings:
    """How much to measure. The defaults take a few seconds for five rungs of a small model."""

    warmup: int = 10
    """Calls of each candidate before anything is timed."""
    min_repetitions: int = 100
    """Timed calls of each candidate, at least."""
    min_time_s: float = 1.0
    """Timed seconds of each candidate, at least."""
    max_time_s: float = 120.0
    """Seconds for everything, warm-up included, after which no further call starts; each candidate is timed once
    whatever it takes."""
    calls_per_turn: int = 5
    """Timed calls in a row before the next candidate has its turn."""
    seed: int = 0
    """Of the order within each round."""

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.min_repetitions < 1 or self.calls_per_turn < 1:
            raise UsageError(
                f"cannot measure with warm-up {self.warmup}, {self.min_repetitions} repetitions "
                f"and {self.calls_per_turn} calls per turn",
                "warm-up is 0 or more, the others 1 or more",
            )
        if not (0 <= self.min_time_s <= self.max_time_s and self.max_time_s > 0) or math.isinf(self.min_time_s):
            raise UsageError(
                f"cannot measure for at least {self.min_time_s} s and at most {self.max_time_s} s",
                "the longest time is positive and not below the shortest",
            )


def measure(
    candidates: Mapping[_Key, Callable[[], object]],
    settings: MeasureSettings,
    *,
    clock: Clock = time.perf_counter,
    after_turn: Callable[[_Key, float, Sequence[float]], None] = lambda key, start_s, samples_ms: None,
    progress: Progress = silent,
) -> dict[_Key, list[float]]:
    """Latencies in milliseconds of each candidate, in the order taken.

    Args:
        candidates: what to call, by name.
        settings: how often and how long.
        clock: seconds; injected by tests.
        after_turn: hears of every turn: who had it, when it began on the clock, its latencies in milliseconds. What
            it does is not timed, so this is where sensors are read.
        progress: hears of the share that is done, in per cent.

    Raises:
        UsageError: there are no candidates.
    """
    if not candidates:
        raise UsageError("nothing to measure", "name at least one rung")
    deadline = clock() + settings.max_time_s
    _warm_up(candidates, settings, clock)
    samples: dict[_Key, list[float]] = {key: [] for key in candidates}
    order = list(candidates)
    shuffle = random.Random(settings.seed).shuffle
    reported = 0
    while not all(samples.values()) or (clock() < deadline and _share_done(samples, settings) < 1):
        shuffle(order)
        for key in order:
            start_s, before = clock(), len(samples[key])
            _take_turn(candidates[key], samples[key], settings, deadline, clock)
            if len(samples[key]) > before:
                after_turn(key, start_s, samples[key][before:])
        done_pct = int(100 * _share_done(samples, settings))
        if reported < done_pct < 100:
            reported = done_pct
            progress("measure", done_pct, 100)
    progress("measure", 100, 100)
    return samples


def _warm_up(candidates: Mapping[_Key, Callable[[], object]], settings: MeasureSettings, clock: Clock) -> None:
    """Run each candidate untimed. A warm-up that ate all the time would leave nothing to measure: it stops at a quarter
    of it."""
    stop = clock() + settings.max_time_s / 4
    for _ in range(settings.warmup):
        for call in candidates.values():
            call()
        if clock() >= stop:
            return


def _take_turn(
    call: Callable[[], object], samples_ms: list[float], settings: MeasureSettings, deadline: float, clock: Clock
) -> None:
    """One untimed call and a few timed ones; past the deadline only what a candidate without a sample still needs."""
    if clock() < deadline:
        call()
    for _ in range(settings.calls_per_turn):
        start = clock()
        if start >= deadline and samples_ms:
            return
        call()
        samples_ms.append((clock() - start) * 1e3)


def _share_done(samples: Mapping[_Key, list[float]], settings: MeasureSettings) -> float:
    """How near the candidate that lacks most is to enough repetitions and enough time; 1 when all have enough."""
    least = 1.0
    for taken in samples.values():
        least = min(least, len(taken) / settings.min_repetitions)
        if settings.min_time_s > 0:
            least = min(least, sum(taken) / (settings.min_time_s * 1e3))
    return least
