"""Thresholds with hysteresis: battery steps, temperature steps and the device's own throttling each cap the FLOPs.

    reading --> steps that hold --> strictest cap --> the rungs within it

* On mains the battery sets no limit.
* Unknown is not "fine": when nothing that the policy looks at is known, or a sensor that was known has gone silent,
  `unknown_max_flops` applies. A device that never had a battery is not punished for it.

After the latch-high, release-low habit of thermal drivers.
"""

from __future__ import annotations

from typing import NamedTuple

from nsn_edge.runtimes.policy.base import PolicyState
from nsn_edge.runtimes.policy.limiter import Limit, Memory, Rungs, at_most, g
from nsn_edge.runtimes.policy.limits import RungLimits
from nsn_edge.runtimes.telemetry.base import Reading


class _Cap(NamedTuple):
    max_flops: float
    why: str


class _Held(NamedTuple):
    """The thresholds' part of a `PolicyState`, by the names that it has there."""

    battery_depth: int
    heat_depth: int
    near_limit: bool
    saw_power: bool
    saw_temperature: bool


class Thresholds:
    """The battery, temperature and throttling tables of a policy, for the rungs of one ladder."""

    name = "thresholds"

    def __init__(self, limits: RungLimits, rungs: Rungs) -> None:
        self._limits = limits
        self._rungs = rungs

    def limit(self, reading: Reading, state: PolicyState) -> tuple[Limit | None, Memory]:
        """The rungs within the strictest cap that holds."""
        held = self._observe(reading, state)
        strictest = min(self._caps(reading, held), key=lambda cap: cap.max_flops, default=None)
        if strictest is None:
            return None, held._asdict()
        return Limit(self._rungs.within(strictest.max_flops), lambda: strictest.why), held._asdict()

    def _observe(self, reading: Reading, state: PolicyState) -> _Held:
        """Latch and release the steps. What is unknown changes nothing."""
        battery_depth, heat_depth, near_limit = state.battery_depth, state.heat_depth, state.near_limit
        pct, heat_c = reading.battery_pct, reading.temperature_c
        if pct is not None:
            entered = sum(pct <= step.enter_pct for step in self._limits.battery)
            not_left = sum(pct < step.leave_pct for step in self._limits.battery)
            battery_depth = _latched(battery_depth, entered, not_left)
        if heat_c is not None:
            entered = sum(heat_c >= step.enter_c for step in self._limits.temperature)
            not_left = sum(heat_c > step.leave_c for step in self._limits.temperature)
            heat_depth = _latched(heat_depth, entered, not_left)
            near_limit = self._is_near_limit(heat_c, reading.temperature_limit_c, near_limit)
        return _Held(
            battery_depth=battery_depth,
            heat_depth=heat_depth,
            near_limit=near_limit,
            saw_power=state.saw_power or reading.battery_pct is not None or reading.on_mains is not None,
            saw_temperature=state.saw_temperature or reading.temperature_c is not None,
        )

    def _is_near_limit(self, heat_c: float, limit_c: float | None, was_near: bool) -> bool:
        throttling = self._limits.throttling
        if throttling is None or limit_c is None:
            return False
        margin_c = limit_c - heat_c
        return margin_c <= throttling.enter_margin_c or (was_near and margin_c < throttling.leave_margin_c)

    def _caps(self, reading: Reading, state: _Held) -> list[_Cap]:
        caps = [self._battery_cap(reading, state), self._heat_cap(reading, state), self._throttling_cap(reading, state)]
        if not self._knows_anything(reading):
            caps.append(self._unknown("nothing is known of battery or heat"))
        return [cap for cap in caps if cap is not None]

    def _knows_anything(self, reading: Reading) -> bool:
        limits = self._limits
        power = bool(limits.battery) and (reading.battery_pct is not None or reading.on_mains is True)
        heat = (bool(limits.temperature) or limits.throttling is not None) and reading.temperature_c is not None
        # That the device throttles is no reassurance; that it says it does not is one.
        return power or heat or (limits.throttling is not None and reading.throttling is False)

    def _unknown(self, why: str) -> _Cap:
        return _Cap(self._limits.unknown_max_flops, f"{why}: {at_most(self._limits.unknown_max_flops)}")

    def _battery_cap(self, reading: Reading, state: _Held) -> _Cap | None:
        if not self._limits.battery or reading.on_mains:
            return None
        pct = reading.battery_pct
        if pct is None:
            silent = state.saw_power or reading.on_mains is False
            return self._unknown("the battery's charge is unknown") if silent else None
        if state.battery_depth == 0:
            return None
        step = self._limits.battery[state.battery_depth - 1]
        now = (
            f"is at or below {g(step.enter_pct)} %"
            if pct <= step.enter_pct
            else f"fell to {g(step.enter_pct)} % and is not back at {g(step.leave_pct)} %"
        )
        return _Cap(step.max_flops, f"battery {g(pct)} % {now}: {at_most(step.max_flops)}")

    def _heat_cap(self, reading: Reading, state: _Held) -> _Cap | None:
        heat = reading.temperature_c
        if heat is None:
            looked_at = self._limits.temperature or self._limits.throttling
            return self._unknown("the temperature is unknown") if looked_at and state.saw_temperature else None
        if state.heat_depth == 0:
            return None
        step = self._limits.temperature[state.heat_depth - 1]
        now = (
            f"is at or above {g(step.enter_c)} °C"
            if heat >= step.enter_c
            else f"rose to {g(step.enter_c)} °C and is not back at {g(step.leave_c)} °C"
        )
        return _Cap(step.max_flops, f"temperature {g(heat)} °C {now}: {at_most(step.max_flops)}")

    def _throttling_cap(self, reading: Reading, state: _Held) -> _Cap | None:
        throttling = self._limits.throttling
        if throttling is None:
            return None
        if reading.throttling:
            return _Cap(throttling.max_flops, f"the device throttles itself: {at_most(throttling.max_flops)}")
        heat, limit = reading.temperature_c, reading.temperature_limit_c
        if not state.near_limit or heat is None or limit is None:
            return None
        return _Cap(
            throttling.max_flops,
            f"temperature {g(heat)} °C is or was within {g(throttling.enter_margin_c)} °C of the device's limit "
            f"of {g(limit)} °C: {at_most(throttling.max_flops)}",
        )


def _latched(depth: int, entered: int, not_left: int) -> int:
    """How many nested steps hold: those entered do, those not yet left do if they did before."""
    return min(max(depth, entered), not_left)
