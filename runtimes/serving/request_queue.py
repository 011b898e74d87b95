"""A bounded queue of requests: first come, first served, and that holds for those who wait for room, too.

put   --> [ oldest ... newest ] --> take
full: the sender waits in a line of its own, or hears `QueueFullError` at once
cancelled and expired requests leave their place at once
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from nsn_edge.errors import ClosedError, QueueFullError
from nsn_edge.runtimes.answers import Answer
from nsn_edge.runtimes.engines import Array


@dataclass(frozen=True)
class Request:
    """What was asked, and until when."""

    inputs: Mapping[str, Array]
    """One array per input."""
    rank: int | None
    """Asked for by the sender."""
    arrived_s: float
    """On the server's clock."""
    deadline_s: float
    """On the server's clock; infinite where there is none."""


class Pending(Future[Answer]):
    """A request's future. Cancelling it gives its place in the queue back."""

    def __init__(self, on_cancel: Callable[[Pending], None]) -> None:
        super().__init__()
        self._on_cancel = on_cancel  # no callback of the future itself: that would be a cycle, for the collector

    def cancel(self) -> bool:
        """As every future's."""
        cancelled = super().cancel()
        if cancelled:
            self._on_cancel(self)
        return cancelled


class RequestQueue:
    """Every method may be called from any thread. Nothing here ends a future: that runs the sender's callbacks, which
    must not happen under the lock."""

    def __init__(self, capacity: int) -> None:
        """
        Args:
            capacity: how many requests may wait.
        """
        self._capacity = capacity
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._freed = threading.Condition(lock)
        self._waiting: OrderedDict[Pending, Request] = OrderedDict()  # a dict would search its front for gaps
        self._line: deque[object] = deque()
        self._deadlines = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def capacity(self) -> int:
        """How many requests may wait."""
        return self._capacity

    def put(self, pending: Pending, request: Request, wait_s: float) -> None:
        """Append a request, waiting for room so long if need be.

        Raises:
            QueueFullError: there was no room.
            ClosedError: nothing is taken any more.
        """
        with self._filled:
            if not self._closed and (self._line or len(self._waiting) >= self._capacity):
                self._wait_for_room(wait_s)
            if self._closed:
                raise ClosedError("the server was closed")
            self._waiting[pending] = request
            self._deadlines += request.deadline_s < math.inf
            self._filled.notify()

    def take(self) -> tuple[Pending, Request] | None:
        """The oldest request, when there is one; None when there is none and never will be again."""
        with self._filled:
            while not self._waiting:
                if self._closed:
                    return None
                self._filled.wait()
            pending, request = self._waiting.popitem(last=False)
            self._left(request)
            return pending, request

    def take_expired(self, now_s: float) -> list[tuple[Pending, Request]]:
        """The requests whose deadline has passed, oldest first."""
        if not self._deadlines:  # read without the lock: most queues have no deadlines, and the next call will see
            return []
        with self._filled:
            expired = [(pending, request) for pending, request in self._waiting.items() if now_s >= request.deadline_s]
            for pending, request in expired:
                del self._waiting[pending]
                self._left(request)
            return expired

    def remove(self, pending: Pending) -> Request | None:
        """Forget a request, if it still waits, and give it back."""
        with self._filled:
            request = self._waiting.pop(pending, None)
            if request is not None:
                self._left(request)
            return request

    def close(self) -> None:
        """Take nothing any more; what waits stays until it is taken."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()
            self._freed.notify_all()

    def clear(self) -> list[Pending]:
        """Forget everything that waits, and give it back."""
        with self._filled:
            rest = list(self._waiting)
            self._waiting.clear()
            self._deadlines = 0
            self._freed.notify_all()
            return rest

    def _left(self, request: Request) -> None:
        self._deadlines -= request.deadline_s < math.inf
        if self._line:
            self._freed.notify_all()

    def _wait_for_room(self, wait_s: float) -> None:
        """Until it is this sender's turn and there is room. The lock is held."""
        token = object()
        self._line.append(token)
        try:
            self._freed.wait_for(
                lambda: self._closed or (self._line[0] is token and len(self._waiting) < self._capacity),
                None if wait_s == math.inf else wait_s,
            )
            if not self._closed and (self._line[0] is not token or len(self._waiting) >= self._capacity):
                raise QueueFullError(
                    f"{len(self._waiting)} requests wait already, as many as may",
                    "send less, try again later, or set a larger capacity or more workers",
                )
        finally:
            self._line.remove(token)
            self._freed.notify_all()  # the next in the line may have waited for this one alone
