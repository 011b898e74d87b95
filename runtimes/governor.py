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
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.events import (
    GOVERNOR_BACK,
    GOVERNOR_FAILED,
    TELEMETRY_BACK,
    TELEMETRY_LOST,
    Cause,
    Listener,
    SessionEvent,
    one_line,
    tell,
)
from nsn_edge.runtimes.policy.base import Decision, PolicyState, RankPolicy
from nsn_edge.runtimes.telemetry.base import FIELDS, Clock, Reading, TelemetrySource
from nsn_edge.runtimes.telemetry.combine import Aged

_log = logging.getLogger(__name__)


class Switchable(Protocol):
    """What a governor moves: an `EdgeSession`, a `Server`, or a test's own. If it has `work() -> Work`, too, the policy
    sees that in each reading; if it has a `ladder` and a `rank`, the governor knows what else to try when a rung cannot
    be loaded."""

    def switch(self, rank: int, *, cause: Cause | None = None) -> Future[Any]:
        """Ask for a rung without blocking; the future raises what the loading raised."""
        ...


class Governor:
    """Keeps a session at the rung that the policy wants, or at the nearest that can be loaded. Outlives every fault of
    sensors, policy and loading: each is told when it begins and when it ends."""

    def __init__(
        self,
        source: TelemetrySource,
        policy: RankPolicy,
        session: Switchable,
        *,
        interval_s: float = 1.0,
        max_age_s: float = 10.0,
        retry_after_s: float = 30.0,
        listener: Listener | None = None,
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
            listener: hears when sensors fall silent or the policy fails, and when they are back.
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
        self._listener = listener
        self._clock = clock
        self._lock = threading.RLock()  # a switch may fail at once, in the tick that asks for it
        self._state = PolicyState()
        self._decision: Decision | None = None
        self._reading: Reading | None = None
        self._ever_known: frozenset[str] = frozenset()
        self._silent: frozenset[str] = frozenset()
        self._standing_rank: int | None = getattr(session, "rank", None)
        self._asked_rank: int | None = None
        self._asked: Future[Any] | None = None
        self._failed_s: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def decision(self) -> Decision | None:
        """The last decision, for a dashboard; None before the first tick."""
        return self._decision

    @property
    def reading(self) -> Reading | None:
        """What the last decision was made of; None before the first tick."""
        return self._reading

    def tick(self) -> Decision:
        """Read, decide, and ask for the switch if the rank changed. Never waits for a load.

        Raises:
            Exception: the policy raised. Sensors and sessions do not raise through here.
        """
        with self._lock:
            reading = self._reading = self._read()
            self._tell_outages(reading)
            decision = self._policy.decide(reading, self._state)
            self._state = decision.state
            self._decision = decision
            self._move()
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
            except BaseException as error:  # even SystemExit, from somebody's driver: the device must go on
                if not failing:
                    _log.exception("the policy failed, the rank stays")
                    self._tell(GOVERNOR_FAILED, one_line(error))
                failing = True
            else:
                if failing:
                    self._tell(GOVERNOR_BACK, "the policy decides again")
                failing = False
            self._stop.wait(self._interval_s)

    # --- what is known -------------------------------------------------------------------------------------------

    def _read(self) -> Reading:
        """How the device is, and what the session did, if it counts that."""
        reading = self._source.read()
        work = getattr(self._session, "work", None)
        return reading if work is None else replace(reading, work=work())

    def _tell_outages(self, reading: Reading) -> None:
        """A quantity that was known once and is unknown now is an outage, whatever its cause."""
        known = frozenset(name for name in FIELDS if getattr(reading, name) is not None)
        self._ever_known |= known
        silent = self._ever_known - known
        if silent - self._silent:
            self._tell(TELEMETRY_LOST, f"unknown now: {', '.join(sorted(silent - self._silent))}")
        if self._silent - silent:
            self._tell(TELEMETRY_BACK, f"known again: {', '.join(sorted(self._silent - silent))}")
        self._silent = silent

    # --- where the session goes ----------------------------------------------------------------------------------

    def _move(self) -> None:
        """Ask for the rung that the decision wants, or for the next best one if that could not be loaded lately."""
        self._look_after_last_switch()
        decision = self._decision
        if decision is None:
            return
        for rank in self._preferred(decision.rank):
            if rank == self._asked_rank or (rank == self._standing_rank and rank != decision.rank):
                return  # on its way, or no better than where the session stands
            if not self._failed_lately(rank):
                self._ask(rank, decision)
                return

    def _preferred(self, wanted: int) -> Iterator[int]:
        """The rung wanted; failing that the lower ones, nearest first, which keep the policy's limit; failing those the
        higher ones, nearest first. Where the session stands is one of them."""
        yield wanted
        ladder = getattr(self._session, "ladder", None)
        if ladder is not None:
            yield from (rank for rank in reversed(ladder.ranks) if rank < wanted)
            yield from (rank for rank in ladder.ranks if rank > wanted)

    def _ask(self, rank: int, decision: Decision) -> None:
        reason = decision.reason
        if rank != decision.rank:
            reason = f"{reason}; rank {decision.rank} cannot be loaded"
        _log.info("rank %s -> %d: %s", self._standing_rank, rank, reason)
        self._asked_rank = rank
        try:
            asked = self._asked = self._session.switch(rank, cause=Cause(reason, self._reading))
        except Exception as error:
            self._note_failure(rank, error)
            self._move()
        else:
            asked.add_done_callback(self._done)

    def _done(self, switch: Future[Any]) -> None:
        """In whichever thread ended the switch: if the rung could not be loaded, the next one is asked for at once."""
        with self._lock:
            if switch is self._asked and not switch.cancelled() and switch.exception() and not self._stop.is_set():
                self._move()

    def _look_after_last_switch(self) -> None:
        """Find out whether the rung asked for could be loaded."""
        if self._asked is None or self._asked_rank is None or not self._asked.done():
            return
        asked, self._asked = self._asked, None
        error = None if asked.cancelled() else asked.exception()
        if error is not None:
            self._note_failure(self._asked_rank, error)
        else:
            self._failed_s.pop(self._asked_rank, None)
            self._standing_rank = self._asked_rank

    def _note_failure(self, rank: int, error: BaseException) -> None:
        _log.warning("the session stays at its rung, rank %d cannot be loaded: %s", rank, one_line(error))
        self._failed_s[rank] = self._clock()
        self._asked_rank, self._asked = self._standing_rank, None

    def _failed_lately(self, rank: int) -> bool:
        failed_s = self._failed_s.get(rank)
        return failed_s is not None and self._clock() - failed_s < self._retry_after_s

    def _tell(self, kind: str, message: str) -> None:
        if self._listener is not None:
            tell(self._listener, SessionEvent(kind, None, message))
