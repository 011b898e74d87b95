"""What a device knows about itself at one moment, and who tells.

    TelemetrySource.read() -> Reading      every field a value or None; None means unknown, never zero

A source is anything with `read()`. Its readers take the filesystem root and the clock as arguments, so that every one
of them runs against a fixture tree. Times are seconds on a monotonic clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nsn_edge.errors import UsageError

Clock = Callable[[], float]
"""Seconds that never run backwards: `time.monotonic`, or a test's own."""


@dataclass(frozen=True)
class Reading:
    """One moment's telemetry. A number that is not finite, or a percentage outside 0..100, becomes None: a sensor
    that says so knows nothing, and no reader of a `Reading` has to think of it again."""

    time_s: float
    """When it was read, on the monotonic clock of the source."""
    battery_pct: float | None = None
    """Charge of all system batteries together, 0..100."""
    on_mains: bool | None = None
    """Whether something else than the battery pays: False while any battery discharges, plugged or not."""
    temperature_c: float | None = None
    """The junction temperature, or the nearest to it that the device has."""
    temperature_limit_c: float | None = None
    """Where the device itself begins to throttle, by its own trip points."""
    throttling: bool | None = None
    """Whether the device says that it throttles now."""
    power_mw: float | None = None
    """Power that the batteries deliver."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.time_s):
            raise UsageError(f"a reading's time is a finite number of seconds, not {self.time_s}")
        for name in ("battery_pct", "temperature_c", "temperature_limit_c", "power_mw"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, name, None)
        if self.battery_pct is not None and not 0.0 <= self.battery_pct <= 100.0:
            object.__setattr__(self, "battery_pct", None)


FIELDS = ("battery_pct", "on_mains", "temperature_c", "temperature_limit_c", "throttling", "power_mw")
"""The fields of a `Reading` that may be unknown."""


class TelemetrySource(Protocol):
    """Something that can be asked how the device is."""

    def read(self) -> Reading:
        """What is known now. May raise; whoever combines or ages sources survives that."""
        ...


class NoTelemetry:
    """The source of a device without sensors: everything is unknown, always."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock

    def read(self) -> Reading:
        """A reading in which only the time is known."""
        return Reading(self._clock())
