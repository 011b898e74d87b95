"""One rung at a time by the device's own trip point, as Linux's step_wise governor does.

            leave            enter        the device's limit
    --------|----------------|------------|--------->  temperature
    falling:    hold          rising:      the lowest rung,
    one up      what is       one down     at once

One rung stricter only where it is hot AND gets hotter, one looser only where it is cool AND gets cooler. No temperature
needs to be known beforehand: 99 and 112 degrees both exist as limits.

Linux's governor would wait for ever at a temperature that neither rises nor falls, as that of a rounding sensor may:
here a device that has been cool for `settle_s` counts as one that gets cooler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nsn_edge.runtimes.policy.base import PolicyState
from nsn_edge.runtimes.policy.checks import LimitError, celsius, in_range
from nsn_edge.runtimes.policy.limiter import Limit, Memory, Rungs, g
from nsn_edge.runtimes.telemetry.base import Reading

_TREND_S = 5.0  # the time constant of the temperature that a trend is judged against
_TREND_C = 0.1  # less than this is no trend


@dataclass(frozen=True)
class StepWise:
    """The settings of a `[step_wise]` table."""

    enter_margin_c: float = 5.0
    """It is hot at this many degrees below the limit, or fewer."""
    leave_margin_c: float = 10.0
    """It is cool at this many degrees below the limit, or more."""
    step_s: float = 5.0
    """Between two steps, so that one can show its effect before the next."""
    settle_s: float = 30.0
    """After this long in the cool, without a step, a steady temperature counts as falling."""
    limit_c: float | None = None
    """The limit where the device names none; where it does, the lower of the two."""

    def __post_init__(self) -> None:
        in_range(self, "enter_margin_c", 0.0, 100.0)
        in_range(self, "leave_margin_c", 0.0, 100.0)
        if self.leave_margin_c <= self.enter_margin_c:
            raise LimitError(
                f"the thresholds cross: leave_margin_c {self.leave_margin_c:g} is not above "
                f"enter_margin_c {self.enter_margin_c:g}",
                "it is cool farther below the limit than it is hot",
                key="leave_margin_c",
            )
        in_range(self, "step_s", 0.0, 3600.0)
        in_range(self, "settle_s", 0.0, 86400.0)
        if self.limit_c is not None:
            celsius(self, "limit_c")


class StepWiseMemory(NamedTuple):
    """What the limiter remembers."""

    cap: int | None = None
    """The highest rank that it allows."""
    smooth_c: float | None = None
    """The temperature of the last seconds."""
    time_s: float = 0.0
    """Of the last known temperature."""
    stepped_s: float | None = None
    """When it moved last."""
    cool_since_s: float | None = None
    """Since when it has been cool; None while it is not."""


class StepWiseLimiter:
    """`StepWise` for the rungs of one ladder."""

    name = "step_wise"

    def __init__(self, settings: StepWise, rungs: Rungs) -> None:
        self._settings = settings
        self._rungs = rungs

    def limit(self, reading: Reading, state: PolicyState) -> tuple[Limit | None, Memory]:
        """The rungs up to the own cap, which moves by one rung; the safe ones while it is blind."""
        heat_c, limit_c = reading.temperature_c, lowest_limit_c(reading, self._settings.limit_c)
        if heat_c is None:
            return self._rungs.safe("the temperature is unknown"), {}
        if limit_c is None:
            return self._rungs.safe("the device names no temperature limit, nor does [step_wise] limit_c"), {}
        before = state.step_wise or StepWiseMemory()
        time_s, cool_since_s = reading.time_s, before.cool_since_s
        if heat_c > limit_c - self._settings.leave_margin_c or reading.throttling:
            cool_since_s = None
        elif cool_since_s is None or cool_since_s > time_s:
            cool_since_s = time_s
        cap, what = self._stepped(reading, state.rank, before, heat_c, limit_c, cool_since_s)
        memory = StepWiseMemory(
            cap=cap,
            smooth_c=_smoothed(before, time_s, heat_c),
            time_s=time_s,
            stepped_s=before.stepped_s if cap == self._cap(before) else time_s,
            cool_since_s=cool_since_s,
        )
        if cap == self._rungs.ranks[-1]:
            return None, {"step_wise": memory}
        return Limit(self._rungs.up_to(cap), lambda: f"{what()}: rank {cap} at most"), {"step_wise": memory}

    def _stepped(
        self,
        reading: Reading,
        running: int | None,
        memory: StepWiseMemory,
        heat_c: float,
        limit_c: float,
        cool_since_s: float | None,
    ) -> tuple[int, Callable[[], str]]:
        """The new cap, and why."""
        settings, rungs, cap = self._settings, self._rungs, self._cap(memory)

        def said(how: str) -> Callable[[], str]:
            return lambda: f"temperature {g(heat_c)} °C is {how}, limit {g(limit_c)} °C"

        if heat_c >= limit_c:
            return rungs.ranks[0], lambda: f"temperature {g(heat_c)} °C is at or above the limit of {g(limit_c)} °C"
        before_c, cool = memory.smooth_c, cool_since_s is not None
        rising = before_c is None or heat_c - before_c > _TREND_C
        falling = before_c is not None and before_c - heat_c > _TREND_C
        since_s = None if memory.stepped_s is None else reading.time_s - memory.stepped_s
        may_step = since_s is None or not 0.0 <= since_s < settings.step_s
        hot = heat_c >= limit_c - settings.enter_margin_c
        if may_step and (reading.throttling or (hot and rising)):
            lower = min(cap, running) if running in rungs.ranks and running is not None else cap
            throttles = f"the device throttles itself, limit {g(limit_c)} °C" if reading.throttling else ""
            return rungs.below(lower), (lambda: throttles) if throttles else said("hot and rising")
        settled = _lasted(cool_since_s, reading.time_s, settings.settle_s) and (
            since_s is None or not 0.0 <= since_s < settings.settle_s
        )
        if may_step and cool and (falling or settled):
            return rungs.above(cap), said("cool and falling" if falling else "cool and steady")
        return cap, said(f"{'hot' if hot else 'cool' if cool else 'between'} and the cap holds")

    def _cap(self, memory: StepWiseMemory) -> int:
        """The cap so far; a state of another ladder starts afresh."""
        return memory.cap if memory.cap in self._rungs.ranks else self._rungs.ranks[-1]


def lowest_limit_c(reading: Reading, own_c: float | None) -> float | None:
    """The device's limit, or the file's; of both the lower. None where neither is known."""
    known = [limit_c for limit_c in (reading.temperature_limit_c, own_c) if limit_c is not None]
    return min(known, default=None)


def _smoothed(memory: StepWiseMemory, time_s: float, heat_c: float) -> float:
    """Follow the temperature. Time that stands or runs backwards weighs nothing."""
    if memory.smooth_c is None:
        return heat_c
    weight = -math.expm1(-max(time_s - memory.time_s, 0.0) / _TREND_S)
    return memory.smooth_c + weight * (heat_c - memory.smooth_c)


def _lasted(since_s: float | None, time_s: float, long_s: float) -> bool:
    return since_s is not None and time_s - since_s >= long_s
