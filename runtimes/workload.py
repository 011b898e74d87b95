"""What was asked of a session lately, counted where the requests pass and handed to the policy with each reading.

meter.arrived()                    a request came in
meter.answered(96, 4.2)            ... and was answered at rank 96 in 4.2 ms
meter.take()                       Work: the answers since the last call, arrivals per second
"""

from __future__ import annotations

import threading
import time
from collections import deque

from nsn_edge.runtimes.telemetry.base import Answered, Clock, Work

_REMEMBERED_ANSWERS = 1024
"""Of a busy session the newest: enough for a 99th percentile, and 100 KB at most if nobody ever asks."""
_WINDOW_S = 10.0
"""Over which arrivals are averaged."""
_MARKS = 10
"""At most so many counts are remembered in a window."""


class WorkMeter:
    """Counts arrivals and remembers answers. Every method may be called from any thread; none waits for I/O."""

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        """
        Args:
            clock: monotonic seconds.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: deque[Answered] = deque(maxlen=_REMEMBERED_ANSWERS)
        self._arrived = 0
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def arrived(self) -> None:
        """A request came in."""
        with self._lock:
            self._arrived += 1

    def answered(self, rank: int, latency_ms: float) -> None:
        """A request was answered."""
        with self._lock:
            self._answers.append(Answered(rank, latency_ms))

    def take(self, waiting: int | None = None) -> Work:
        """The answers since the last call, and arrivals per second over the last ten seconds (or since the last call,
        if that is longer ago).

        Args:
            waiting: requests in the queue now, where there is one.
        """
        with self._lock:
            now_s = self._clock()
            answers, self._answers = self._answers, deque(maxlen=_REMEMBERED_ANSWERS)
            while len(self._marks) > 1 and now_s - self._marks[1][0] >= _WINDOW_S:
                self._marks.popleft()
            then_s, then = self._marks[0]
            rate = (self._arrived - then) / (now_s - then_s) if now_s > then_s else None
            if now_s - self._marks[-1][0] >= _WINDOW_S / _MARKS:
                self._marks.append((now_s, self._arrived))
        return Work(tuple(answers), rate, waiting)
