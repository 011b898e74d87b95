"""A deadline: the rungs that are predicted to answer in time, of which the best runs.

    P( waiting + slowdown x service > deadline_ms )  <=  1 - probability

Service is normal: its median and 99th percentile are the profile's, times the device's slowdown, which all rungs share
and which has a spread of its own (`slowdown.py`). Waiting follows from the arrivals that the session counts: a request
waits with the probability that the device is busy, and then for an exponential time whose mean is Kingman's, so that
the sum is an exponentially modified Gaussian. A rung that cannot keep up with the arrivals is never in time. Where more
requests wait now than that explains, all of them are to be answered first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from nsn_edge.runtimes.policy.base import PolicyState
from nsn_edge.runtimes.policy.checks import in_range, share
from nsn_edge.runtimes.policy.costs import RungCost, RungCosts
from nsn_edge.runtimes.policy.limiter import Limit, Memory, Rungs, g
from nsn_edge.runtimes.policy.slowdown import Slowdown
from nsn_edge.runtimes.telemetry.base import Reading, Work

_ROOT_HALF = math.sqrt(0.5)
_SURE = 25.0  # beyond so many deviations and mean waits nobody is late: less than 1 in 10^10


@dataclass(frozen=True)
class Deadline:
    """The settings of a `[deadline]` table."""

    deadline_ms: float
    """From a request's arrival to its answer."""
    probability: float = 0.99
    """How many of the answers are to be in time."""
    band: float = 0.1
    """A rung that was too slow must meet a deadline shorter by this share before it is allowed again."""
    arrivals_cv: float = 1.0
    """How irregular arrivals are, as a coefficient of variation: 1 at random, 0 the steady beat of a camera."""

    def __post_init__(self) -> None:
        seconds = 0.0 < self.deadline_ms < 0.1
        hint = f"seconds? write {self.deadline_ms * 1000:g}" if seconds else "milliseconds"
        in_range(self, "deadline_ms", 0.1, 3.6e6, hint)
        share(self, "probability", 0.5, 0.9999)
        share(self, "band", 0.0, 0.9)
        in_range(self, "arrivals_cv", 0.0, 10.0)


class DeadlineMemory(NamedTuple):
    """What the limiter remembers."""

    slowdown: Slowdown = Slowdown()
    """Of the device against its profile."""
    in_time: tuple[int, ...] | None = None
    """The ranks that were in time at the last reading; None before the first."""


class DeadlineLimiter:
    """`Deadline` for the rungs of one ladder."""

    name = "deadline"

    def __init__(self, settings: Deadline, rungs: Rungs, costs: RungCosts) -> None:
        self._settings = settings
        self._rungs = rungs
        self._costs = costs

    def limit(self, reading: Reading, state: PolicyState) -> tuple[Limit | None, Memory]:
        """The rungs that are in time; the fastest where none is. Without `reading.work` the profile alone speaks."""
        memory = state.deadline or DeadlineMemory()
        work = reading.work or Work()
        slowdown = memory.slowdown.observed(work.answers, self._costs)
        deadline_ms, allowed = self._settings.deadline_ms, 1.0 - self._settings.probability
        late = {cost.rank: self.late(cost, slowdown, work, deadline_ms) for cost in self._costs.rungs}
        again_ms = deadline_ms * (1.0 - self._settings.band)
        in_time = tuple(
            cost.rank
            for cost in self._costs.rungs
            if late[cost.rank] <= allowed
            and (
                memory.in_time is None
                or cost.rank in memory.in_time
                or self.late(cost, slowdown, work, again_ms) <= allowed
            )
        )
        remembered = {"deadline": DeadlineMemory(slowdown, in_time)}
        if in_time == self._rungs.ranks:
            return None, remembered
        fastest = self._rungs.ranks[0]
        if not in_time:
            fastest = min(self._rungs.ranks, key=lambda rank: (late[rank], self._costs.at(rank).p99_ms))

        def why() -> str:
            now = f"deadline {g(deadline_ms)} ms, slowdown {slowdown.mean:.2f} ± {slowdown.deviation:.2f}{_busy(work)}"
            if not in_time:
                return f"{now}: no rung is in time, rank {fastest} is the fastest"
            first = next(rank for rank in self._rungs.best_first if rank not in in_time)
            room = f"{g(100 * self._settings.band)} % of room"
            needed = f", and was late: it needs {room}" if late[first] <= allowed else ""
            return f"{now}: rank {first} would be late for {_percent(late[first])}{needed}"

        return Limit(in_time or (fastest,), why), remembered

    def late(self, cost: RungCost, slowdown: Slowdown, work: Work, deadline_ms: float) -> float:
        """The share of requests that a rung would answer too late, 0..1; 1 where they come faster than answers."""
        service_ms = slowdown.mean * cost.p50_ms
        own = cost.spread
        rate = work.arrivals_per_s or 0.0
        load = rate * service_ms / 1000.0 if rate > 0.0 else 0.0
        if not load < 1.0:
            return 1.0
        spread_ms = math.hypot(slowdown.deviation * cost.p50_ms, own * service_ms)
        # Of those that wait at all: Kingman's mean wait over the share that does.
        wait_ms = (self._settings.arrivals_cv**2 + own**2) / 2.0 * service_ms / (1.0 - load)
        slack_ms = deadline_ms - service_ms
        if slack_ms > _SURE * (spread_ms + wait_ms):
            late = 0.0
        else:
            late = (1.0 - load) * _beyond(slack_ms / spread_ms)
            late += load * _exponentially_modified(slack_ms, spread_ms, wait_ms)
        waiting = work.waiting or 0
        if waiting > 0 and waiting > self._usually_waiting(cost, work):
            ahead_ms = waiting * service_ms
            late = max(late, _beyond((deadline_ms - service_ms - ahead_ms) / (spread_ms * math.sqrt(1.0 + waiting))))
        return late

    def _usually_waiting(self, cost: RungCost, work: Work) -> float:
        """How long a queue the arrivals alone explain, with the stated probability, on a device as fast as in its
        profile: a slower one must not explain away the queue that it made."""
        load = min(max(work.arrivals_per_s or 0.0, 0.0) * cost.p50_ms / 1000.0, 0.99)
        if load <= 1.0 - self._settings.probability:
            return 0.0
        mean = (self._settings.arrivals_cv**2 + cost.spread**2) / 2.0 / (1.0 - load)
        return mean * math.log(load / (1.0 - self._settings.probability))


def _beyond(z: float) -> float:
    """The tail of the standard normal distribution."""
    return 0.5 * math.erfc(z * _ROOT_HALF)


def _exponentially_modified(x: float, deviation: float, mean: float) -> float:
    """The tail of a centred normal plus an exponential. Where the exponential hardly matters, that of a normal with
    both variances: the exact formula would multiply a huge number by a tiny one."""
    if mean < deviation / 5.0:
        return _beyond((x - mean) / math.hypot(deviation, mean))
    z = x / deviation
    grown = math.exp(min(deviation * deviation / (2.0 * mean * mean) - x / mean, 700.0))
    return min(_beyond(z) + grown * _beyond(deviation / mean - z), 1.0)


def _busy(work: Work) -> str:
    words = f", {g(work.arrivals_per_s)} requests/s" if work.arrivals_per_s else ""
    return words + (f", {work.waiting} waiting" if work.waiting else "")


def _percent(share: float) -> str:
    return f"{g(100 * share)} %" if share >= 0.0005 else "less than 0.1 %"
