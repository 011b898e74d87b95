"""Fault injection: a source that fails as real sensors do, to rehearse what an application makes of it.

    source = FaultyTelemetry(device_telemetry(), chances(0.05), seed=7)     every kind, each on 5 % of the readings
    source.inject(Fault.STUCK, reads=20)                                    this one next, for 20 readings

The same seed and the same number of readings give the same faults. `injected` counts them, so that a test can show that
it met every kind.
"""

from __future__ import annotations

import errno
import math
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.telemetry.base import FIELDS, Reading, TelemetrySource


class Fault(str, Enum):
    """What goes wrong with a sensor."""

    RAISES = "raises"
    """`read()` raises: gated (EAGAIN), EINVAL, EIO, ENODATA, no permission, connection refused, a driver's error."""
    KILLS = "kills"
    """`read()` raises `SystemExit`, which ends the thread that reads."""
    NO_READING = "no reading"
    """`read()` gives something that is no `Reading`."""
    UNKNOWN = "unknown"
    """Some fields are None, as of a zone that is gated."""
    VANISHED = "vanished"
    """Everything is unknown, until the sensor returns."""
    STUCK = "stuck"
    """An old reading again, with its old time."""
    NAN = "nan"
    """Numbers that are not finite."""
    ABSURD = "absurd"
    """Numbers that cannot be: -256, -256000, 1e9."""
    SLOW = "slow"
    """`read()` takes `slow_s` longer."""
    CLOCK_STEP = "clock step"
    """The reading's times are hours off, forwards or backwards."""
    SUSPEND = "suspend"
    """The device slept: from now on the wall clock is hours ahead, though the monotonic clock saw nothing of it."""


def chances(each: float) -> dict[Fault, float]:
    """The same chance for every kind of fault, for the argument `faults`."""
    return dict.fromkeys(Fault, each)


_ERRNOS = (errno.EAGAIN, errno.EINVAL, errno.EIO, errno.ENODATA, errno.ENOENT, errno.EACCES, errno.ECONNREFUSED)
_OTHER_ERRORS: tuple[Callable[[], Exception], ...] = (
    # What Python's buffered files make of EAGAIN, and what a driver's bindings raise.
    lambda: TypeError("can't concat NoneType to bytes"),
    lambda: RuntimeError("the driver is gone"),
)
_NOT_READINGS: tuple[Any, ...] = (None, {}, "61.5 C", -256)
_NOT_FINITE = (math.nan, math.inf, -math.inf)
_ABSURD = (-256.0, -256000.0, 1e9, -1e9)
_HOUR_S = 3600.0
_LONGEST = {Fault.UNKNOWN: 5, Fault.VANISHED: 30, Fault.STUCK: 30}
"""Readings that a fault lasts at most when it comes by chance; the others last one."""

_NUMBERS = tuple(name for name in FIELDS if name not in ("on_mains", "throttling", "over_current", "power_mode"))


class FaultyTelemetry:
    """Wraps a source and breaks some of its readings. May be read from several threads."""

    def __init__(
        self,
        source: TelemetrySource,
        faults: Mapping[Fault, float] | None = None,
        seed: int = 0,
        *,
        slow_s: float = 1.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """
        Args:
            source: what is read when nothing is wrong.
            faults: by kind, the chance that it begins at a reading, 0..1, together at most 1; see `chances`. None by
                default: then only what `inject` asks for happens.
            seed: of the choice.
            slow_s: what `Fault.SLOW` waits.
            sleep: waits that many seconds; a test may pass one that waits for an event.

        Raises:
            UsageError: a chance is not one.
        """
        faults = {Fault(kind): chance for kind, chance in (faults or {}).items()}
        if not all(0.0 <= chance <= 1.0 for chance in faults.values()) or sum(faults.values()) > 1.0 + 1e-9:
            raise UsageError(f"chances of faults lie in 0..1, together at most 1, not {list(faults.values())}")
        self.injected: Counter[Fault] = Counter()
        """Readings that each kind of fault spoiled."""
        self._source = source
        self._faults = faults
        self._random = random.Random(seed)
        self._slow_s = slow_s
        self._sleep = sleep
        self._lock = threading.Lock()
        self._asked: deque[Fault] = deque()
        self._last: Reading | None = None
        self._asleep_s = 0.0

    def inject(self, fault: Fault, reads: int = 1) -> None:
        """Spoil the next `reads` readings by this fault, after those asked for before."""
        with self._lock:
            self._asked.extend([Fault(fault)] * reads)

    def read(self) -> Reading:
        """The source's reading, or what a fault makes of it.

        Raises:
            Exception: the source raised, or a fault did. `SystemExit` for `Fault.KILLS`.
        """
        with self._lock:
            fault = self._next_fault()
            if fault is not None:
                self.injected[fault] += 1
            dice = random.Random(self._random.random())
        if fault is Fault.RAISES:
            raise _error(dice)
        if fault is Fault.KILLS:
            raise SystemExit("the reading thread is killed")
        if fault is Fault.NO_READING:
            reading: Reading = dice.choice(_NOT_READINGS)
            return reading
        if fault is Fault.SLOW:
            self._sleep(self._slow_s)
        if fault is Fault.STUCK and self._last is not None:
            return self._last
        reading = self._source.read()
        if fault is Fault.SUSPEND:
            self._asleep_s += dice.uniform(0.1, 12.0) * _HOUR_S
        if self._asleep_s and reading.wall_s is not None:
            reading = replace(reading, wall_s=reading.wall_s + self._asleep_s)
        self._last = reading
        return _spoiled(reading, fault, dice)

    def _next_fault(self) -> Fault | None:
        if self._asked:
            return self._asked.popleft()
        thrown = self._random.random()
        for kind, chance in self._faults.items():
            thrown -= chance
            if thrown < 0.0:
                self._asked.extend([kind] * (self._random.randint(1, _LONGEST.get(kind, 1)) - 1))
                return kind
        return None


def _error(dice: random.Random) -> Exception:
    number = dice.randrange(len(_ERRNOS) + len(_OTHER_ERRORS))
    if number < len(_ERRNOS):
        return OSError(_ERRNOS[number], os.strerror(_ERRNOS[number]))
    return _OTHER_ERRORS[number - len(_ERRNOS)]()


def _spoiled(reading: Reading, fault: Fault | None, dice: random.Random) -> Reading:
    if fault is Fault.VANISHED:
        return Reading(reading.time_s)
    if fault is Fault.CLOCK_STEP:
        step_s = dice.choice((-1.0, 1.0)) * dice.uniform(0.1, 24.0) * _HOUR_S
        wall_s = None if reading.wall_s is None else reading.wall_s + step_s
        return replace(reading, time_s=reading.time_s + step_s, wall_s=wall_s)
    changed: dict[str, Any] = {}
    if fault is Fault.UNKNOWN:
        changed = dict.fromkeys(_some(FIELDS, dice), None)
        changed["rails_mw"] = {}
    elif fault in (Fault.NAN, Fault.ABSURD):
        values = _NOT_FINITE if fault is Fault.NAN else _ABSURD
        changed = {name: dice.choice(values) for name in _some(_NUMBERS, dice)}
        changed["rails_mw"] = {rail: dice.choice(values) for rail in reading.rails_mw}
    return replace(reading, **changed)


def _some(names: tuple[str, ...], dice: random.Random) -> list[str]:
    return dice.sample(names, dice.randint(1, len(names)))
