"""A deadline: the rungs that are predicted to answer in time, of which the best runs.

    profile (p50, p99) x slowdown (mean, deviation) + waiting in the queue  <=  deadline_ms,  with a probability

The service time of a request at a rung is `ratio x own`: the device's slowdown, which all rungs share (`slowdown.py`),
and the rung's own spread, from its profile. Waiting is the larger of two: what the requests in the queue now will take,
and what Kingman's formula says of the arrivals that the session counts (its tail taken as exponential). A rung that
cannot keep up with them is never in time.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace

from nsn_edge.runtimes.policy.base import PolicyState
from nsn_edge.runtimes.policy.checks import in_range, share
from nsn_edge.runtimes.policy.costs import RungCost, RungCosts
from nsn_edge.runtimes.policy.limiter import Limit, Rungs, g
from nsn_edge.runtimes.policy.slowdown import Slowdown, spread
from nsn_edge.runtimes.telemetry.base import Reading, Work


@dataclass(frozen=True)
class Deadline:
    """The settings of a `[deadline]` table."""

    deadline_ms: float
    """From a request's arrival to its answer."""
    probability: float = 0.99
    """How many of the answers are to be in time."""
    band: float = 0.1
    """A rung that was too slow must be faster than the deadline by this share before it is allowed again."""
    arrivals_cv: float = 1.0
    """How irregular arrivals are, as a coefficient of variation: 1 at random, 0 the steady beat of a camera."""

    def __post_init__(self) -> None:
        seconds = 0.0 < self.deadline_ms < 0.1
        hint = f"seconds? write {self.deadline_ms * 1000:g}" if seconds else "milliseconds"
        in_range(self, "deadline_ms", 0.1, 3.6e6, hint)
        share(self, "probability", 0.5, 0.9999)
        share(self, "band", 0.0, 0.9)
        in_range(self, "arrivals_cv", 0.0, 10.0)


@dataclass(frozen=True)
class DeadlineMemory:
    """What the limiter remembers."""

    slowdown: Slowdown = field(default_factory=Slowdown)
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
        self._z = statistics.NormalDist().inv_cdf(settings.probability)

    def limit(self, reading: Reading, state: PolicyState) -> tuple[Limit | None, PolicyState]:
        """The rungs that are in time; the fastest where none is. Without `reading.work` the profile alone speaks."""
        memory = state.deadline or DeadlineMemory()
        work = reading.work or Work()
        slowdown = memory.slowdown.observed(work.answers, self._costs)
        predicted = {cost.rank: self.predicted_ms(cost, slowdown, work) for cost in self._costs.rungs}
        deadline_ms = self._settings.deadline_ms
        again_ms = deadline_ms * (1.0 - self._settings.band)
        in_time = tuple(
            rank
            for rank, needed_ms in predicted.items()
            if needed_ms <= (deadline_ms if memory.in_time is None or rank in memory.in_time else again_ms)
        )
        state = replace(state, deadline=DeadlineMemory(slowdown, in_time))
        if in_time == self._rungs.ranks:
            return None, state
        now = f"deadline {g(deadline_ms)} ms, slowdown {slowdown.mean:.2f} ± {slowdown.deviation:.2f}{_busy(work)}"
        if not in_time:
            fastest = min(self._rungs.ranks, key=lambda rank: (predicted[rank], self._costs.at(rank).p99_ms))
            return Limit((fastest,), f"{now}: no rung is in time, rank {fastest} is the fastest"), state
        late = next(rank for rank in self._rungs.best_first if rank not in in_time)
        return Limit(in_time, f"{now}: rank {late} would take {_ms(predicted[late])}"), state

    def predicted_ms(self, cost: RungCost, slowdown: Slowdown, work: Work) -> float:
        """The latency that the stated share of requests keeps at a rung, waiting included; infinite where arrivals
        come faster than answers."""
        service_ms = max(slowdown.mean, 0.0) * cost.p50_ms
        own = spread(cost)
        waiting = max(work.waiting or 0, 0)
        steady_ms = self._steady_wait_ms(service_ms, own, max(work.arrivals_per_s or 0.0, 0.0))
        wait_ms = max(steady_ms, waiting * service_ms)
        shared_ms = slowdown.deviation * cost.p50_ms * (1 + waiting)
        return wait_ms + service_ms + self._z * math.hypot(shared_ms, service_ms * own)

    def _steady_wait_ms(self, service_ms: float, own: float, arrivals_per_s: float) -> float:
        """Kingman's mean wait, stretched to the wanted percentile by an exponential tail."""
        load = arrivals_per_s * service_ms / 1000.0
        if not load < 1.0:
            return math.inf
        if load <= 1.0 - self._settings.probability:
            return 0.0
        mean_ms = load / (1.0 - load) * (self._settings.arrivals_cv**2 + own**2) / 2.0 * service_ms
        return mean_ms / load * math.log(load / (1.0 - self._settings.probability))


def _busy(work: Work) -> str:
    words = "" if work.arrivals_per_s is None else f", {g(work.arrivals_per_s)} requests/s"
    return words + (f", {work.waiting} waiting" if work.waiting else "")


def _ms(value: float) -> str:
    return f"{g(value)} ms" if math.isfinite(value) else "ever longer"
