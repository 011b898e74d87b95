"""Sources made of sources: one that cannot fail, one that forgets, one that asks several.

Guarded(source)              an exception is an unknown reading, reported once per outage
Aged(source, max_age_s)      a sensor that blinks is remembered for a while, and never for ever
Combined(battery, thermal)   the first known value of each field
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.telemetry.base import FIELDS, Clock, Reading, TelemetrySource

_log = logging.getLogger(__name__)


class Guarded:
    """A source that never raises. While the inner one does, everything is unknown."""

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
        return reading


class Aged:
    """Remembers each known value for `max_age_s` after it was measured; then it is unknown.

    A zone that is gated for one read does not shake the policy, and a sensor that died does not look healthy: a value's
    age counts from the time of the reading that held it, so a source that repeats one old reading is found out too.
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
        if not max_age_s >= 0.0:
            raise UsageError(f"the largest age of a reading is 0 seconds or more, not {max_age_s}")
        self._source = Guarded(source, clock)
        self._max_age_s = max_age_s
        self._clock = clock
        self._known: dict[str, tuple[float, Any]] = {}

    def read(self) -> Reading:
        """What was known at most `max_age_s` ago. Never raises."""
        reading = self._source.read()
        for name in FIELDS:
            value = getattr(reading, name)
            if value is not None:
                self._known[name] = (reading.time_s, value)
        now = self._clock()
        young = {name: value for name, (at, value) in self._known.items() if now - at <= self._max_age_s}
        return Reading(now, **young)


class Combined:
    """Asks every source and takes the first known value of each field.

    A temperature and its limit belong together, so the limit is taken from the source that gave the temperature.
    """

    def __init__(self, *sources: TelemetrySource, clock: Clock = time.monotonic) -> None:
        self._sources = tuple(Guarded(source, clock) for source in sources)
        self._clock = clock

    def read(self) -> Reading:
        """Never raises: a source that does counts as unknown. The time is the clock's when all have answered."""
        known: dict[str, Any] = {}
        for source in self._sources:
            reading = source.read()
            if "temperature_c" in known:
                reading = replace(reading, temperature_limit_c=None)
            for name in FIELDS:
                value = getattr(reading, name)
                if value is not None:
                    known.setdefault(name, value)
        return Reading(self._clock(), **known)
