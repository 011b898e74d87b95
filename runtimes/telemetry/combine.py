"""Sources made of sources: one that cannot fail, one that forgets, one that asks several.

Guarded(source)              an exception is an unknown reading, reported once per outage; so is what cannot be
Aged(source, max_age_s)      a sensor that blinks is remembered for a while, and never for ever
Combined(battery, thermal)   what several sources know together
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.telemetry.base import FIELDS, Clock, Reading, TelemetrySource
from nsn_edge.runtimes.telemetry.energy import EnergyMeter
from nsn_edge.runtimes.telemetry.memory import Memory
from nsn_edge.runtimes.telemetry.sanity import believable

_log = logging.getLogger(__name__)


class Guarded:
    """A source that never raises, and whose numbers can be believed. While the inner one raises, everything is unknown;
    a number that cannot be (-256 degrees C, a gigawatt) is unknown."""

    def __init__(self, source: TelemetrySource, clock: Clock = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._failing = False

    def read(self) -> Reading:
        """What the inner source knows, or nothing. The first failure of an outage is logged, the others are not."""
        name = type(self._source).__name__
        try:
            reading = self._source.read()
            if not isinstance(reading, Reading):
                raise TypeError(f"read() returned {type(reading).__name__}, not a Reading")
        except Exception as error:  # a sensor's driver may raise anything, and the device must go on
            if not self._failing:
                _log.warning("telemetry source %s failed, its values are unknown: %r", name, error)
            self._failing = True
            return Reading(self._clock())
        if self._failing:
            _log.info("telemetry source %s answers again", name)
        self._failing = False
        return believable(reading)


class Aged:
    """Remembers each known value for `max_age_s` after it was measured; then it is unknown (see `Memory`).

    A zone that is gated for one read does not shake the policy, and a sensor that died does not look healthy.
    """

    def __init__(self, source: TelemetrySource, max_age_s: float = 10.0, clock: Clock = time.monotonic) -> None:
        """
        Args:
            source: on the same clock.
            max_age_s: how long a value may be used.
            clock: monotonic seconds.

        Raises:
            UsageError: `max_age_s` is negative or not a number.
        """
        self._memory = Memory(checked_age_s(max_age_s))
        self._source = Guarded(source, clock)
        self._clock = clock

    def read(self) -> Reading:
        """What was known at most `max_age_s` ago, and how old the oldest of it is. Never raises."""
        reading = self._source.read()
        now = self._clock()
        is_new = self._memory.add(reading, now)
        aged = self._memory.at(now)
        # Answers are counted once, by the reading that first told of them.
        return replace(aged, work=reading.work) if is_new and reading.work is not None else aged

    def forget(self) -> None:
        """Know nothing until the next reading, as after the device slept."""
        self._memory.forget()


def checked_age_s(max_age_s: float) -> float:
    """The argument, if it can be a largest age.

    Raises:
        UsageError: it is negative or not a number.
    """
    if not max_age_s >= 0.0:
        raise UsageError(f"the largest age of a reading is 0 seconds or more, not {max_age_s}")
    return max_age_s


class Combined:
    """Asks every source and ages it by itself; the first known value of each field counts, but for

    - the temperature: of several the one nearest to its limit, with that limit, as any part that is too hot stops the
      device. Where the first source knows no limit, its temperature counts;
    - throttling and over-current: true if any source says so;
    - energy: what all sources count together, from 0 on, unknown while one of them is silent. They count different
      parts, and a sum that loses one would seem to save;
    - the rails of all.
    """

    def __init__(self, *sources: TelemetrySource, max_age_s: float = 5.0, clock: Clock = time.monotonic) -> None:
        """
        Args:
            sources: on the same clock, in the order of preference.
            max_age_s: how long a value of one source stands before the next one's counts. A sensor that blinks shall
                not make another one jump in, and one that is stuck shall not make the others look old.
            clock: monotonic seconds.

        Raises:
            UsageError: `max_age_s` is negative or not a number.
        """
        self._sources = tuple(Aged(source, max_age_s, clock) for source in sources)
        self._clock = clock
        self._meters: dict[int, EnergyMeter] = {}
        self._max_age_s = max_age_s
        self._slept_s: float | None = None

    def read(self) -> Reading:
        """Never raises: a source that does counts as silent. The time is the clock's when all have answered; `age_s`
        says how long before that the oldest value was read."""
        readings = [source.read() for source in self._sources]
        if self._has_slept(readings):
            # One source saw it by the wall clock, and the others' memories are from before.
            for source in self._sources:
                source.forget()
            readings = [source.read() for source in self._sources]
        now = self._clock()
        known: dict[str, Any] = {}
        for name in (*FIELDS, "wall_s", "work"):
            values = [value for reading in readings if (value := getattr(reading, name)) is not None]
            if values:
                known[name] = any(values) if name in ("throttling", "over_current") else values[0]
        temperature_c, limit_c = _nearest_to_its_limit(readings)
        rails = {rail: value for reading in reversed(readings) for rail, value in reading.rails_mw.items()}
        return Reading(
            now,
            **known
            | {"temperature_c": temperature_c, "temperature_limit_c": limit_c, "energy_j": self._energy_j(readings)},
            rails_mw=rails,
            age_s=max((now - reading.time_s + reading.age_s for reading in readings if _tells(reading)), default=0.0),
        )

    def _has_slept(self, readings: Sequence[Reading]) -> bool:
        told = next((reading for reading in readings if reading.wall_s is not None), None)
        if told is None or told.wall_s is None:
            return False
        before_s, self._slept_s = self._slept_s, told.wall_s - told.time_s
        return before_s is not None and self._slept_s - before_s > self._max_age_s

    def _energy_j(self, readings: Sequence[Reading]) -> float | None:
        for index, reading in enumerate(readings):
            if reading.energy_j is not None:
                self._meters.setdefault(index, EnergyMeter()).add(reading.energy_j, reading.time_s)
        if not self._meters or any(readings[index].energy_j is None for index in self._meters):
            return None
        return sum(meter.total_j for meter in self._meters.values())


def _nearest_to_its_limit(readings: Sequence[Reading]) -> tuple[float | None, float | None]:
    """Temperature and limit of the part that is nearest to its limit."""
    known = [
        (reading.temperature_c, reading.temperature_limit_c)
        for reading in readings
        if reading.temperature_c is not None
    ]
    if not known:
        return None, next((limit for reading in readings if (limit := reading.temperature_limit_c) is not None), None)
    if known[0][1] is None:
        return known[0]
    return min(known, key=lambda part: math.inf if part[1] is None else part[1] - part[0])


def _tells(reading: Reading) -> bool:
    return bool(reading.rails_mw) or any(getattr(reading, name) is not None for name in FIELDS)
