"""Keep a session at the rung that a policy chooses from telemetry, while requests run.

    with Governor(session, RungPolicy(load_policy("policy.toml"), ladder), linux_telemetry()):
        ...                                     # read -> decide -> switch, every second, in the background

`step` does it once, for programs that have their own loop or clock.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.runtimes.policy import Decision, PolicyState, RankPolicy
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.telemetry import Reading, TelemetrySource

_log = logging.getLogger("nsn_edge.runtimes")


class Governor:
    """Reads, decides and switches. A context manager: the background thread lives as long as the block."""

    def __init__(
        self, session: EdgeSession, policy: RankPolicy, source: TelemetrySource, interval_s: float = 1.0
    ) -> None:
        """
        Args:
            session: to be kept at the right rung; it stays the caller's to close.
            policy: decides.
            source: of readings; one that raises counts as knowing nothing.
            interval_s: between two decisions of the background thread.

        Raises:
            UsageError: the interval is not positive.
        """
        if not interval_s > 0:
            raise UsageError(f"the interval between decisions is a positive number of seconds, not {interval_s}")
        self.session = session
        self._policy = policy
        self._source = source
        self._interval_s = interval_s
        self._state = PolicyState()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def step(self) -> Decision:
        """One reading, one decision, and a switch if the session is elsewhere. Waits for nothing but the sensors; a
        rung that failed to load is asked for again at the next step. One thread at a time may call it.

        Raises:
            UsageError: the policy chose a rung that does not fit the session's memory budget.
            EngineError: the session is closed.
        """
        decision = self._policy.decide(self._read(), self._state)
        self._state = decision.state
        if decision.rank != self.session.rank:
            self.session.switch(decision.rank)
        return decision

    def __enter__(self) -> Governor:
        self._thread = threading.Thread(target=self._run, name="nsn-edge-governor", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.step()
            except NsnEdgeError as error:
                _log.warning("the rung stays as it is: %s", error)
            self._stop.wait(self._interval_s)

    def _read(self) -> Reading:
        try:
            return self._source.read()
        except Exception:
            _log.exception("a telemetry source failed; its reading counts as unknown")
            return Reading(time.monotonic())
