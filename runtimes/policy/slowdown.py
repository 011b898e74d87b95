"""How much slower than in its profile the device is now: a Kalman filter, as in ALERT (Wan et al., USENIX ATC 2020).

    ratio = measured latency / profiled median of that rung        one number for all rungs: heat, clocks, neighbours

Every answer tells something about every rung, so no rung has to be tried to know what it would take now. In ALERT
the filter's own variance tells how much the world moves, as its process noise follows the innovations:

    Q  <- max(Q0, a Q + (1 - a) (K y)^2)         P = var + Q         K = P / (P + R)
    mean <- mean + K y                           var <- (1 - K) P    y = ratio - mean

What differs: the observation is the median of the answers since the last reading, as one late answer of many is the
profile's own tail and no slowdown; R comes from that tail; and a median of three or more answers that lies beyond three
standard deviations is believed at once, as a machine that got a busy neighbour is slow from one moment to the next.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from nsn_edge.runtimes.policy.costs import RungCosts
from nsn_edge.runtimes.telemetry.base import Answered

_FORGET = 0.3  # a: ALERT's
_PROCESS = 1e-4  # Q0: the world moves by a percent between two readings
_NOISE = 1e-4  # the least R
_ROBUST = 3  # answers whose median is no accident
_JUMP = 9.0  # squared standard deviations
_NEWEST = 16  # answers that are looked at: more would say little more, and they are most of a decision
_MOST = 100.0  # a ratio beyond says that a clock was wrong


class Slowdown(NamedTuple):
    """An estimate of the ratio. The default is that of a device that is as fast as in its profile, to 10 %."""

    mean: float = 1.0
    """1: as in the profile; 2: half as fast."""
    variance: float = 0.01
    """Of the estimate."""
    process: float = _PROCESS
    """Q: how much the ratio moves from one reading to the next, as a variance."""

    @property
    def deviation(self) -> float:
        """The standard deviation of the ratio at the next reading."""
        return math.sqrt(self.variance + self.process)

    def observed(self, answers: Sequence[Answered], costs: RungCosts) -> Slowdown:
        """The estimate after some answers, of which the newest count. Those of unknown rungs, or with impossible
        latencies, tell nothing."""
        known = [
            (latency_ms / rung.p50_ms, rung.spread)
            for rank, latency_ms in answers[-_NEWEST:]
            if (rung := costs.by_rank.get(rank)) and rung.p50_ms / _MOST <= latency_ms <= rung.p50_ms * _MOST
        ]
        if not known:
            return self
        ratio = statistics.median([ratio for ratio, _ in known])
        own = sum([own for _, own in known]) / len(known)
        # The variance of a median of n is pi / 2 times that of their mean.
        robust = len(known) >= _ROBUST
        noise = max(own * own * (math.pi / 2 if robust else 1.0) / len(known), _NOISE)
        prior = self.variance + self.process
        surprise = (ratio - self.mean) ** 2
        if robust and surprise > _JUMP * (prior + noise):
            prior = surprise
        gain = prior / (prior + noise)
        moved = gain * (ratio - self.mean)
        process = max(_PROCESS, _FORGET * self.process + (1.0 - _FORGET) * moved * moved)
        return Slowdown(self.mean + moved, (1.0 - gain) * prior, process)
