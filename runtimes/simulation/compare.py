"""A policy beside every fixed rung and beside an oracle, in one world.

report = compare(lay_out(trace, scenario, costs, seed=1), policy)
report.oracle_fraction          # 0.97: of the quality that no policy can exceed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.policy.base import RankPolicy
from nsn_edge.runtimes.simulation.closed_loop import run_closed_loop
from nsn_edge.runtimes.simulation.fixed import FixedRung
from nsn_edge.runtimes.simulation.oracle import Bound, oracle_bound
from nsn_edge.runtimes.simulation.outcome import Outcome
from nsn_edge.runtimes.simulation.world import World


@dataclass(frozen=True)
class Yardsticks:
    """What policies are compared with in a world; the same for all of them."""

    fixed: dict[int, Outcome]
    """By rank, every rung, lowest first."""
    oracle: Bound
    """Above every policy that keeps the limits."""

    @property
    def best_fixed(self) -> Outcome | None:
        """Of those that keep every limit, the one of the highest quality; None where none keeps them."""
        keeping = [outcome for outcome in self.fixed.values() if not outcome.broken]
        return max(keeping, key=lambda outcome: outcome.quality_per_request or 0.0, default=None)

    def needless_seconds_above(self, outcome: Outcome) -> float:
        """Above the temperature limit in rows in which the most frugal fixed rung, run from the start, is not."""
        coolest = min(self.fixed.values(), key=lambda other: other.answers.spent_j)
        rows = zip(outcome.timeline, coolest.timeline, strict=True)
        return sum(mine.above_limit_s for mine, least in rows if least.above_limit_s == 0.0)


@dataclass(frozen=True)
class Report:
    """A policy and its yardsticks."""

    outcome: Outcome
    """Of the policy."""
    yardsticks: Yardsticks
    """Of its world."""

    @property
    def oracle_fraction(self) -> float | None:
        """The policy's quality per request against the oracle's; None where no request came."""
        best, own = self.yardsticks.oracle.quality_per_request, self.outcome.quality_per_request
        return own / best if own is not None and best > 0.0 else None

    def to_json(self, timeline: bool = True) -> dict[str, Any]:
        """As plain JSON types, kind `scenario`.

        Args:
            timeline: with every row and switch.
        """
        outcome, world = self.outcome, self.outcome.world
        best = self.yardsticks.best_fixed
        return {
            "schema_version": 1,
            "kind": "scenario",
            "trace": {
                "name": world.trace.name,
                "rows": len(world.time_s),
                "duration_s": outcome.duration_s,
            },
            "scenario": world.scenario.to_json(),
            "seed": world.seed,
            "device": {
                "temperature_limit_c": world.limit_c,
                "resistance_c_per_w": world.thermal.resistance_c_per_w,
                "time_constant_s": world.thermal.time_constant_s,
                "thermal_fit": None if world.fit is None else world.fit.to_json(),
                "energy": "modelled" if world.energy_is_modelled else "measured",
            },
            "policy": dict(outcome.policy),
            "rungs": world.costs.to_json(),
            "summary": {
                **outcome.summary(),
                "needless_seconds_above_limit": self.yardsticks.needless_seconds_above(outcome),
                "oracle_quality_per_request": self.yardsticks.oracle.quality_per_request,
                "oracle_fraction": self.oracle_fraction,
                "best_fixed_rank": None if best is None else best.policy["rank"],
                "best_fixed_quality_per_request": None if best is None else best.quality_per_request,
            },
            "fixed": {str(rank): other.summary() for rank, other in self.yardsticks.fixed.items()},
            "switches": [
                {
                    "time_s": switch.time_s,
                    "from_rank": switch.from_rank,
                    "to_rank": switch.to_rank,
                    "reason": switch.reason,
                }
                for switch in outcome.switches
            ]
            if timeline
            else [],
            "timeline": outcome.timeline_json() if timeline else [],
        }


def yardsticks(world: World, progress: Progress = silent) -> Yardsticks:
    """Run every fixed rung, and bound what is possible."""
    fixed = {}
    for done, rank in enumerate(world.costs.ranks, start=1):
        fixed[rank] = run_closed_loop(world, FixedRung(rank))
        progress("fixed rungs", done, len(world.costs.ranks))
    progress("oracle", 0, 1)
    bound = oracle_bound(world)
    progress("oracle", 1, 1)
    return Yardsticks(fixed, bound)


def compare(world: World, policy: RankPolicy, progress: Progress = silent) -> Report:
    """Run a policy, every fixed rung and the oracle.

    Raises:
        RankError: the policy decides for a rank that the world has no costs of.
    """
    return Report(run_closed_loop(world, policy, progress), yardsticks(world, progress))
