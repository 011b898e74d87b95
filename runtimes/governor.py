"""The loop of a real application: read the device, ask the policy, switch the session.

    with EdgeSession.open(bundle) as session:
        policy = RungPolicy(load_policy("policy.toml"), session.ladder)
        with Governor(linux_telemetry(), policy, session):
            serve(session)                      # the rank follows battery and heat, in the background

An application with a loop of its own calls `tick()` instead of entering the context.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.runtimes.policy.base import Decision, PolicyState, RankPolicy
from nsn_edge.runtimes.telemetry.base import Clock, Reading, TelemetrySource
from nsn_edge.runtimes.telemetry.combine import Aged

_log = logging.getLogger(__name__)


class Switchable(Protocol):
    """What a governor moves: an `EdgeSession`, or a test's own. If it has `work() -> Work`, too, the policy sees that
    in each reading."""

    def switch(self, rank: int) -> Future[Any]:
        """Ask for a rung without blocking; the future raises what the loading raised."""
        ...


class Governor:
    """Keeps a session at the rung that the policy wants. Outlives every fault of sensors, policy and loading: each is
    logged when it begins, and the session stays at its rung."""

    def __init__(
        self,
        source: TelemetrySource,
        policy: RankPolicy,
        session: Switchable,
        *,
        interval_s: float = 1.0,
        max_age_s: float = 10.0,
        retry_after_s: float = 30.0,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            source: on the same clock; it is aged here, and may raise.
            policy: bound to the session's ladder.
            session: stays the caller's to close, after this governor.
            interval_s: between the ticks of the background thread.
            max_age_s: how long the last value of a silent sensor may be used.
            retry_after_s: when a rung that could not be loaded is tried again.
            clock: monotonic seconds.

        Raises:
            UsageError: `interval_s` is not positive, or `max_age_s` is negative.
        """
        if not interval_s > 0.0:
            raise UsageError(f"the interval of a governor is a positive number of seconds, not {interval_s}")
        self._source = Aged(source, max_age_s, clock)
        self._policy = policy
        self._session = session
        self._interval_s = interval_s
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._lock = threading.Lock()
        self._state = PolicyState()
        self._decision: Decision | None = None
        self._asked_rank: int | None = None
        self._asked: Future[Any] | None = None
        self._failed: tuple[int, float] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def decision(self) -> Decision | None:
        """The last decision, for a dashboard; None before the first tick."""
        return self._decision

    def tick(self) -> Decision:
        """Read, decide, and ask for the switch if the rank changed. Never waits for a load.

        Raises:
            Exception: the policy raised. Sensors and sessions do not raise through here.
        """
        with self._lock:
            decision = self._policy.decide(self._read(), self._state)
            self._state = decision.state
            self._decision = decision
            self._look_after_last_switch()
            if decision.rank != self._asked_rank and not self._failed_lately(decision.rank):
                self._ask(decision)
            return decision

    def start(self) -> None:
        """Tick in a background thread until `close`. A second call does nothing."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._loop, name="nsn-edge-governor", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread and wait for the tick under way. The session keeps its rung."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Governor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _loop(self) -> None:
        failing = False
        while not self._stop.is_set():
            try:
                self.tick()
                failing = False
            except Exception:  # an application's own policy may raise; the device must go on
                if not failing:
                    _log.exception("the policy failed, the rank stays")
                failing = True
            self._stop.wait(self._interval_s)

    def _read(self) -> Reading:
        """How the device is, and what the session did, if it counts that."""
        reading = self._source.read()
        work = getattr(self._session, "work", None)
        return reading if work is None else replace(reading, work=work())

    def _ask(self, decision: Decision) -> None:
        _log.info("rank %s -> %d: %s", self._asked_rank, decision.rank, decision.reason)
        self._asked_rank = decision.rank
        try:
            self._asked = self._session.switch(decision.rank)
        except Exception as error:
            self._note_failure(decision.rank, error)

    def _look_after_last_switch(self) -> None:
        """Find out whether the rung asked for could be loaded."""
        if self._asked is None or self._asked_rank is None or not self._asked.done():
            return
        asked, self._asked = self._asked, None
        error = None if asked.cancelled() else asked.exception()
        if error is not None:
            self._note_failure(self._asked_rank, error)

    def _note_failure(self, rank: int, error: BaseException) -> None:
        words = error.message if isinstance(error, NsnEdgeError) else repr(error)
        _log.warning("the session stays at its rung, rank %d cannot be loaded: %s", rank, words)
        self._failed = rank, self._clock()
        self._asked_rank = None

    def _failed_lately(self, rank: int) -> bool:
        return (
            self._failed is not None
            and rank == self._failed[0]
            and self._clock() - self._failed[1] < self._retry_after_s
        )
