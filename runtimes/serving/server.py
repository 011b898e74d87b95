"""A session behind a bounded queue, for senders that come at once and cannot wait for ever.

    with EdgeSession.open("bundle", prefetch=True) as session, Server(session) as server:
        future = server.submit(inputs, deadline_ms=50)
        future.result()                # an Answer, or an error with a name: DeadlineError, NoRungError, ...

    submit --> [ queue ] --> worker threads --> EdgeSession.run --> Future[Answer]

Every request that `submit` took ends: with an answer, an error or its cancellation. A `Governor` moves a server as it
moves a session, and the policy then sees the queue.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import NamedTuple

from nsn_edge.errors import ClosedError, DeadlineError, QueueFullError, UsageError
from nsn_edge.ladder import RankLadder
from nsn_edge.runtimes.answers import Answer, Switch
from nsn_edge.runtimes.engines import Array
from nsn_edge.runtimes.events import EXPIRED, REJECTED, Cause, Listener, SessionEvent, log_event, tell
from nsn_edge.runtimes.policy.costs import RungCosts
from nsn_edge.runtimes.serving.request_queue import Pending, Request, RequestQueue
from nsn_edge.runtimes.serving.rung_in_time import rung_in_time
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.telemetry.base import Clock, Work
from nsn_edge.runtimes.workload import WorkMeter

_log = logging.getLogger("nsn_edge.runtimes")

ANSWERED = "answered"
FAILED = "failed"
CANCELLED = "cancelled"
ABANDONED = "abandoned"
OUTCOMES = (ANSWERED, FAILED, CANCELLED, ABANDONED, EXPIRED, REJECTED)
"""How a request can end; `abandoned`: the server was closed before its turn."""


@dataclass(frozen=True)
class ServerSettings:
    """How much may happen at once."""

    workers: int = 1
    """Requests that run at once. Each runs on its engine's threads, one by default: with as many workers as cores, and
    one thread each, a processor answers most."""
    capacity: int = 64
    """Requests that may wait, besides those that run."""
    wait_s: float = 0.0
    """How long `submit` waits for room in a full queue. 0 refuses at once; infinite waits as long as it takes."""

    def __post_init__(self) -> None:
        for name in ("workers", "capacity"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"the {name} of a server are a whole number from 1, not {value}")
        if not self.wait_s >= 0.0:
            raise UsageError(f"the wait_s of a server are 0 seconds or more, not {self.wait_s}")


class Ended(NamedTuple):
    """How one request ended."""

    outcome: str
    """One of `OUTCOMES`."""
    waited_ms: float
    """In the queue."""
    missed: bool
    """Whether it had a deadline and was not answered by then."""


class Server:
    """Every method may be called from any thread."""

    def __init__(
        self,
        session: EdgeSession,
        settings: ServerSettings | None = None,
        *,
        costs: RungCosts | None = None,
        listener: Listener = log_event,
        observer: Callable[[Ended], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            session: answers; stays the caller's to close, after this.
            settings: `ServerSettings()` by default.
            costs: what each rung costs on this device. With them a request with a deadline is answered by the best rung
                in memory, up to the current one, that is predicted to keep it.
            listener: hears of requests that were refused or expired.
            observer: hears how each request ended, in the thread that ended it. What it raises is logged.
            clock: monotonic seconds.
        """
        self.session = session
        """What answers."""
        self.settings = settings or ServerSettings()
        """How much may happen at once."""
        self._costs = costs
        self._listener = listener
        self._observer = observer
        self._clock = clock
        self._meter = WorkMeter(clock=clock)
        self._queue = RequestQueue(self.settings.capacity)
        self._workers = [
            threading.Thread(target=self._work, name=f"nsn-edge-worker-{number}", daemon=True)
            for number in range(self.settings.workers)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue now."""
        return len(self._queue)

    @property
    def rank(self) -> int:
        """The session's current rank."""
        return self.session.rank

    @property
    def ladder(self) -> RankLadder:
        """The session's: what a policy here chooses from."""
        return self.session.ladder

    def submit(
        self, inputs: Mapping[str, Array], *, deadline_ms: float | None = None, rank: int | None = None
    ) -> Future[Answer]:
        """Queue a request.

        Args:
            inputs: one array per input of the manifest. Not copied: leave them as they are until the future is done.
            deadline_ms: from now. A request that still waits then is not run. One that runs already is answered, late.
            rank: of the rung that shall answer; by default the current one, or with a deadline and known costs one that
                keeps it. If that rung fails the next one answers, and the answer says so.

        Returns:
            A future that gives the answer, or raises `DeadlineError`, `ClosedError` (the server was closed before its
            turn) or what `EdgeSession.run` raised. Cancelling it works until it runs.

        Raises:
            QueueFullError: as many requests wait as may.
            ClosedError: the server is closed.
            UsageError: the deadline is no number.
        """
        if deadline_ms is not None and math.isnan(deadline_ms):
            raise UsageError(f"a deadline is a number of milliseconds, not {deadline_ms}")
        now_s = self._clock()
        left_s = math.inf if deadline_ms is None else deadline_ms / 1e3
        self._meter.arrived()
        pending = Pending(self._cancelled)
        request = Request(inputs, rank, now_s, now_s + left_s)
        if len(self._queue) >= self._queue.capacity:
            self._expire(now_s)  # those hold places that others could use
        try:
            self._queue.put(pending, request, min(self.settings.wait_s, max(left_s, 0.0)))
        except QueueFullError as error:
            tell(self._listener, SessionEvent(REJECTED, None, error.message))
            self._ended(REJECTED, request, missed=deadline_ms is not None)
            raise
        return pending

    def switch(self, rank: int, *, cause: Cause | None = None) -> Future[Switch]:
        """As `EdgeSession.switch`."""
        return self.session.switch(rank, cause=cause)

    def work(self) -> Work:
        """What was asked of this server since the last call, and how many requests wait."""
        arrived = self._meter.take().arrivals_per_s
        return replace(self.session.work(), arrivals_per_s=arrived, waiting=len(self._queue))

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, and wait until every one that was taken has ended.

        Args:
            drain: answer what waits. Otherwise only what runs already is answered, and the rest gets `ClosedError`.
        """
        self._queue.close()
        if not drain:
            for pending in self._queue.clear():
                if pending.set_running_or_notify_cancel():
                    pending.set_exception(ClosedError("the server was closed before this request's turn"))
                    self._observe(Ended(ABANDONED, 0.0, False))
        for worker in self._workers:
            if worker is not threading.current_thread():  # a future's callback may close
                worker.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=error is None)

    def _work(self) -> None:
        while self._serve_next():
            pass

    def _serve_next(self) -> bool:
        """Wait for a request and end it; False when there will be no more. Its arrays are let go of on return."""
        taken = self._queue.take()
        if taken is None:
            return False
        try:
            self._serve(*taken)
            self._expire(self._clock())
        except BaseException:  # a future's callback may raise anything; every future has ended, and this thread goes on
            _log.exception("what a request's end called failed")
        return True

    def _serve(self, pending: Pending, request: Request) -> None:
        now_s = self._clock()
        if now_s >= request.deadline_s:
            self._end_expired(pending, request, now_s)
            return
        if not pending.set_running_or_notify_cancel():
            self._ended(CANCELLED, request)
            return
        answer = self._answer(request, now_s)
        if isinstance(answer, BaseException):
            pending.set_exception(answer)
            self._ended(FAILED, request, now_s, missed=request.deadline_s < math.inf)
        else:
            late = request.deadline_s < math.inf and self._clock() > request.deadline_s
            pending.set_result(replace(answer, waited_ms=(now_s - request.arrived_s) * 1e3))
            self._ended(ANSWERED, request, now_s, missed=late)

    def _answer(self, request: Request, now_s: float) -> Answer | BaseException:
        """In a frame of its own: the error's traceback leads here, and must not lead to the future that holds it."""
        try:
            return self.session.run(request.inputs, self._rank_for(request, now_s), fall_back=True)
        except BaseException as error:
            return error

    def _rank_for(self, request: Request, now_s: float) -> int | None:
        if request.rank is not None or self._costs is None or request.deadline_s == math.inf:
            return request.rank
        return rung_in_time(
            self._costs,
            (request.deadline_s - now_s) * 1e3,
            ceiling=self.session.rank,
            resident=self.session.resident_ranks,
        )

    def _expire(self, now_s: float) -> None:
        for pending, request in self._queue.take_expired(now_s):
            self._end_expired(pending, request, now_s)

    def _cancelled(self, pending: Pending) -> None:
        request = self._queue.remove(pending)
        if request is not None:
            self._ended(CANCELLED, request)

    def _end_expired(self, pending: Pending, request: Request, now_s: float) -> None:
        if not pending.set_running_or_notify_cancel():
            self._ended(CANCELLED, request)
            return
        waited_ms = (now_s - request.arrived_s) * 1e3
        message = f"the deadline passed while the request waited for {waited_ms:.0f} ms"
        pending.set_exception(DeadlineError(message, "allow more time, send less, or let a lower rung answer"))
        self._ended(EXPIRED, request, now_s, missed=True)
        tell(self._listener, SessionEvent(EXPIRED, None, message, duration_ms=waited_ms))

    def _ended(self, outcome: str, request: Request, began_s: float | None = None, *, missed: bool = False) -> None:
        if self._observer is not None:
            until_s = self._clock() if began_s is None else began_s
            self._observe(Ended(outcome, (until_s - request.arrived_s) * 1e3, missed))

    def _observe(self, ended: Ended) -> None:
        if self._observer is not None:
            try:
                self._observer(ended)
            except Exception:
                _log.exception("an observer failed on %s", ended)
