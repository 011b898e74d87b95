"""What was known at most so long ago: how old each value is, and when it is forgotten.

    memory.add(reading, now_s)      after each reading
    memory.at(now_s) -> Reading     what may still be used

A value's age counts from the time of the reading that held it, less what the reading says of its own age; never from
when it was asked for. So neither a sensor that died nor a source that repeats one old reading looks healthy.
"""

from __future__ import annotations

import math
from typing import Any

from nsn_edge.runtimes.telemetry.base import FIELDS, Reading

_EVENT = "over_current"


class Memory:
    """Each known value for `max_age_s`. Not for several threads at once."""

    def __init__(self, max_age_s: float) -> None:
        """
        Args:
            max_age_s: how long a value may be used; 0 or more.
        """
        self._max_age_s = max_age_s
        self._known: dict[str, tuple[float, Any]] = {}
        self._rails: dict[str, tuple[float, float]] = {}
        self._wall: tuple[float, float] | None = None
        self._event_s: float | None = None
        self._stamp_s: float | None = None
        self._stamp_seen_s = -math.inf
        self._slept_s: float | None = None

    def add(self, reading: Reading, now_s: float) -> bool:
        """Remember what this reading knows.

        A reading from the future is as old as the moment when it was first seen: its clock is wrong, and a source that
        repeats it must be found out all the same. Where the wall clock ran ahead of the monotonic one, the device
        slept: what was known before that is forgotten.

        Returns:
            Whether its time is another than that of the reading before.
        """
        is_new = reading.time_s != self._stamp_s
        if is_new:
            self._stamp_s, self._stamp_seen_s = reading.time_s, now_s
        taken_s = min(reading.time_s, self._stamp_seen_s)
        if reading.wall_s is not None:
            slept_s = reading.wall_s - taken_s
            if self._slept_s is not None and slept_s - self._slept_s > self._max_age_s:
                self.forget()
            self._slept_s = slept_s
            self._wall = (taken_s, reading.wall_s)
        # A source that does not know its own age has no value worth keeping.
        at_s = taken_s - max(reading.age_s, 0.0) if math.isfinite(reading.age_s) else -math.inf
        for name in FIELDS:
            value = getattr(reading, name)
            if value is not None:
                _keep_younger(self._known, name, at_s, value)
        for rail, value in reading.rails_mw.items():
            _keep_younger(self._rails, rail, at_s, value)
        if getattr(reading, _EVENT) and at_s > (self._event_s if self._event_s is not None else -math.inf):
            self._event_s = at_s
        return is_new

    def at(self, now_s: float) -> Reading:
        """What was known at most `max_age_s` before `now_s`; `age_s` is the age of the oldest value in it.

        Over-current is an event: once seen it is told for `max_age_s`, so that no reader misses it between two reads.
        """
        since_s = now_s - self._max_age_s
        young = {name: known for name, known in self._known.items() if known[0] >= since_s}
        if self._event_s is not None and self._event_s >= since_s:
            young[_EVENT] = (self._event_s, True)
        rails = {rail: known for rail, known in self._rails.items() if known[0] >= since_s}
        oldest_s = min((known[0] for known in (*young.values(), *rails.values())), default=now_s)
        wall_s = None
        if self._wall is not None and self._wall[0] >= since_s:
            wall_s = self._wall[1] + now_s - self._wall[0]
        return Reading(
            now_s,
            **{name: value for name, (_, value) in young.items()},
            rails_mw={rail: value for rail, (_, value) in rails.items()},
            wall_s=wall_s,
            age_s=max(now_s - oldest_s, 0.0),
        )

    def forget(self) -> None:
        """Know nothing any more."""
        self._known.clear()
        self._rails.clear()
        self._wall = self._event_s = None


def _keep_younger(known: dict[str, tuple[float, Any]], name: str, at_s: float, value: Any) -> None:
    if name not in known or at_s >= known[name][0]:
        known[name] = (at_s, value)
