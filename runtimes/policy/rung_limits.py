"""A whole policy: every limiter is asked, the strictest wins, and the rank moves down at once and up slowly.

    reading --> thresholds --.
            --> step_wise  --|
            --> pi         --+--> the rungs that all allow --> the best of them --> Ramp --> rank
            --> energy     --|
            --> deadline   --'

Heat and charge come first: where a deadline can only be kept at a rung that they forbid, it is missed, and the reason
says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nsn_edge.ladder import RankLadder
from nsn_edge.runtimes.policy.base import Decision, PolicyState
from nsn_edge.runtimes.policy.checks import LimitError
from nsn_edge.runtimes.policy.costs import RungCosts
from nsn_edge.runtimes.policy.deadline import DeadlineLimiter
from nsn_edge.runtimes.policy.energy import EnergyLimiter
from nsn_edge.runtimes.policy.limiter import Limit, Limiter, Rungs, g
from nsn_edge.runtimes.policy.limits import RungLimits
from nsn_edge.runtimes.policy.pi import PiLimiter
from nsn_edge.runtimes.policy.ramp import Ramp
from nsn_edge.runtimes.policy.step_wise import StepWiseLimiter
from nsn_edge.runtimes.policy.thresholds import Thresholds
from nsn_edge.runtimes.telemetry.base import Reading


class RungPolicy:
    """`RungLimits` for the rungs of one ladder."""

    def __init__(self, limits: RungLimits, ladder: RankLadder, costs: RungCosts | None = None) -> None:
        """
        Args:
            limits: the settings.
            ladder: to choose rungs from.
            costs: of its rungs on this device; only `deadline` and `energy` cannot do without.

        Raises:
            RankError: the ladder has no rungs, or the costs are of others.
            PolicyError: the policy needs costs that were not given.
        """
        self._limits = limits
        rungs = Rungs(ladder, costs, limits.unknown_max_flops)
        self._rungs = rungs
        self._ramp = Ramp(rungs, limits.min_dwell_s)
        self._limiters = _limiters(limits, rungs)

    def to_json(self) -> Mapping[str, Any]:
        """The limits as plain JSON types."""
        return self._limits.to_json()

    def decide(self, reading: Reading, state: PolicyState) -> Decision:
        """The rung for this moment: never outside the ladder, never one that a limiter forbids now, except for a
        deadline that cannot be kept within the other limits.

        Args:
            reading: `time_s` may stand still or jump: then a rise waits, at the longest one dwell more.
            state: the one that the last decision returned; `PolicyState()` at the start.
        """
        if reading.age_s > self._limits.max_age_s:
            reading = Reading(reading.time_s, wall_s=reading.wall_s, age_s=reading.age_s, work=reading.work)
        found: list[tuple[str, Limit]] = []
        remembered: dict[str, Any] = {}
        for limiter in self._limiters:
            limit, memory = limiter.limit(reading, state)
            remembered.update(memory)
            if limit is not None:
                found.append((limiter.name, limit))
        allowed, name = self._strictest(found, reading)
        return self._ramp.move(allowed, name, reading.time_s, state, remembered)

    def _strictest(self, found: list[tuple[str, Limit]], reading: Reading) -> tuple[Limit, str]:
        """What all allow, in the words of the one that allows least."""
        if not found:
            return Limit(self._rungs.ranks, lambda: f"no limit applies ({_known(reading)})"), ""
        ranks, missed = self._rungs.ranks, ""
        for name, limit in found:
            both = ranks if ranks == limit.ranks else tuple(rank for rank in ranks if rank in limit.ranks)
            if not both:  # what comes later yields
                missed = missed or name
                ranks = ranks[:1]
            else:
                ranks = both
        place = self._rungs.place
        name, strictest = max(found, key=lambda item: min(map(place.__getitem__, item[1].ranks)))
        if missed:
            return Limit(ranks, lambda: f"{strictest.why()}; [{missed}] wants rungs that others forbid"), name
        return Limit(ranks, strictest.why), name


def _limiters(limits: RungLimits, rungs: Rungs) -> tuple[Limiter, ...]:
    """Those whose tables there are; what protects the device comes before what it promises."""
    found: list[Limiter] = []
    if limits.battery or limits.temperature or limits.throttling:
        found.append(Thresholds(limits, rungs))
    if limits.step_wise is not None:
        found.append(StepWiseLimiter(limits.step_wise, rungs))
    if limits.pi is not None:
        found.append(PiLimiter(limits.pi, rungs))
    if limits.energy is not None:
        found.append(EnergyLimiter(limits.energy, rungs, _needed_costs("energy", rungs)))
    if limits.deadline is not None:
        found.append(DeadlineLimiter(limits.deadline, rungs, _needed_costs("deadline", rungs)))
    return tuple(found)


def _needed_costs(table: str, rungs: Rungs) -> RungCosts:
    """The costs of rungs that a table cannot do without.

    Raises:
        LimitError: there are none.
    """
    if rungs.costs is None:
        raise LimitError(
            f"what each rung costs on this device is unknown, and [{table}] plans with it",
            "nsn-edge profile BUNDLE -o profile.json, then --profile profile.json",
            table=table,
        )
    return rungs.costs


def _known(reading: Reading) -> str:
    """The reading in a few words."""
    words = []
    if reading.on_mains:
        words.append("on mains")
    if reading.battery_pct is not None:
        words.append(f"battery {g(reading.battery_pct)} %")
    if reading.temperature_c is not None:
        words.append(f"{g(reading.temperature_c)} °C")
    return ", ".join(words) or "no throttling"
