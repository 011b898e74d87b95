"""How the device was while it was measured: warm, throttled, in which power mode, and whether it held still.

    measure --after each turn--> Watcher --every half second--> TelemetrySource.read()
                                    |
                                Conditions        before, after, samples over time, steady or not, throttled or not

Sensors are read between turns, on the thread that measures: no reader runs beside a timed call.

**Thermally steady** is a verdict with a rule, not a feeling. The measurement is cut into thirds. It is steady if from
the first third to the last the mean temperature changed by at most `STEADY_C` and the median latency, of each rung
against its own median, by at most `STEADY_LATENCY`. It is not steady if either changed by more. A measurement of less
than `STEADY_AFTER_S` in which neither did is too short to tell, and without a thermometer nobody can tell: None.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nsn_edge.errors import NsnEdgeError
from nsn_edge.runtimes.profiling.measure import Clock
from nsn_edge.runtimes.telemetry import Reading, TelemetrySource

STEADY_C = 2.0
"""Degrees that a steady device may warm up or cool down, from the first third of a measurement to the last."""
STEADY_LATENCY = 0.05
"""The share by which the latencies of a steady device may change, likewise."""
STEADY_AFTER_S = 30.0
"""A shorter measurement cannot show that heat has come to rest."""

SETTLED_C, SETTLED_WINDOW_S = 0.5, 20.0
"""Heat has settled if the temperature rose by no more than this in a window of so many seconds."""

_MOST_SAMPLES = 240
_KEPT = ("temperature_c", "power_mw", "cpu_mhz", "gpu_mhz", "gpu_load_pct", "throttling")


@dataclass(frozen=True)
class Sample:
    """What was known at one moment of a measurement; None is unknown."""

    time_s: float
    """Since the measurement began."""
    temperature_c: float | None = None
    power_mw: float | None = None
    cpu_mhz: float | None = None
    gpu_mhz: float | None = None
    gpu_load_pct: float | None = None
    throttling: bool | None = None


@dataclass(frozen=True)
class Conditions:
    """How the device was during one configuration."""

    duration_s: float
    """Of the timed part: warm-up and energy are not in it."""
    before: Mapping[str, Any]
    """What the sensors said before anything was loaded, by the names of `Reading`; only what was known."""
    after: Mapping[str, Any]
    """The same, when all was measured."""
    samples: tuple[Sample, ...]
    """Over time, at most 240."""
    power_mode: str | None
    temperature_change_c: float | None
    """Mean of the last third less that of the first; None without a thermometer."""
    temperature_slope_c_per_min: float | None
    latency_change: float | None
    """Median of the last third against that of the first, less 1; each rung against its own median."""
    steady: bool | None
    """Thermally, by the rule of this module; None where it cannot be told."""
    throttled: bool | None
    """Whether the device said so, or that its over-current protection acted, at any moment; None: it never says."""
    settled_s: float = 0.0
    """Seconds that it was run before, so that its heat came to rest."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "samples": [asdict(sample) for sample in self.samples]}

    @classmethod
    def from_json(cls, data: Any) -> Conditions:
        """The reverse of `to_json`; unknown keys, which a newer writer may add, are left aside.

        Raises:
            NsnEdgeError: a key is missing or makes no sense.
        """
        try:
            samples = tuple(
                Sample(**{key: item.get(key) for key in Sample.__dataclass_fields__}) for item in data["samples"]
            )
            known = {key: data[key] for key in cls.__dataclass_fields__ if key != "samples"}
            return cls(samples=samples, **known)
        except (KeyError, TypeError, AttributeError) as error:
            raise NsnEdgeError(
                f"the profile's conditions are not readable: {error!r}", "profile the bundle again"
            ) from error


