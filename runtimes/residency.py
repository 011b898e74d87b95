"""Which graphs are in memory: the part of a session that leases, loads and evicts.

      lease(96) ----> [ 96 | 192 | dense* ] ----> release        * current: never evicted
                         |                                         leased: never evicted
        cold: load ------+------ over the budget: the least recently used goes

A request leases a graph, runs it and releases it, so no graph is freed under a request. The budget bounds what stays;
a graph in use and the current one are never taken away, so while a switch loads the next rung both may be held at once.
A graph that failed is dropped: it answers nobody any more, and its rung, even the current one, is cold again. There
is always one in memory, from the first to the closing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future

from nsn_edge.bundle import Bundle
from nsn_edge.errors import ClosedError, UsageError
from nsn_edge.runtimes.engines.base import Engine
from nsn_edge.runtimes.graph_store import MB, Lease, NotInMemoryError

_log = logging.getLogger("nsn_edge.runtimes")


class RungStore:
    """One graph per rung, loaded when asked for, kept within a memory budget."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        budget_bytes: int | None,
        *,
        on_load: Callable[[int, float], None],
        on_load_failed: Callable[[int, Exception], None],
        on_evict: Callable[[int], None],
        defer: Callable[[Callable[[], None]], None],
    ) -> None:
        """
        Args:
            bundle: whose static graphs these are.
            engine: loads them.
            budget_bytes: of weights that stay in memory; None for no limit.
            on_load: hears of each rank loaded and the milliseconds it took, outside the lock.
            on_load_failed: hears of each load that failed, once, outside the lock.
            on_evict: hears of each rank evicted, outside the lock.
            defer: runs the freeing of graphs soon, in another thread: called where a request waits.
        """
        self._bundle = bundle
        self._engine = engine
        self._budget = budget_bytes
        self._on_load, self._on_load_failed, self._on_evict, self._defer = on_load, on_load_failed, on_evict, defer
        self._costs = {rank: _weight_bytes(bundle, rank) for rank in bundle.manifest.ladder.ranks}
        if not self._costs:
            raise UsageError(f"{bundle.path} has no rungs", "open it with form='sliced', or export it with rungs")
        self._fitting = [rank for rank, cost in self._costs.items() if budget_bytes is None or cost <= budget_bytes]
        self._lock = threading.Lock()
        self._entries: dict[int, Lease] = {}
        self._loading: dict[int, Future[None]] = {}
        self._current = 0
        self._clock = 0
        self._held_bytes = 0
        self._closed = False

    @property
    def current(self) -> int:
        return self._current

    @property
    def resident_ranks(self) -> tuple[int, ...]:
        with self._lock:
            return tuple(sorted(self._entries))

    @property
    def resident_bytes(self) -> int:
        with self._lock:
            return sum(self._costs[rank] for rank in self._entries)

    @property
    def top_rank(self) -> int:
        return max(self._fitting, default=min(self._costs))

    def serves(self, rung_rank: int) -> bool:
        return rung_rank in self._fitting

    def check(self, rank: int) -> int:
        if type(rank) is int and rank in self._fitting:  # the common case, on every request that names a rank
            return rank
        rung = self._bundle.manifest.ladder.rung(rank)
        if rung.rank not in self._fitting:
            assert self._budget is not None
            raise UsageError(
                f"rank {rank} takes {self._costs[rung.rank] / MB:.4g} MB of weights, "
                f"more than the memory budget of {self._budget / MB:.4g} MB",
                f"within it fit: {', '.join(map(str, self._fitting))}"
                if self._fitting
                else f"the smallest rung takes {min(self._costs.values()) / MB:.4g} MB: raise the budget to that",
            )
        return rung.rank

    def lease(self, rank: int | None) -> Lease:
        while True:
            with self._lock:
                if self._closed:
                    raise ClosedError("the session was closed")
                wanted = self._current if rank is None else rank
                entry = self._entries.get(wanted)
                if entry is not None:
                    return self._use(entry)
                if rank is None:
                    raise NotInMemoryError(wanted)
                pending = self._loading.get(wanted)
                if pending is None:
                    mine = self._loading[wanted] = Future()
                    self._held_bytes += self._costs[wanted]
                    victims = self._take_victims()
            if pending is None:
                self._free(victims)
                return self._load(wanted, mine)
            try:
                pending.result()  # another thread is loading it; afterwards look again, it may be gone already
            finally:
                del pending  # as in `_load`

    def lease_resident(self, rank: int) -> Lease | None:
        with self._lock:
            entry = self._entries.get(rank)
            return None if entry is None or self._closed else self._use(entry)

    def substitutes(self, rank: int) -> tuple[int, ...]:
        lower = [other for other in self._fitting if other < rank]
        return (*reversed(lower), *(other for other in self._fitting if other > rank))

    def drop(self, lease: Lease) -> bool:
        with self._lock:
            if self._entries.get(lease.rank) is not lease:
                return False
            del self._entries[lease.rank]
            lease.dropped = True
            if lease.users:
                return True
            self._held_bytes -= self._costs[lease.rank]
        self._free_later([lease])
        return True

    def fresh(self, rank: int) -> Lease | None:
        with self._lock:
            if self._closed:
                raise ClosedError("the session was closed")
            self._held_bytes += self._costs[rank]
        try:
            return self._loaded(rank, dropped=True)
        except BaseException:
            with self._lock:
                self._held_bytes -= self._costs[rank]
            raise

    def adopt(self, lease: Lease) -> None:
        with self._lock:
            if self._closed:
                return
            lease.dropped = False
            victims = [*self._put(lease), *self._take_victims()]
        self._free_later(victims)
        self._on_load(lease.rank, lease.load_ms)

    def make_room(self, rank: int, keep: Collection[int]) -> bool:
        with self._lock:
            if self._closed or rank in self._entries or rank in self._loading or rank not in self._fitting:
                return False
            if self._budget is None:
                return True
            kept = [entry for entry in self._entries.values() if entry.rank in keep or entry.rank == self._current]
            evictable = sum(
                self._costs[entry.rank] for entry in self._entries.values() if entry not in kept and not entry.users
            )
            if self._held_bytes - evictable + self._costs[rank] > self._budget:
                return False
            for entry in kept:
                self._touch(entry)
            return True

    def release(self, lease: Lease) -> None:
        with self._lock:
            lease.users -= 1
            if lease.users:
                return
            victims = []
            if lease.dropped:
                self._held_bytes -= self._costs[lease.rank]
                victims.append(lease)
            if self._closed or (self._budget is not None and self._held_bytes > self._budget):
                victims += self._take_victims()
        self._free_later(victims)

    def make_current(self, rank: int) -> bool:
        with self._lock:
            entry = self._entries.get(rank)
            if entry is None:
                return False
            self._current = rank
            self._touch(entry)
            victims = self._take_victims()
        self._free_later(victims)
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            victims = self._take_victims()
        self._free(victims)

    def _use(self, entry: Lease) -> Lease:
        entry.users += 1
        self._touch(entry)
        return entry

    def _touch(self, entry: Lease) -> None:
        self._clock += 1
        entry.last_used = self._clock

    def _load(self, rank: int, pending: Future[None]) -> Lease:
        """Load outside the lock; whoever waits for `pending` looks again when it is done."""
        try:
            entry = self._loaded(rank)
        except BaseException as error:
            with self._lock:
                del self._loading[rank]
                self._held_bytes -= self._costs[rank]
            pending.set_exception(error)
            del pending  # or the error, this frame and the future would be a cycle, with graphs hanging on it
            raise
        with self._lock:
            del self._loading[rank]
            replaced = self._put(entry)
        pending.set_result(None)
        self._free_later(replaced)
        self._on_load(rank, entry.load_ms)
        return entry

    def _put(self, entry: Lease) -> list[Lease]:
        """Make a graph the one of its rank; what it replaces (a fresh one may have been adopted during a load) is given
        back to be freed, unless it is in use. The lock is held."""
        before = self._entries.get(entry.rank)
        self._entries[entry.rank] = entry
        self._touch(entry)
        if before is None:
            return []
        before.dropped = True
        if before.users:
            return []
        self._held_bytes -= self._costs[entry.rank]
        return [before]

    def _loaded(self, rank: int, *, dropped: bool = False) -> Lease:
        start = time.perf_counter()
        try:
            graph = self._engine.load(self._bundle.file(self._bundle.graph(rank)))
        except Exception as error:
            self._on_load_failed(rank, error)
            raise
        return Lease(rank, graph, 1, dropped=dropped, load_ms=(time.perf_counter() - start) * 1e3)

    def _take_victims(self) -> list[Lease]:
        """Forget, least recently used first, what the budget has no room for. The lock is held.

        While the current rung is away, the one used last stands in for it and stays.
        """
        victims: list[Lease] = []
        by_use = sorted(self._entries.values(), key=lambda entry: entry.last_used)
        stays = self._entries.get(self._current) or (by_use[-1] if by_use else None)
        for entry in by_use:
            over = self._closed or (self._budget is not None and self._held_bytes > self._budget)
            if over and not entry.users and (self._closed or entry is not stays):
                del self._entries[entry.rank]
                self._held_bytes -= self._costs[entry.rank]
                victims.append(entry)
        return victims

    def _free(self, victims: list[Lease]) -> None:
        for victim in victims:
            try:
                victim.graph.close()
            except Exception:  # one that failed may fail at this, too; the others must go
                _log.exception("the graph of rank %d could not be freed", victim.rank)
            if not victim.dropped:
                self._on_evict(victim.rank)

    def _free_later(self, victims: list[Lease]) -> None:
        if victims:
            self._defer(lambda: self._free(victims))


def _weight_bytes(bundle: Bundle, rank: int) -> int:
    """What loading a rung costs; the size of all weights, an upper bound, where the manifest does not say."""
    known = bundle.graph(rank).weight_bytes
    if known is not None:
        return known
    return sum(artifact.size_bytes for artifact in bundle.manifest.artifacts if artifact.kind == "weights")
