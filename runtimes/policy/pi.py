"""Keep a temperature: a PI controller on the distance to a target below the device's limit.

    e = target - temperature                 allowed share of the top rung's power
    e < 0   k_po e  --.
                      +-- sustainable + i --> share --> the rungs that draw no more
    e > 0   k_pu e  --'

In the way of Linux's power_allocator: the gain above the target is half of the one below it (k_po = k_pu / 2), and the
integral takes an error of at most `integral_cutoff_c` at a time. Against windup the integral stands still while every
rung is allowed anyway, stays within what the output can be, and a gap in time counts as `_LONGEST_STEP_S` at most.

A rung's share is its energy per call where a profile knows it, else its FLOPs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

from nsn_edge.runtimes.policy.base import PolicyState
from nsn_edge.runtimes.policy.checks import celsius, in_range, share
from nsn_edge.runtimes.policy.limiter import Limit, Memory, Rungs, g
from nsn_edge.runtimes.policy.step_wise import lowest_limit_c
from nsn_edge.runtimes.telemetry.base import Reading

_LONGEST_STEP_S = 5.0


@dataclass(frozen=True)
class Pi:
    """The settings of a `[pi]` table."""

    margin_c: float = 5.0
    """The target lies this many degrees below the limit."""
    sustainable: float = 0.5
    """The share of the top rung's power that the device can be expected to shed for ever; the integral finds the
    rest."""
    gain_per_c: float = 0.2
    """k_po: how much of the share each degree above the target takes. Each degree below gives twice as much."""
    integral_per_c_s: float = 0.0005
    """k_i: how much of the share a degree of error moves in a second."""
    integral_cutoff_c: float = 5.0
    """The integral sees no larger error than this."""
    band: float = 0.05
    """A rung that was forbidden needs so much more of a share than its own."""
    limit_c: float | None = None
    """The limit where the device names none; where it does, the lower of the two."""

    def __post_init__(self) -> None:
        in_range(self, "margin_c", 0.0, 100.0)
        share(self, "sustainable", 0.0, 1.0)
        in_range(self, "gain_per_c", 0.001, 10.0)
        in_range(self, "integral_per_c_s", 0.0, 1.0)
        in_range(self, "integral_cutoff_c", 0.0, 100.0)
        share(self, "band", 0.0, 0.5)
        if self.limit_c is not None:
            celsius(self, "limit_c")


class PiMemory(NamedTuple):
    """What the limiter remembers."""

    integral: float = 0.0
    """As a share of the top rung's power."""
    time_s: float | None = None
    """Of the last known temperature."""
    cap: int | None = None
    """The highest rank that was allowed."""


class PiLimiter:
    """`Pi` for the rungs of one ladder."""

    name = "pi"

    def __init__(self, settings: Pi, rungs: Rungs) -> None:
        self._settings = settings
        self._rungs = rungs
        self._shares = power_shares(rungs)

    def limit(self, reading: Reading, state: PolicyState) -> tuple[Limit | None, Memory]:
        """The rungs within the share of power that the temperature leaves; the safe ones while it is blind."""
        settings, rungs = self._settings, self._rungs
        heat_c, limit_c = reading.temperature_c, lowest_limit_c(reading, settings.limit_c)
        if heat_c is None:
            return rungs.safe("the temperature is unknown"), {}
        if limit_c is None:
            return rungs.safe("the device names no temperature limit, nor does [pi] limit_c"), {}
        memory = state.pi or PiMemory()
        error_c = limit_c - settings.margin_c - heat_c
        gain = settings.gain_per_c * (2.0 if error_c > 0.0 else 1.0)
        integral = self._integral(memory, error_c, gain, reading.time_s)
        output = settings.sustainable + integral + gain * error_c
        before = memory.cap if memory.cap in rungs.ranks else rungs.ranks[-1]
        beyond = heat_c >= limit_c or bool(reading.throttling)
        cap = rungs.ranks[0] if beyond else self._highest_within(output, before)

        def why() -> str:
            at, share_now = f"temperature {g(heat_c)} °C", 100 * min(max(output, 0.0), 1.0)
            if reading.throttling:
                at = "the device throttles itself"
            elif beyond:
                at += f" is at or above {g(limit_c)} °C"
            else:
                at += f", target {g(limit_c - settings.margin_c)} °C: {g(share_now)} % of the top rung's power"
            return f"{at}, rank {cap} at most"

        found = None if cap == rungs.ranks[-1] else Limit(rungs.up_to(cap), why)
        return found, {"pi": PiMemory(integral, reading.time_s, cap)}

    def _integral(self, memory: PiMemory, error_c: float, gain: float, time_s: float) -> float:
        settings = self._settings
        step_s = 0.0 if memory.time_s is None else min(max(time_s - memory.time_s, 0.0), _LONGEST_STEP_S)
        output = settings.sustainable + memory.integral + gain * error_c
        if error_c > 0.0 and output >= 1.0 + settings.band:
            return memory.integral
        cutoff_c = settings.integral_cutoff_c
        moved = memory.integral + settings.integral_per_c_s * min(max(error_c, -cutoff_c), cutoff_c) * step_s
        return min(max(moved, -settings.sustainable), 1.0 + settings.band - settings.sustainable)

    def _highest_within(self, output: float, before: int) -> int:
        """The highest rung that draws no more than the output; one above `before` needs the band, too."""
        within = [
            rank
            for rank, own in zip(self._rungs.ranks, self._shares, strict=True)
            if own + (self._settings.band if rank > before else 0.0) <= output + 1e-9
        ]
        return max(within, default=self._rungs.ranks[0])


def power_shares(rungs: Rungs) -> tuple[float, ...]:
    """What each rung draws at a given rate of requests, as a share of the most that any does; never falls with the
    rank, so that a cap is a cap."""
    if rungs.costs is not None and rungs.costs.knows_energy:
        draws = [rung.energy_mj or 0.0 for rung in rungs.costs.rungs]
    else:
        draws = [rungs.ladder.flops_fraction(rank) for rank in rungs.ranks]
    rising = list(itertools.accumulate(draws, max))
    return tuple(draw / rising[-1] if rising[-1] > 0.0 else 1.0 for draw in rising)
