"""What a device knows about itself at one moment, and who tells.

    TelemetrySource.read() -> Reading      every field a value or None; None means unknown, never zero

A source is anything with `read()`. Its readers take the filesystem root and the clock as arguments, so that every one
of them runs against a fixture tree. Times are seconds on a monotonic clock.

A reading holds two kinds of knowledge: what the device says of itself, and (`work`) what the application lately asked
of its session. A policy sees both in one object, so a trace can hold both and replay a decision exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from nsn_edge.errors import UsageError

Clock = Callable[[], float]
"""Seconds that never run backwards: `time.monotonic`, or a test's own."""


class Answered(NamedTuple):
    """One request that was answered."""

    rank: int
    """That answered."""
    latency_ms: float
    """Of the inference alone, without waiting in a queue."""


@dataclass(frozen=True)
class Work:
    """What was asked of a session lately."""

    answers: tuple[Answered, ...] = ()
    """Since the reading before this one, oldest first; of a busy session the newest alone."""
    arrivals_per_s: float | None = None
    """Requests that came in, answered or not, averaged over the last seconds."""
    waiting: int | None = None
    """Requests in the queue now."""


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
    """Power that the device draws: what its batteries deliver, or what its board's input or its GPU says."""
    energy_j: float | None = None
    """Energy drawn since some fixed moment: only differences mean something. From a hardware counter."""
    battery_j: float | None = None
    """Energy left in all system batteries together."""
    gpu_load_pct: float | None = None
    """How busy the GPU is, 0..100."""
    gpu_mhz: float | None = None
    """Clock of the GPU."""
    cpu_mhz: float | None = None
    """Clock of the fastest processor core."""
    over_current: bool | None = None
    """Whether the board's over-current protection acted since the reading before."""
    power_mode: str | None = None
    """The name of the power mode (nvpmodel); its number means something else on every board."""
    rails_mw: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Power by the board's own rail names. Rails overlap and leave gaps: they need not add up to `power_mw`."""
    wall_s: float | None = None
    """The wall clock, seconds since 1970. May jump, and goes on while the device sleeps, which `time_s` need not."""
    age_s: float = 0.0
    """Of the oldest value in this reading."""
    work: Work | None = None
    """What was asked of the session; None where nobody counts."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.time_s):
            raise UsageError(f"a reading's time is a finite number of seconds, not {self.time_s}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, name, None)
        for name in _PERCENTAGES:
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 100.0:
                object.__setattr__(self, name, None)
        if not all(map(math.isfinite, self.rails_mw.values())):
            finite = {name: value for name, value in self.rails_mw.items() if math.isfinite(value)}
            object.__setattr__(self, "rails_mw", finite)


_PERCENTAGES = ("battery_pct", "gpu_load_pct")
_NUMBERS = (
    *_PERCENTAGES,
    "temperature_c",
    "temperature_limit_c",
    "power_mw",
    "energy_j",
    "battery_j",
    "gpu_mhz",
    "cpu_mhz",
    "wall_s",
)

FIELDS = (
    "battery_pct",
    "on_mains",
    "temperature_c",
    "temperature_limit_c",
    "throttling",
    "power_mw",
    "energy_j",
    "battery_j",
    "gpu_load_pct",
    "gpu_mhz",
    "cpu_mhz",
    "over_current",
    "power_mode",
)
"""The fields of a `Reading` that sensors fill and that may be unknown (`rails_mw` is empty where unknown)."""


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