class Watcher:
    """Reads the sensors while a configuration is measured; `turn` is for `measure(after_turn=...)`."""

    def __init__(self, source: TelemetrySource, clock: Clock, every_s: float = 0.5) -> None:
        """
        Args:
            source: may raise; that reading is unknown then.
            clock: of the measurement. Readings may have another: they are stamped with this one.
            every_s: reads no more often.
        """
        self._source, self._clock, self._every_s = source, clock, every_s
        self._start_s: float | None = None
        self._samples: list[Sample] = []
        self._turns: list[tuple[float, int, float]] = []
        self._throttled: bool | None = None
        self._mode: str | None = None
        self._settled_s = 0.0
        self.before = known(self.read())

    def read(self) -> Reading:
        """One reading; of a source that fails, an empty one."""
        try:
            reading = self._source.read()
        except Exception:  # a sensor may raise anything, and what is measured goes on
            return Reading(self._clock())
        said = [value for value in (reading.throttling, reading.over_current) if value is not None]
        if said:
            self._throttled = bool(self._throttled) or any(said)
        self._mode = reading.power_mode or self._mode
        return reading

    def turn(self, rank: int, start_s: float, samples_ms: Sequence[float]) -> None:
        """Take note of a turn, and read the sensors if it is time."""
        if self._start_s is None:
            self._start_s = start_s
        self._turns.append((start_s - self._start_s, rank, statistics.median(samples_ms)))
        now = self._clock() - self._start_s
        if not self._samples or now - self._samples[-1].time_s >= self._every_s:
            reading = self.read()
            self._samples.append(Sample(now, **{name: getattr(reading, name) for name in _KEPT}))

    def settle(self, calls: Sequence[Callable[[], object]], most_s: float) -> float:
        """Run everything in turn until the temperature no longer rises, at most so many seconds; without a thermometer
        all of them. Returns the seconds it took."""
        start = self._clock()
        seen: list[tuple[float, float]] = []
        while (now := self._clock() - start) < most_s:
            for call in calls:
                call()
            if seen and now - seen[-1][0] < 1.0:
                continue
            temperature = self.read().temperature_c
            if temperature is None:
                continue
            seen.append((now, temperature))
            old = [value for at, value in seen if at <= now - SETTLED_WINDOW_S]
            if old and temperature - old[-1] <= SETTLED_C:
                break
        self._settled_s = self._clock() - start
        return self._settled_s

    def conditions(self) -> Conditions:
        """What was seen, and the verdicts."""
        after = known(self.read())
        duration_s = max([at for at, _, _ in self._turns] + [sample.time_s for sample in self._samples], default=0.0)
        warmth = [(s.time_s, s.temperature_c) for s in self._samples if s.temperature_c is not None]
        change_c = change_of_thirds(warmth, duration_s, statistics.fmean)
        latency = latency_change(self._turns, duration_s)
        return Conditions(
            duration_s=duration_s,
            before=self.before,
            after=after,
            samples=tuple(thinned(self._samples, _MOST_SAMPLES)),
            power_mode=self._mode,
            temperature_change_c=change_c,
            # The middles of the first and the last third are two thirds of the measurement apart.
            temperature_slope_c_per_min=None if change_c is None else change_c / (duration_s * 2 / 3) * 60,
            latency_change=latency,
            steady=is_steady(change_c, latency, duration_s),
            throttled=self._throttled,
            settled_s=self._settled_s,
        )


def known(reading: Reading) -> dict[str, Any]:
    """The fields of a reading that are known, without its times and what was asked of a session."""
    skipped = ("time_s", "wall_s", "age_s", "work")
    fields = {name: getattr(reading, name) for name in Reading.__dataclass_fields__ if name not in skipped}
    return {name: dict(v) if isinstance(v, Mapping) else v for name, v in fields.items() if v is not None and v != {}}


def change_of_thirds(
    points: Sequence[tuple[float, float]], duration_s: float, middle: Callable[[Sequence[float]], float]
) -> float | None:
    """The middle of the values in the last third of the time less that of the first; None if either has none.

    Args:
        points: time in seconds from 0, and value.
        duration_s: where the last third ends.
        middle: of several values: mean or median.
    """
    first = [value for at, value in points if at <= duration_s / 3]
    last = [value for at, value in points if at >= duration_s * 2 / 3]
    return middle(last) - middle(first) if first and last and duration_s > 0 else None


def latency_change(turns: Sequence[tuple[float, int, float]], duration_s: float) -> float | None:
    """How latencies changed from the first third to the last: each turn against the median of its rung, so that rungs
    of different speed can be put together.

    Args:
        turns: time in seconds, rank, median latency in milliseconds.
        duration_s: of all.
    """
    by_rank: dict[int, list[float]] = {}
    for _, rank, latency_ms in turns:
        by_rank.setdefault(rank, []).append(latency_ms)
    typical = {rank: statistics.median(values) for rank, values in by_rank.items()}
    relative = [(at, latency_ms / typical[rank]) for at, rank, latency_ms in turns if typical[rank] > 0]
    return change_of_thirds(relative, duration_s, statistics.median)


def is_steady(temperature_change_c: float | None, latency: float | None, duration_s: float) -> bool | None:
    """The verdict of this module's rule."""
    warmed = temperature_change_c is not None and abs(temperature_change_c) > STEADY_C
    if warmed or (latency is not None and abs(latency) > STEADY_LATENCY):
        return False
    if temperature_change_c is None or latency is None or duration_s < STEADY_AFTER_S:
        return None
    return True


def thinned(items: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
