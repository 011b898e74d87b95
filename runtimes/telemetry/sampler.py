"""A source that is read in the background, so that nobody ever waits for a sensor.

    with Sampler(device_telemetry()) as sampler:      one thread, one reading a second
        sampler.read()                                 the latest, aged, at once

    the thread     read the source --> remember --> wait          may hang for minutes in a driver
    any thread     what is remembered and young enough            never waits for the source

What hangs, raises or dies degrades to unknown by age. A thread that died is started again. One that hangs inside the
source cannot be stopped, and a second one may not enter the same source, as most are not made for that; with `reopen`
a new source is made, and the old one is left to its thread, which ends when its read does.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.telemetry.base import Clock, Reading, TelemetrySource
from nsn_edge.runtimes.telemetry.combine import Guarded, checked_age_s
from nsn_edge.runtimes.telemetry.memory import Memory

_log = logging.getLogger(__name__)

MOST_HANGING = 4
"""Threads left behind in sources that hang, at most; then it waits until one of them returns."""


class _Worker:
    """One thread and the source that it alone reads."""

    def __init__(self, make: Callable[[], TelemetrySource]) -> None:
        self.make = make
        """Gives the source, in the thread: opening a device may hang as reading it may."""
        self.source: Guarded | None = None
        self.thread: threading.Thread | None = None
        self.entered_s: float | None = None
        """When it went into the source; None outside."""
        self.hang_told = False
        """Whether it was logged that it hangs there."""

    def is_alive(self) -> bool:
        """Whether its thread is."""
        return self.thread is not None and self.thread.is_alive()


class Sampler:
    """A `TelemetrySource` that answers at once. A context manager: it holds a thread."""

    def __init__(
        self,
        source: TelemetrySource,
        interval_s: float = 1.0,
        *,
        max_age_s: float = 10.0,
        hangs_after_s: float | None = None,
        reopen: Callable[[], TelemetrySource] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            source: on the same clock. Its thread alone reads it.
            interval_s: between the end of a reading and the next one.
            max_age_s: how long a value may be used.
            hangs_after_s: a read that takes longer hangs; `max_age_s` by default.
            reopen: makes a new source in place of one that hangs, in the new one's thread. Without it, everything is
                unknown until the source returns.
            clock: monotonic seconds.

        Raises:
            UsageError: `interval_s` is not positive, or `max_age_s` is negative.
        """
        if not interval_s > 0.0:
            raise UsageError(f"the interval of a sampler is a positive number of seconds, not {interval_s}")
        self._interval_s = interval_s
        self._hangs_after_s = max_age_s if hangs_after_s is None else hangs_after_s
        self._memory = Memory(checked_age_s(max_age_s))
        self._reopen = reopen
        self._clock = clock
        self._lock = threading.Lock()
        self._worker = _Worker(lambda: source)
        self._left_behind: list[_Worker] = []
        self._first = threading.Event()
        self._stop = threading.Event()
        self._running = False
        self._started_s = 0.0

    @property
    def hanging(self) -> int:
        """Threads that were left behind in a source that hangs."""
        with self._lock:
            return sum(worker.is_alive() for worker in self._left_behind)

    def read(self) -> Reading:
        """The latest values that are young enough, and how old the oldest is. Never waits for the source, never raises.

        It also looks after the thread: one that died or hangs is replaced.
        """
        now = self._clock()
        with self._lock:
            if self._running:
                self._look_after_thread(now)
            return self._memory.at(now)

    def start(self, first_within_s: float | None = None) -> None:
        """Start the thread, and wait a moment for its first reading, so that nobody begins with nothing. A second call
        does nothing.

        Args:
            first_within_s: how long to wait at most; one interval by default.
        """
        with self._lock:
            if not self._running:
                self._running = True
                self._stop.clear()
                self._first.clear()
                if not self._worker.is_alive():  # left hanging by `close`: it goes on by itself
                    self._start_thread(self._clock())
        self._first.wait(self._interval_s if first_within_s is None else first_within_s)

    def close(self, within_s: float = 1.0) -> None:
        """Stop the thread. One that hangs in its source is left behind after this time; it ends with its read, and does
        not keep the process alive. What was read goes on ageing. Closing twice is no error."""
        with self._lock:
            self._running = False
            self._stop.set()
            thread = self._worker.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(within_s)
            if thread.is_alive():
                _log.warning("a telemetry source hangs; its thread is left behind")

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, worker: _Worker) -> None:
        with contextlib.suppress(SystemExit):  # ends a thread without a word; the next `read` starts another
            self._loop(worker)

    def _loop(self, worker: _Worker) -> None:
        while not self._stop.is_set():
            with self._lock:
                if worker is not self._worker:
                    return
                worker.entered_s = self._clock()
                worker.hang_told = False
            try:
                worker.source = worker.source or Guarded(worker.make(), self._clock)
                reading = worker.source.read()
            except Exception as error:  # the source could not be made: as if it had raised
                _log.warning("no telemetry source can be made, its values are unknown: %r", error)
                reading = Reading(self._clock())
            with self._lock:
                worker.entered_s = None
                if worker is not self._worker:
                    return  # it hung, and another one reads now
                self._memory.add(reading, self._clock())
            self._first.set()
            self._stop.wait(self._interval_s)

    def _start_thread(self, now: float) -> None:
        self._started_s = now
        worker = self._worker
        worker.entered_s = None
        thread = threading.Thread(target=self._run, args=(worker,), name="nsn-edge-sampler", daemon=True)
        worker.thread = thread
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more threads; tried again with a later read
            worker.thread = None
            _log.warning("no thread for telemetry, its values are unknown: %r", error)

    def _look_after_thread(self, now: float) -> None:
        if now - self._started_s < self._interval_s:
            return  # no storm of threads
        worker = self._worker
        if not worker.is_alive():
            _log.warning("the telemetry thread died; starting it again")
            self._start_thread(now)
        elif worker.entered_s is not None and now - worker.entered_s > self._hangs_after_s:
            self._left_behind = [left for left in self._left_behind if left.is_alive()]
            if self._reopen is not None and len(self._left_behind) < MOST_HANGING:
                _log.warning("a telemetry source hangs; a new one takes its place")
                self._left_behind.append(worker)
                self._worker = _Worker(self._reopen)
                self._start_thread(now)
            elif not worker.hang_told:
                _log.warning("a telemetry source hangs; its values are unknown until it returns")
                worker.hang_told = True
