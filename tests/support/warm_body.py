"""A device that a rung's work warms: closes the loop around thermal policies."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from nsn_edge.ladder import RankLadder
from nsn_edge.runtimes.policy import PolicyState, RankPolicy
from nsn_edge.runtimes.telemetry import Reading


@dataclass(frozen=True)
class Course:
    """What happened, a value per second."""

    ranks: list[int]
    heats_c: list[float]

    @property
    def switches(self) -> int:
        return sum(a != b for a, b in zip(self.ranks, self.ranks[1:], strict=False))


def course(
    policy: RankPolicy,
    ladder: RankLadder,
    seconds: int = 900,
    *,
    top_c: float = 90.0,
    idle_c: float = 55.0,
    tau_s: float = 60.0,
    limit_c: float = 85.0,
    noise_c: float = 0.25,
) -> Course:
    """From idle, one decision a second, with a sensor that is noisy and rounds to half degrees. The top rung would
    settle at `top_c`, others in proportion to their FLOPs above `idle_c`."""
    draw = random.Random(0)
    heat_c, state, ranks, heats_c = idle_c, PolicyState(), [], []
    for second in range(seconds):
        seen_c = round(2.0 * (heat_c + draw.gauss(0.0, noise_c))) / 2.0
        state = policy.decide(Reading(float(second), temperature_c=seen_c, temperature_limit_c=limit_c), state).state
        assert state.rank is not None
        goal_c = idle_c + (top_c - idle_c) * ladder.flops_fraction(state.rank)
        heat_c = goal_c + (heat_c - goal_c) * math.exp(-1.0 / tau_s)
        ranks.append(state.rank)
        heats_c.append(heat_c)
    return Course(ranks, heats_c)
