"""Who answers when a rung cannot: a failing engine costs quality for a while, not answers.

    96 fails --> in memory: 48, 24, ... then 192, ...  --> answered: 96 is to blame, dropped and loaded again
                     all fail the same request         --> 96, or what else can be loaded, afresh
                     nothing of that can be            --> what could not be loaded lately, all the same
                     that fails, too                   --> once more what is in memory, then NoRungError

An engine is to blame only if another one answers the very request that it failed at. Otherwise the request itself may
be what no engine can run (a token outside the vocabulary), and sound engines would be thrown away for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from nsn_edge.errors import ClosedError, EngineError, InputError, NoRungError
from nsn_edge.runtimes.answers import Answer
from nsn_edge.runtimes.events import LOAD_FAILED, RUN_FAILED, SessionEvent, one_line
from nsn_edge.runtimes.graph_store import GraphStore, Lease
from nsn_edge.runtimes.telemetry.base import Clock

_MOST_FRESH = 2
"""Graphs loaded afresh for one request that may fail at it: one may do so by chance."""

_PAUSE_S = 1.0
"""Between two attempts to load a rung for requests that would be lost without it, at most; a fifth of the usual pause
where that is shorter."""


@dataclass
class Attempts:
    """What was tried for one request."""

    asked: int
    """The rung that should have answered."""
    errors: list[tuple[int, Exception]] = field(default_factory=list)
    """By rank, in the order tried."""
    failed: list[Lease] = field(default_factory=list)
    """Graphs that failed at the request. Not leased any more."""

    def error_of(self, lease: Lease) -> Exception:
        """What a graph raised at the request."""
        return next(error for rank, error in self.errors if rank == lease.rank)

    def forget(self) -> None:
        """Let go of everything. The errors' tracebacks lead back here: without this, graphs would live until the
        garbage collector looks."""
        self.errors.clear()
        self.failed.clear()

    def note(self, rank: int, error: Exception, lease: Lease | None = None) -> None:
        """One more failed."""
        self.errors.append((rank, error))
        if lease is not None:
            self.failed.append(lease)


class Failover:
    """Finds another rung for a request, and mends the one that failed. Called from any thread."""

    def __init__(
        self,
        store: GraphStore,
        *,
        retry_after_s: float,
        clock: Clock,
        reload: Callable[[int], None],
        tell: Callable[[SessionEvent], None],
    ) -> None:
        """
        Args:
            store: keeps the graphs.
            retry_after_s: between two attempts to load a rung that failed.
            clock: monotonic seconds.
            reload: loads a rung in the background.
            tell: hears of each rung that could not be loaded and of each whose graph was dropped.
        """
        self._store = store
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._reload = reload
        self._tell = tell
        self._lock = threading.Lock()
        self._tried_s: dict[int, float] = {}
        self._failed_afresh_s: dict[int, float] = {}
        self._unloadable: dict[int, tuple[float, str]] = {}
        self._last_resort = threading.Lock()

    def answer(self, attempts: Attempts, run: Callable[[Lease], Answer]) -> Answer:
        """Answer a request at which the asked rung failed.

        Args:
            attempts: the asked rung's failure is in it.
            run: runs the request on a graph, or raises what the engine raised.

        Raises:
            InputError: no engine can run it.
            ClosedError: the session was closed meanwhile.
            NoRungError: every rung that could be tried failed.
            Exception: what the asked rung raised, where there was no other to try.
        """
        answer = self._ask_resident(attempts, run)
        if answer is None:
            with self._last_resort:  # several requests fail at once: one loads, the others use what it loaded
                answer = self._ask_resident(attempts, run) or self._ask_afresh(attempts, run)
        if answer is None:
            answer = self._ask_again(attempts, run)
        if answer is None:
            raise _no_rung(attempts) from attempts.errors[0][1]
        for rank in {attempts.asked, *(lease.rank for lease in attempts.failed)}:
            if rank not in self._store.resident_ranks and self._may_load(rank):
                self._reload(rank)
        return answer

    def unloadable(self, rank: int) -> EngineError | None:
        """Why a rung could not be loaded, if that was lately: a request need not try and fail at it again."""
        with self._lock:
            failed_s, why = self._unloadable.get(rank, (0.0, ""))
            return EngineError(why) if why and self._clock() - failed_s < self._retry_after_s else None

    def note_unloadable(self, rank: int, error: Exception) -> None:
        """A rung could not be loaded just now. Of the error its words are kept: with itself whatever its traceback
        leads to, graphs among it, would stay."""
        why = one_line(error)
        with self._lock:
            now_s = self._clock()
            self._unloadable[rank] = now_s, why
            self._tried_s[rank] = now_s
        self._tell(SessionEvent(LOAD_FAILED, rank, why))

    def _ask_resident(self, attempts: Attempts, run: Callable[[Lease], Answer]) -> Answer | None:
        """The answer of a graph in memory that has not been tried; None if there is none."""
        for rank in (attempts.asked, *self._store.substitutes(attempts.asked)):
            lease = self._store.lease_resident(rank)
            if lease is None:
                continue
            try:
                if lease not in attempts.failed:
                    answer = run(lease)
                    self._blame(attempts)
                    return answer
            except InputError:
                raise
            except Exception as error:
                attempts.note(rank, error, lease)
            finally:
                self._store.release(lease)
        return None

    def _ask_afresh(self, attempts: Attempts, run: Callable[[Lease], Answer]) -> Answer | None:
        """Load the asked rung once more, or the next that can be loaded, and ask that. A request that fails at
        `_MOST_FRESH` such graphs is no reason to load another. Until one answers, the old graphs stay."""
        failed_afresh = 0
        for rank in self._to_load(attempts):
            try:
                lease = self._store.fresh(rank)
            except ClosedError:
                raise
            except Exception as error:
                attempts.note(rank, error)
                continue
            if lease is None:
                continue
            try:
                answer = run(lease)
                self._blame(attempts)
                self._store.adopt(lease)
                return answer
            except InputError:
                raise
            except Exception as error:
                attempts.note(rank, error)
                self._note_failed_afresh(rank)
                failed_afresh += 1
                if failed_afresh == _MOST_FRESH:
                    return None
            finally:
                self._store.release(lease)
        return None

    def _to_load(self, attempts: Attempts) -> list[int]:
        """Rungs to load afresh, the likeliest to answer first. Those that could not be loaded lately come last: before
        a request is lost, they are worth another try, if not every moment. What was loaded and failed at a request
        lately is left out: a request that no engine can run would have graphs loaded for ever."""
        failed = {lease.rank for lease in attempts.failed} - {attempts.asked}
        ranks = [rank for rank in (attempts.asked, *self._store.substitutes(attempts.asked)) if rank not in failed]
        ranks = [rank for rank in ranks if not self._failed_afresh_lately(rank) and not self._failed_just_now(rank)]
        return sorted(ranks, key=lambda rank: self.unloadable(rank) is not None)

    def _ask_again(self, attempts: Attempts, run: Callable[[Lease], Answer]) -> Answer | None:
        """Nothing else is left: what failed a moment ago may not fail now."""
        for rank in (attempts.asked, *self._store.substitutes(attempts.asked)):
            lease = self._store.lease_resident(rank)
            if lease is None:
                continue
            try:
                return run(lease)
            except InputError:
                raise
            except Exception as error:
                attempts.note(rank, error)
            finally:
                self._store.release(lease)
        return None

    def _blame(self, attempts: Attempts) -> None:
        """Drop what failed at a request that another graph answered, before that one is given back: what stands in must
        not be evicted for what is broken."""
        for lease in attempts.failed:
            if self._store.drop(lease):
                self._tell(SessionEvent(RUN_FAILED, lease.rank, one_line(attempts.error_of(lease))))

    def _failed_afresh_lately(self, rank: int) -> bool:
        with self._lock:
            failed_s = self._failed_afresh_s.get(rank)
            return failed_s is not None and self._clock() - failed_s < self._retry_after_s

    def _failed_just_now(self, rank: int) -> bool:
        with self._lock:
            failed_s, why = self._unloadable.get(rank, (0.0, ""))
            return bool(why) and self._clock() - failed_s < min(_PAUSE_S, self._retry_after_s / 5)

    def _note_failed_afresh(self, rank: int) -> None:
        with self._lock:
            self._failed_afresh_s[rank] = self._clock()

    def _may_load(self, rank: int) -> bool:
        """Whether the last attempt in the background is long enough ago; if so, this is one."""
        with self._lock:
            now_s = self._clock()
            before_s = self._tried_s.get(rank)
            if before_s is not None and now_s - before_s < self._retry_after_s:
                return False
            self._tried_s[rank] = now_s
            return True


def _no_rung(attempts: Attempts) -> Exception:
    """The one error, or one that names every rung tried."""
    if len(attempts.errors) == 1:
        return attempts.errors[0][1]
    tried = ", ".join(str(rank) for rank in dict.fromkeys(rank for rank, _ in attempts.errors))
    return NoRungError(
        f"no rung could answer (tried {tried}): {one_line(attempts.errors[0][1])}",
        "if other requests are answered, this one's values are what no engine can run",
    )
