"""What makes a profile's figures less than sure, in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nsn_edge.runtimes.profiling.conditions import Conditions
from nsn_edge.runtimes.profiling.energy import EnergyMethod
from nsn_edge.runtimes.profiling.host import Host
from nsn_edge.runtimes.profiling.measure import MeasureSettings
from nsn_edge.runtimes.profiling.result import RungProfile
from nsn_edge.runtimes.profiling.stats import SAMPLES_FOR_P99, UNSTEADY_CV

_FIXED_CLOCKS = frozenset({"performance", "userspace"})


def warnings_about(
    rungs: Sequence[RungProfile],
    settings: MeasureSettings,
    host: Host,
    engine: Mapping[str, Any],
    conditions: Conditions | None,
    energy: EnergyMethod | None,
) -> Iterator[str]:
    """What a reader of these figures should know before believing them."""
    unsteady = [f"{_name(rung)} ({rung.latency.cv:.0%})" for rung in rungs if not rung.latency.steady]
    if unsteady:
        yield (
            f"unsteady: the coefficient of variation is above {UNSTEADY_CV:.0%} at {', '.join(unsteady)}; "
            "ratios hold better than times. Close other programs and measure again"
        )
    fewest = min(rung.latency.n for rung in rungs)
    if fewest < settings.min_repetitions:
        yield (
            f"stopped after {settings.max_time_s:g} s with {fewest} of {settings.min_repetitions} repetitions; "
            "give it more time with --max-time"
        )
    elif any(rung.latency.p99_is_thin for rung in rungs):
        yield f"p99 of fewer than {SAMPLES_FOR_P99} repetitions is little more than the maximum"
    threads = engine.get("threads")
    if host.usable_cores and isinstance(threads, int) and threads > host.usable_cores:
        yield f"{threads} threads share {host.usable_cores} cores"
    if host.load_1m and host.usable_cores and host.load_1m >= host.usable_cores:
        yield f"other programs ran: the load average was {host.load_1m:g} on {host.usable_cores} cores"
    if host.governor and host.governor not in _FIXED_CLOCKS:
        yield f"the governor {host.governor!r} moves the clock while measuring; 'performance' holds it"
    if conditions is not None:
        yield from _of_conditions(conditions)
    if energy is not None and energy.kind is None:
        yield f"energy is unknown: {energy.method}"
    elif energy is not None:
        lost = [_name(rung) for rung in rungs if rung.energy_mj is None]
        if lost:
            yield (
                f"energy is unknown for {', '.join(lost)}: its sensor did not hold, or told no more than it did of the "
                "idle device. Give it more time with --energy-time"
            )
    yield from _not_faster(rungs)


def _of_conditions(conditions: Conditions) -> Iterator[str]:
    if conditions.throttled:
        yield "the device throttled while it was measured: these are not the times of a cool one"
    if conditions.steady is False:
        heat, latency = conditions.temperature_change_c, conditions.latency_change
        changes = [
            f"temperature {heat:+.1f} °C" if heat is not None else None,
            f"latency {latency:+.1%}" if latency is not None else None,
        ]
        yield (
            f"not steady: from the first third of the measurement to the last {', '.join(c for c in changes if c)}. "
            "--settle 120 heats the device up first; other programs disturb it, too"
        )


def _not_faster(rungs: Sequence[RungProfile]) -> Iterator[str]:
    """A rung that saves FLOPs and no time is worse than the one above it: say so."""
    for lower, upper in itertools.pairwise(rungs):
        if lower.macs < upper.macs and lower.latency.p50_ms >= upper.latency.p50_ms:
            yield f"{_name(lower)} is not faster here than {_name(upper)}, so it has nothing to offer"


def _name(rung: RungProfile) -> str:
    return "dense" if rung.dense else f"rank {rung.rank}"
