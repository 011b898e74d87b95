"""Events as JSON lines in a file of bounded size: what happened to a fleet's device while nobody watched.

    with JsonlEvents("events.jsonl") as events, EdgeSession.open("bundle", listener=events) as session: ...

A request never waits for the file: a thread of its own writes, and what it cannot keep up with is counted instead. A
full disk loses lines, and says how many as soon as there is room. Each line is one write, so that `tail -f` and a
process that dies see whole lines.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.events import SessionEvent
from nsn_edge.runtimes.telemetry.base import Clock, Reading

_log = logging.getLogger("nsn_edge.runtimes")

SCHEMA_VERSION = 1
_BACKLOG = 1000
"""Events that may wait for the disk."""
_SECOND_S = 1.0


class JsonlEvents:
    """A listener that writes each event as a line. Any thread may call it; it never raises nor waits for the disk."""

    def __init__(
        self,
        path: Path | str,
        *,
        max_bytes: int = 10_000_000,
        max_per_s: int = 20,
        clock: Clock = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            path: of the file, appended to. At half of `max_bytes` it becomes `PATH.1`, and the one before is lost.
            max_bytes: that both may take together.
            max_per_s: lines of one kind of event per second; of more, the next line of that kind says how many there
                were (`left_out`).
            clock: monotonic seconds.
            wall_clock: seconds since 1970.

        Raises:
            UsageError: `max_bytes` or `max_per_s` make no sense, or the folder does not exist.
        """
        if max_bytes < 10_000 or max_per_s < 1:
            raise UsageError(
                f"a file of at most {max_bytes} bytes with at most {max_per_s} lines a second holds nothing",
                "give it 10000 bytes or more, and a line a second or more",
            )
        self._path = Path(path)
        if not self._path.parent.is_dir():
            raise UsageError(f"no folder {self._path.parent} for the events", f"mkdir -p {self._path.parent}")
        self._half_bytes = max_bytes // 2
        self._max_per_s = max_per_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Condition(threading.Lock())
        self._backlog: deque[tuple[float, float, SessionEvent, int]] = deque()
        self._seconds: dict[str, tuple[float, int]] = {}
        self._left_out: dict[str, int] = {}
        self._closed = False
        self._torn = False
        self._failing = False
        self._thread = threading.Thread(target=self._write_all, name="nsn-edge-events", daemon=True)
        self._thread.start()

    def __call__(self, event: SessionEvent) -> None:
        """Note an event. After `close`, nothing."""
        with self._lock:
            if self._closed:
                return
            now_s = self._clock()
            since_s, count = self._seconds.get(event.kind, (now_s, 0))
            if now_s - since_s >= _SECOND_S:
                since_s, count = now_s, 0
            if count >= self._max_per_s or len(self._backlog) >= _BACKLOG:
                self._left_out[event.kind] = self._left_out.get(event.kind, 0) + 1
                return
            self._seconds[event.kind] = since_s, count + 1
            self._backlog.append((self._wall_clock(), now_s, event, self._left_out.pop(event.kind, 0)))
            self._lock.notify()

    def close(self) -> None:
        """Write what is left, and stop."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._thread.join()

    def __enter__(self) -> JsonlEvents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_all(self) -> None:
        while True:
            with self._lock:
                while not self._backlog and not self._closed:
                    self._lock.wait()
                if not self._backlog:
                    return
                wall_s, time_s, event, left_out = self._backlog.popleft()
            try:
                self._write(line(event, wall_s=wall_s, time_s=time_s, left_out=left_out))
            except Exception as error:  # a full disk, a folder that was removed: the device must go on
                if not self._failing:
                    _log.warning("events cannot be written to %s: %s", self._path, error)
                self._failing = True
                with self._lock:
                    self._left_out[event.kind] = self._left_out.get(event.kind, 0) + left_out + 1
            else:
                self._failing = False

    def _write(self, data: bytes) -> None:
        """Open, append, close: a file that somebody moved or removed is made again, and none is held open."""
        if self._torn:
            data = b"\n" + data  # the disk filled in the middle of a line
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if os.fstat(file).st_size + len(data) > self._half_bytes:
                os.close(file)
                file = -1
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            written = os.write(file, data)
        finally:
            if file >= 0:
                os.close(file)
        self._torn = written < len(data)
        if self._torn:
            raise OSError(f"only {written} of {len(data)} bytes were written")


def line(event: SessionEvent, *, wall_s: float, time_s: float, left_out: int = 0) -> bytes:
    """An event as one line of JSON, with the line's end.

    Args:
        event: what happened.
        wall_s: seconds since 1970.
        time_s: monotonic seconds.
        left_out: events of this kind that have no line, since the last that has one.
    """
    cause = event.cause
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "event",
        "event": event.kind,
        "wall_s": round(wall_s, 6),
        "time_s": round(time_s, 6),
        "rank": event.rank,
        "other_rank": event.other_rank,
        "message": event.message,
        "duration_ms": event.duration_ms,
        "reason": None if cause is None else cause.reason,
        "reading": None if cause is None or cause.reading is None else known(cause.reading),
        "left_out": left_out,
    }
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"


def known(reading: Reading) -> dict[str, Any]:
    """What a reading knows, as plain JSON types; of the work, how much it was."""
    data = {item.name: getattr(reading, item.name) for item in fields(reading)}
    if reading.work is not None:
        work = reading.work
        data["work"] = {
            "answers": len(work.answers),
            "arrivals_per_s": work.arrivals_per_s,
            "waiting": work.waiting,
        }
    data["rails_mw"] = dict(reading.rails_mw) or None
    return {name: value for name, value in data.items() if value is not None}
