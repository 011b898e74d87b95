"""A policy in sentences: what each of its tables does, and with which rungs of a bundle.

Made of the settings alone, so what is said is what is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nsn_edge.runtimes.policy.limiter import Rungs, at_most, g
from nsn_edge.runtimes.policy.limits import RungLimits


@dataclass(frozen=True)
class Sentence:
    """What one table does."""

    table: str
    """Its name in the policy file; empty for what stands above all tables."""
    text: str
    """For people."""
    rank: int | None = None
    """The rung that a cap comes to in the bundle; None without a bundle, and where it depends on the moment."""


def explain(limits: RungLimits, rungs: Rungs | None = None) -> tuple[Sentence, ...]:
    """Every table of a policy, in the order in which it is asked."""

    def cap(table: str, text: str, max_flops: float) -> Sentence:
        rank = None if rungs is None else rungs.within(max_flops)[-1]
        return Sentence(table, f"{text}: {at_most(max_flops)}", rank)

    found = [cap("", "while what a limit needs is unknown", limits.unknown_max_flops)]
    found += [
        cap("battery", f"from {g(step.enter_pct)} % down, until {g(step.leave_pct)} %, off mains", step.max_flops)
        for step in limits.battery
    ]
    found += [
        cap("temperature", f"from {g(step.enter_c)} °C up, until {g(step.leave_c)} °C", step.max_flops)
        for step in limits.temperature
    ]
    if throttling := limits.throttling:
        text = f"while the device throttles, or from {g(throttling.enter_margin_c)} °C below its limit up"
        found.append(cap("throttling", f"{text}, until {g(throttling.leave_margin_c)} °C below", throttling.max_flops))
    if step_wise := limits.step_wise:
        found.append(
            Sentence(
                "step_wise",
                f"one rung down where it is within {g(step_wise.enter_margin_c)} °C of {_limit(step_wise.limit_c)} and "
                f"rising, one up where it is {g(step_wise.leave_margin_c)} °C below and falling; "
                f"a step in {g(step_wise.step_s)} s",
            )
        )
    if pi := limits.pi:
        found.append(Sentence("pi", f"keeps {g(pi.margin_c)} °C below {_limit(pi.limit_c)}"))
    if energy := limits.energy:
        span = f"for {g(energy.last_h)} h" if energy.last_h is not None else f"until {energy.until}"
        found.append(Sentence("energy", f"the battery lasts {span}, down to {g(energy.reserve_pct)} %"))
    if deadline := limits.deadline:
        found.append(
            Sentence("deadline", f"{100 * deadline.probability:g} % of the answers within {g(deadline.deadline_ms)} ms")
        )
    if difficulty := limits.difficulty:
        asked = [str(rank) for rank in difficulty.ranks] or [f"{100 * share:g} %" for share in difficulty.flops]
        text = f"asks the rungs {', '.join(asked)} one after another, by {difficulty.measure}"
        found.append(Sentence("difficulty", f"{text}; the limits above set the highest"))
    found.append(Sentence("", f"down at once, up by one rung after {g(limits.min_dwell_s)} s of room"))
    return tuple(found)


def notes(limits: RungLimits, rungs: Rungs | None = None) -> tuple[str, ...]:
    """What a person should know before shipping it: what is not known yet, and what it comes to."""
    found: list[str] = []
    costs = None if rungs is None else rungs.costs
    if limits.needs_costs and costs is None:
        tables = " and ".join(f"[{table}]" for table in limits.needs_costs)
        verb = "plan" if len(limits.needs_costs) > 1 else "plans"
        found.append(f"{tables} {verb} with what the rungs cost on the device: nsn-edge profile BUNDLE, then --profile")
    if limits.energy is not None:
        found.append("[energy] on a device that tells neither mains nor a battery the safe rung runs")
    if limits.energy is not None and limits.energy.idle_mw is None:
        found.append("[energy] idle_mw is not given: without a power sensor the safe rung runs off mains")
    for table in ("step_wise", "pi"):
        settings: Any = getattr(limits, table)
        if settings is not None and settings.limit_c is None:
            found.append(f"[{table}] limit_c is not given: on a device that names no limit the safe rung runs")
    if costs is not None and not costs.knows_quality:
        found.append("the bundle has no quality for every rung, so the higher rung counts as the better one")
    if costs is not None and limits.pi is not None and not costs.knows_energy:
        found.append("the profile has no energy for every rung, so [pi] goes by FLOPs")
    if rungs is not None and limits.difficulty is None and len(rungs.ranks) == 1:
        found.append("the bundle has one rung, so nothing can be switched")
    return tuple(found)


def _limit(limit_c: float | None) -> str:
    return "the device's limit" if limit_c is None else f"the lower of the device's limit and {g(limit_c)} °C"
