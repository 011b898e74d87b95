"""An energy budget: last until a time of day, or for some hours, on what the battery holds.

    idle power + requests per second x energy per request at the rung     x     seconds left    <=    joules left

Projected anew at every reading, so an estimate that was wrong yesterday does no harm today.

*Clocks.* `last_h` counts the seconds of `reading.time_s` since the plug was pulled: where that clock stops while the
device sleeps, sleep does not count, and steps of the wall clock never do; where it runs backwards nothing is counted.
`until` looks at `reading.wall_s` alone and remembers nothing: after a step of the clock or a night's sleep the next
reading aims at the same time of day again. It is in force for the twelve hours before that time, so nothing is
rationed in the evening for the sake of tomorrow.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

from nsn_edge.runtimes.policy.base import PolicyState
from nsn_edge.runtimes.policy.checks import LimitError, in_range, share
from nsn_edge.runtimes.policy.costs import RungCosts
from nsn_edge.runtimes.policy.limiter import Limit, Memory, Rungs, g
from nsn_edge.runtimes.telemetry.base import Reading

_RATE_S = 300.0  # over which arrivals are averaged: a battery does not notice a minute
_IDLE_S = 60.0  # over which the idle power is estimated
_DAY_S = 86400.0
_AHEAD_S = 43200.0  # `until` is in force for so long before it
_TIME_OF_DAY = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?:Z|([+-])(\d\d):([0-5]\d))?")


@dataclass(frozen=True)
class EnergyBudget:
    """The settings of an `[energy]` table."""

    last_h: float | None = None
    """For so many hours from when the plug is pulled; or `until`."""
    until: str | None = None
    """A time of day, like `18:00` where the device is, or `18:00Z`, `18:00+02:00`."""
    reserve_pct: float = 5.0
    """Of the battery, not to be touched."""
    capacity_wh: float | None = None
    """Of the full battery, for devices that tell a charge in per cent alone."""
    idle_mw: float | None = None
    """What the device draws when it answers nothing; by default what `power_mw` leaves after the answers."""
    busy_mw: float | None = None
    """What an inference draws on top of that, where the profile has no energy."""
    arrivals_per_s: float | None = None
    """Requests to plan for while the session counts none; by default as many as the device can answer."""
    band: float = 0.05
    """A rung that was too dear must leave this share of the budget before it is allowed again."""

    def __post_init__(self) -> None:
        if (self.last_h is None) == (self.until is None):
            raise LimitError(
                "a budget lasts for hours or until a time of day",
                'give one of the two: last_h = 8 or until = "18:00"',
                key="until" if self.until is not None else "",
            )
        if self.last_h is not None:
            in_range(self, "last_h", 0.01, 1000.0, "hours")
        if self.until is not None and not _TIME_OF_DAY.fullmatch(self.until):
            raise LimitError(f"until is {self.until!r}, no time of day", 'write "18:00" or "18:00+02:00"', key="until")
        in_range(self, "reserve_pct", 0.0, 90.0)
        if 0.0 < self.reserve_pct < 1.0:
            raise LimitError(
                f"reserve_pct is {self.reserve_pct:g}, less than one per cent",
                f"a fraction? write {100 * self.reserve_pct:g}",
                key="reserve_pct",
            )
        if self.capacity_wh is not None:
            in_range(self, "capacity_wh", 0.1, 5000.0, "watt-hours; not milliwatt-hours or joules")
        for key in ("idle_mw", "busy_mw"):
            if getattr(self, key) is not None:
                watts = 0.0 < getattr(self, key) < 10.0
                in_range(self, key, 10.0, 1e6, f"watts? write {getattr(self, key) * 1000:g}" if watts else "milliwatts")
        if self.arrivals_per_s is not None:
            in_range(self, "arrivals_per_s", 0.0, 1e6)
        share(self, "band", 0.0, 0.9)


class EnergyMemory(NamedTuple):
    """What the limiter remembers."""

    elapsed_s: float = 0.0
    """Since the plug was pulled."""
    time_s: float | None = None
    """Of the last reading."""
    arrivals_per_s: float | None = None
    """Averaged."""
    idle_mw: float | None = None
    """Estimated."""
    fitting: tuple[int, ...] | None = None
    """The ranks that fitted at the last reading; None before the first."""


class EnergyLimiter:
    """`EnergyBudget` for the rungs of one ladder."""

    name = "energy"

    def __init__(self, settings: EnergyBudget, rungs: Rungs, costs: RungCosts) -> None:
        """
        Raises:
            LimitError: the profile has no energy and the settings have no `busy_mw`.
        """
        if not costs.knows_energy and settings.busy_mw is None:
            raise LimitError(
                "the profile lacks the energy of a call, and an energy budget plans with it",
                "profile where a power sensor is, or give busy_mw",
                table="energy",
            )
        self._settings = settings
        self._rungs = rungs
        # mW while it computes x s = mJ.
        self._energy_mj = {
            cost.rank: cost.energy_mj
            if costs.knows_energy and cost.energy_mj is not None
            else (settings.busy_mw or 0.0) * cost.p50_ms / 1000.0
            for cost in costs.rungs
        }
        self._most_per_s = {cost.rank: 1000.0 / cost.p50_ms for cost in costs.rungs}

    def limit(self, reading: Reading, state: PolicyState) -> tuple[Limit | None, Memory]:
        """The rungs whose projected drain fits; the most frugal where none does; the safe ones while it is blind."""
        memory = self._observed(state.energy or EnergyMemory(), reading, state.rank)
        if reading.on_mains:
            return None, {"energy": memory._replace(elapsed_s=0.0, fitting=None)}
        left_s = self._seconds_left(memory, reading)
        if left_s is None:
            return None, {"energy": memory._replace(fitting=None)}
        joules, idle_mw = self._joules_left(reading), self._idle_mw(memory)
        if joules is None:
            return self._rungs.safe("the energy left in the battery is unknown"), {"energy": memory}
        if idle_mw is None:
            blind = self._rungs.safe("the idle power is unknown, and [energy] idle_mw is not given")
            return blind, {"energy": memory}
        budget_mw = 1000.0 * joules / left_s
        rate = memory.arrivals_per_s if memory.arrivals_per_s is not None else self._settings.arrivals_per_s
        drawn_mw = {rank: idle_mw + self._busy_mw(rank, rate) for rank in self._rungs.ranks}
        again_mw = budget_mw * (1.0 - self._settings.band)
        fitting = tuple(
            rank
            for rank, needed_mw in drawn_mw.items()
            if needed_mw <= (budget_mw if memory.fitting is None or rank in memory.fitting else again_mw)
        )
        remembered = {"energy": memory._replace(fitting=fitting)}
        if fitting == self._rungs.ranks:
            return None, remembered

        def why() -> str:
            now = f"{g(joules / 3600)} Wh for {_duration(left_s)}, that is {g(budget_mw / 1000)} W"
            if not fitting:
                return f"{now}: even rank {least} draws {g(drawn_mw[least] / 1000)} W"
            dear = next(rank for rank in self._rungs.best_first if rank not in fitting)
            return f"{now}: rank {dear} would draw {g(drawn_mw[dear] / 1000)} W"

        least = self._rungs.ranks[0] if fitting else min(drawn_mw, key=lambda rank: (round(drawn_mw[rank], 6), rank))
        return Limit(fitting or (least,), why), remembered

    def _observed(self, memory: EnergyMemory, reading: Reading, rank: int | None) -> EnergyMemory:
        """Count the time and average what is not steady. Time that stands or runs backwards weighs nothing."""
        step_s = 0.0 if memory.time_s is None else max(reading.time_s - memory.time_s, 0.0)
        rate, idle_mw = memory.arrivals_per_s, memory.idle_mw
        if reading.work is not None and reading.work.arrivals_per_s is not None:
            rate = _averaged(rate, max(reading.work.arrivals_per_s, 0.0), step_s, _RATE_S)
        if reading.power_mw is not None and rank in self._energy_mj and not reading.on_mains:
            # Of the arrivals of this very moment, as the power is of this very moment.
            now_per_s = reading.work.arrivals_per_s if reading.work is not None else None
            busy_mw = self._busy_mw(rank, max(now_per_s or 0.0, 0.0))
            idle_mw = _averaged(idle_mw, max(reading.power_mw - busy_mw, 0.0), step_s, _IDLE_S)
        return EnergyMemory(memory.elapsed_s + step_s, reading.time_s, rate, idle_mw, memory.fitting)

    def _busy_mw(self, rank: int, arrivals_per_s: float | None) -> float:
        """What answering draws at a rung. None answers more than it has time for; an unknown rate is as much."""
        most = self._most_per_s[rank]
        rate = most if arrivals_per_s is None or arrivals_per_s > most else arrivals_per_s
        return rate * self._energy_mj[rank]

    def _idle_mw(self, memory: EnergyMemory) -> float | None:
        return memory.idle_mw if self._settings.idle_mw is None else self._settings.idle_mw

    def _joules_left(self, reading: Reading) -> float | None:
        """Above the reserve; None where neither the battery nor the file tells."""
        settings, pct = self._settings, reading.battery_pct
        full_j = None if settings.capacity_wh is None else 3600.0 * settings.capacity_wh
        if reading.battery_j is None:
            return None if pct is None or full_j is None else max(pct - settings.reserve_pct, 0.0) / 100.0 * full_j
        if full_j is not None:
            return max(reading.battery_j - settings.reserve_pct / 100.0 * full_j, 0.0)
        if pct is not None:
            return reading.battery_j * max(1.0 - settings.reserve_pct / pct, 0.0) if pct > 0.0 else 0.0
        return reading.battery_j * (1.0 - settings.reserve_pct / 100.0)

    def _seconds_left(self, memory: EnergyMemory, reading: Reading) -> float | None:
        """Of the promise; None where it is kept already, or not yet in force."""
        if self._settings.last_h is not None:
            left_s = 3600.0 * self._settings.last_h - memory.elapsed_s
            return left_s if left_s > 0.0 else None
        left_s = _seconds_until(self._settings.until or "", reading.wall_s)
        return left_s if left_s <= _AHEAD_S else None


def _seconds_until(time_of_day: str, wall_s: float | None) -> float:
    """To the next time of day; the longest that can be in force where the wall clock says nothing sensible."""
    match = _TIME_OF_DAY.fullmatch(time_of_day)
    assert match is not None, "checked when the settings were made"
    try:
        now = datetime.fromtimestamp(math.inf if wall_s is None else wall_s, timezone.utc)
        if match[0].endswith("Z"):
            offset = timedelta(0)
        elif match[3]:
            offset = timedelta(hours=int(match[4]), minutes=int(match[5])) * (1 if match[3] == "+" else -1)
        else:
            offset = now.astimezone().utcoffset() or timedelta(0)
    except (ValueError, OverflowError, OSError):
        return _AHEAD_S
    seconds = (now.timestamp() + offset.total_seconds()) % _DAY_S
    return (3600.0 * int(match[1]) + 60.0 * int(match[2]) - seconds) % _DAY_S or _DAY_S


def _averaged(mean: float | None, value: float, step_s: float, over_s: float) -> float:
    """An exponential average; after a long gap the present alone counts."""
    return value if mean is None else mean - math.expm1(-step_s / over_s) * (value - mean)


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60.0), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
