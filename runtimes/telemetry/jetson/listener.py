"""A source that listens in a thread of its own: what it heard last is its reading, and nobody ever waits for it.

    thread:  _listen() hears until its end --> pause, longer after each failure --> _listen() --> ...
    read():  what was heard last, while it is young; then nothing

For sources that speak when they like (a child process, a socket), as opposed to files, which answer when asked.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.telemetry.base import Clock, Reading

_log = logging.getLogger(__name__)

PAUSES_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Before listening again, after the first failure, the second, ..."""

_HEARD_ENOUGH = 10
"""Readings after which a source counts as one that works, so that its next end is a first failure again."""

_Listener = TypeVar("_Listener", bound="Listener")


class Listener(ABC):
    """What the two listening sources have in common. A context manager: it holds a thread from the first `read()` (or
    `start()`) to `close()`."""

    def __init__(self, clock: Clock = time.monotonic, max_age_s: float = 5.0, pauses_s: Sequence[float] = PAUSES_S):
        """
        Args:
            clock: monotonic seconds.
            max_age_s: how long what was heard is given as known.
            pauses_s: before listening again, by the number of failures in a row; the last one from then on.

        Raises:
            UsageError: `max_age_s` is negative or not a number, or there is no pause.
        """
        if not max_age_s >= 0.0:
            raise UsageError(f"the largest age of a reading is 0 seconds or more, not {max_age_s}")
        if not pauses_s:
            raise UsageError("a source that listens again needs at least one pause", "(1.0, 60.0) for example")
        self._clock = clock
        self._max_age_s = max_age_s
        self._pauses_s = tuple(pauses_s)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closing = threading.Event()
        self._first = threading.Event()
        self._latest: Reading | None = None
        self._heard = 0

    @abstractmethod
    def _listen(self) -> None:
        """Hear until the source ends or `_closing` is set; `_hear` each reading. May raise whatever the source does."""

    def _interrupt(self) -> None:  # noqa: B027  a source that notices `_closing` by itself needs nothing more
        """Wake `_listen` up, as `_closing` has been set."""

    def __enter__(self: _Listener) -> _Listener:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin to listen. Starting twice, or after `close()`, is no error and does nothing."""
        with self._starting:
            if self._thread is None and not self._closing.is_set():
                # A daemon: a source that hangs in somebody's library must not keep the application from ending.
                self._thread = threading.Thread(target=self._run, name=f"nsn-edge-{type(self).__name__}", daemon=True)
                self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop listening and let go of what is held, waiting at most so long. Closing twice is no error."""
        self._closing.set()
        self._interrupt()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
        self._latest = None

    def wait(self, timeout_s: float) -> bool:
        """Wait for the first reading; whether there is one. For a person who asks once; `read` does not need it."""
        self.start()
        return self._first.wait(timeout_s)

    @property
    def heard(self) -> int:
        """How many readings were heard."""
        return self._heard

    def read(self) -> Reading:
        """What was heard last, with its age, while that is at most `max_age_s`; nothing else. Never waits."""
        self.start()
        now = self._clock()
        latest = self._latest
        if latest is None or now - latest.time_s > self._max_age_s:
            return Reading(now)
        return replace(latest, time_s=now, age_s=max(now - latest.time_s, 0.0))

    def _hear(self, reading: Reading) -> None:
        """Keep a reading, with the time at which it came."""
        if not self._closing.is_set():
            self._latest = reading
            self._heard += 1
            self._first.set()

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            before = self._heard
            try:
                self._listen()
                why = "it ended"
            except (Exception, SystemExit) as error:  # a library may raise anything, and even want the process to end
                why = repr(error)
            failures = 1 if self._heard - before >= _HEARD_ENOUGH else failures + 1
            if self._closing.is_set():
                return
            if failures == 1:
                _log.warning("%s is silent (%s); listening again after a pause", type(self).__name__, why)
            self._closing.wait(self._pauses_s[min(failures, len(self._pauses_s)) - 1])
