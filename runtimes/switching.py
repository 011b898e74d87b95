"""How the current rank of a session changes: at once where the rung is in memory, else when it has been loaded.

switch(96)   in memory: a number changes under a lock
             cold: the loader loads 96; if nothing was asked for since, 96 becomes current
afterwards   with prefetch: the loader, when it has nothing else to do, loads the neighbours of 96
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from nsn_edge.errors import ClosedError
from nsn_edge.runtimes.answers import Switch
from nsn_edge.runtimes.background import Background
from nsn_edge.runtimes.events import SWITCHED, Cause, SessionEvent
from nsn_edge.runtimes.failover import Failover
from nsn_edge.runtimes.graph_store import GraphStore


class Switcher:
    """Moves the current rank, and loads in the background. Every method may be called from any thread."""

    def __init__(
        self,
        store: GraphStore,
        background: Background,
        failover: Failover,
        *,
        prefetch_among: tuple[int, ...],
        tell: Callable[[SessionEvent], None],
    ) -> None:
        """
        Args:
            store: keeps the graphs.
            background: loads them.
            failover: knows what could not be loaded.
            prefetch_among: the rungs, rising, of which the current one's neighbours are kept in memory; none to load
                only what is asked for.
            tell: hears of switches.
        """
        self._store = store
        self._background = background
        self._failover = failover
        self._prefetch_among = prefetch_among
        self._tell = tell
        self._lock = threading.Lock()
        self._last_asked = 0

    def begin(self, rank: int) -> None:
        """Load a rung here and now and make it the current one.

        Raises:
            EngineError: it cannot be loaded.
        """
        self._store.release(self._store.lease(rank))  # a failure is raised, so the listener need not hear of it
        self._store.make_current(rank)
        self._load_neighbours_when_idle()

    def switch(self, rank: int, cause: Cause | None) -> Future[Switch]:
        """As `EdgeSession.switch`, with a rank that was checked."""
        asked_s = time.perf_counter()
        with self._lock:
            self._last_asked += 1
            ticket = self._last_asked
            before = self._store.current
            is_resident = self._store.make_current(rank)
        if not is_resident:
            return self._background.load(functools.partial(self._load_and_switch, rank, ticket, asked_s, cause))
        done: Future[Switch] = Future()
        done.set_result(self._switched(before, rank, True, False, asked_s, cause))
        return done

    def load(self, rank: int) -> Future[None]:
        """Load a rung in the background.

        Raises:
            ClosedError: the session is closed.
        """
        return self._background.load(functools.partial(self._load, rank))

    def reload(self, rank: int) -> None:
        """Load a rung that was dropped, and what neighbours the current one lacks."""
        with contextlib.suppress(ClosedError):
            self.load(rank)
        self._load_neighbours_when_idle()

    def _load_and_switch(self, rank: int, ticket: int, asked_s: float, cause: Cause | None) -> Switch:
        """Load, then become current unless a later switch was asked for meanwhile."""
        before, happened = self._store.current, False
        if ticket == self._last_asked:
            lease = self._store.lease(rank)
            try:
                with self._lock:
                    before = self._store.current
                    happened = ticket == self._last_asked and self._store.make_current(rank)
            finally:
                self._store.release(lease)
        return self._switched(before, rank, happened, True, asked_s, cause)

    def _switched(
        self, before: int, rank: int, happened: bool, cold: bool, asked_s: float, cause: Cause | None
    ) -> Switch:
        duration_ms = (time.perf_counter() - asked_s) * 1e3
        if happened and before != rank:
            self._tell(SessionEvent(SWITCHED, rank, other_rank=before, duration_ms=duration_ms, cause=cause))
            self._load_neighbours_when_idle()
        return Switch(before, rank, happened, cold, duration_ms)

    def _load_neighbours_when_idle(self) -> None:
        """The loader does one thing after another, so this waits for what was asked for before, and at a lower priority
        than requests."""
        if self._prefetch_among:
            with contextlib.suppress(ClosedError):
                self._background.load(functools.partial(self._load_neighbours, self._last_asked))

    def _load_neighbours(self, ticket: int) -> None:
        """The next lower rung first: it is what a hot device and a failing engine need."""
        current = self._store.current
        lower = [rank for rank in self._prefetch_among if rank < current][-1:]
        higher = [rank for rank in self._prefetch_among if rank > current][:1]
        for rank in (*lower, *higher):
            if ticket != self._last_asked:  # a switch is waiting behind this, and it brings new neighbours
                return
            if self._failover.unloadable(rank) is None and self._store.make_room(rank, (*lower, *higher)):
                with contextlib.suppress(Exception):  # the listener heard of it
                    self._load(rank)

    def _load(self, rank: int) -> None:
        self._store.release(self._store.lease(rank))
