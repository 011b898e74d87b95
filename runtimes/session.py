"""A session: a bundle being answered from, at a rank that can change while requests run.

    with EdgeSession.open("bundle") as session:
        session.run(inputs)                 # at the current rung, the top one at first
        session.switch(96)                  # returns at once; loads in the background if need be ...
        session.run(inputs).rank            # ... and until then the old rung answers
        session.run(inputs, rank=192)       # this one request at another rung

A switch changes one number under a lock, so no request waits for it or is lost to it. Of several switches under way the
last one asked for wins. If loading fails the old rung stays: the future raises, and the listener hears `load_failed`.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.ladder import RankLadder
from nsn_edge.runtimes.dynamic import RankInputStore
from nsn_edge.runtimes.engines import Array, Engine, Held, OnnxRuntimeEngine, run_holding
from nsn_edge.runtimes.events import (
    EVICTED,
    LOAD_FAILED,
    LOADED,
    SWITCHED,
    Listener,
    SessionEvent,
    log_event,
    one_line,
    tell,
)
from nsn_edge.runtimes.residency import MB, GraphStore, Lease, RungStore
from nsn_edge.runtimes.telemetry.base import Work
from nsn_edge.runtimes.workload import WorkMeter

_LOADER_NICENESS = 5


@dataclass(frozen=True)
class Answer:
    """The outcome of one request."""

    outputs: dict[str, Array]
    """By the graph's names; the arrays belong to the caller."""
    rank: int
    """That answered."""
    latency_ms: float
    """Of the inference alone; loading a cold rung first is not in it."""
    held: dict[str, Held] = field(default_factory=dict)
    """Outputs that were asked to stay with the engine, by the graph's names."""


@dataclass(frozen=True)
class Switch:
    """The outcome of `EdgeSession.switch`."""

    from_rank: int
    """Current before."""
    to_rank: int
    """Asked for."""
    happened: bool
    """False where a later switch overtook this one."""
    cold: bool
    """Whether the rung was not in memory when asked for."""
    duration_ms: float
    """From the asking until the rank was current, loading included."""


class EdgeSession:
    """Answers requests from a bundle. Every method may be called from any thread."""

    def __init__(self, bundle: Bundle, engine: Engine, form: str, budget_bytes: int | None, listener: Listener) -> None:
        """Use `open`, which checks, and loads the first rung."""
        self.bundle = bundle
        """What is answered from."""
        self.engine = engine
        """What executes the graphs."""
        self.form = form
        """One of `GRAPH_FORMS`."""
        self._listener = listener
        self._loader = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="nsn-edge-loader",
            initializer=None if engine.owns_threads else _give_way,
        )
        self._freer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nsn-edge-freer")
        self._switching = threading.Lock()
        self._last_asked = 0
        self._meter = WorkMeter()
        self._store: GraphStore
        if form == "static":
            self._store = RungStore(
                bundle,
                engine,
                budget_bytes,
                on_load=lambda rank: self._tell(LOADED, rank),
                on_evict=lambda rank: self._tell(EVICTED, rank),
                defer=self._defer,
            )
        else:
            self._store = RankInputStore(bundle, engine, form)

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path | str,
        *,
        engine: Engine | None = None,
        form: str = "static",
        rank: int | None = None,
        memory_budget_mb: float | None = None,
        check_hashes: bool = True,
        listener: Listener = log_event,
    ) -> EdgeSession:
        """Open a bundle and load its first rung.

        Args:
            bundle: a folder, or a bundle already opened (which is not checked again).
            engine: executes the graphs; onnxruntime on one CPU thread by default.
            form: `static` answers at the rungs, each at its own full speed; `gated`, `bound`, `sliced` and `masked` at
                any rank.
            rank: to begin with; by default the highest that fits the budget.
            memory_budget_mb: 10^6 bytes of weights that may stay in memory, by the manifest's `weight_bytes`. A switch
                needs the old and the new rung at once and may exceed it for that moment. None: no limit.
            check_hashes: compare the files' SHA-256 with the manifest.
            listener: hears of loads, switches, evictions and failures; by default they are logged.

        Raises:
            BundleError: the bundle is damaged.
            RankError: `rank` is outside `1..R`, or no rung is there.
            UsageError: no such folder or form, or a budget too small for the rank.
            EngineError: the first rung cannot be loaded.
            MissingDependencyError: the engine's package is not installed.
        """
        if form not in GRAPH_FORMS:
            raise UsageError(f"unknown form {form!r}", f"choose {', '.join(GRAPH_FORMS)}")
        if memory_budget_mb is not None and not 0 < memory_budget_mb < math.inf:
            raise UsageError(f"a memory budget is a positive number of megabytes, not {memory_budget_mb}")
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle, check_hashes=check_hashes)
        budget_bytes = None if memory_budget_mb is None else round(memory_budget_mb * MB)
        session = cls(bundle, engine or OnnxRuntimeEngine(), form, budget_bytes, listener)
        try:
            session._begin(rank)
        except BaseException:
            session.close()
            raise
        return session

    @property
    def rank(self) -> int:
        """The current rank: that of requests which name none."""
        return self._store.current

    @property
    def top_rank(self) -> int:
        """The highest rank that this session serves: its highest rung within the memory budget, or R."""
        return self._store.top_rank

    @property
    def ladder(self) -> RankLadder:
        """The bundle's ladder with the rungs that fit the memory budget: what a policy here chooses from."""
        ladder = self.bundle.manifest.ladder
        return replace(ladder, rungs=tuple(rung for rung in ladder.rungs if self._store.serves(rung.rank)))

    @property
    def resident_ranks(self) -> tuple[int, ...]:
        """Ranks that answer without loading, lowest first."""
        return self._store.resident_ranks

    @property
    def resident_bytes(self) -> int:
        """Weights of the loaded graphs by the manifest: an upper bound where graphs share a mapped file."""
        return self._store.resident_bytes

    def run(
        self,
        inputs: Mapping[str, Array],
        rank: int | None = None,
        *,
        held: Mapping[str, Held] | None = None,
        hold: Collection[str] = (),
    ) -> Answer:
        """Answer one request.

        Args:
            inputs: one array per input of the manifest that `held` does not give, with its dtype and shape.
            rank: answer at this rank and leave the current one as it is. A rung not in memory is loaded first, and
                only this request waits for that. None: the current rank, which never waits.
            held: inputs that are tensors held by an earlier answer, of any rank: a decoder's cache.
            hold: outputs to hold for a later request instead of returning them.

        Raises:
            RankError: `rank` is outside `1..R`, or no rung is there.
            UsageError: the rung does not fit the memory budget.
            EngineError: the inputs do not fit, the engine failed, or the session is closed.
        """
        self._meter.arrived()
        lease = self._store.lease(rank if rank is None else self._store.check(rank))
        try:
            start = time.perf_counter()
            if held or hold:
                outputs, kept = run_holding(lease.graph, inputs, held or {}, hold)
            else:
                outputs, kept = lease.graph.run(inputs), {}
            latency_ms = (time.perf_counter() - start) * 1e3
        finally:
            self._store.release(lease)
        self._meter.answered(lease.rank, latency_ms)
        return Answer(outputs, lease.rank, latency_ms, kept)

    def work(self) -> Work:
        """What was asked of this session since the last call: a `Governor` puts it into each reading. `waiting` is
        unknown, as requests wait where they are sent from."""
        return self._meter.take()

    def switch(self, rank: int) -> Future[Switch]:
        """Make `rank` the current one: now if it is in memory, else when the background thread has loaded it.

        Returns:
            A future that is done already for a rung in memory. It raises what the loading raised.

        Raises:
            RankError: `rank` is outside `1..R`, or no rung is there.
            UsageError: the rung does not fit the memory budget.
            EngineError: the session is closed.
        """
        asked_s = time.perf_counter()
        rank = self._store.check(rank)
        with self._switching:
            self._last_asked += 1
            ticket = self._last_asked
            before = self._store.current
            is_resident = self._store.make_current(rank)
        if not is_resident:
            return self._submit(rank, ticket, asked_s)
        if before != rank:
            self._tell(SWITCHED, rank)
        done: Future[Switch] = Future()
        done.set_result(Switch(before, rank, True, False, (time.perf_counter() - asked_s) * 1e3))
        return done

    def preload(self, ranks: Iterable[int]) -> list[Future[None]]:
        """Load rungs in the background without switching, in the order given. What the budget has no room for is
        evicted again, the least recently used first.

        Raises:
            RankError: a rank is outside `1..R`, or no rung is there.
            UsageError: a rung does not fit the memory budget.
            EngineError: the session is closed.
        """
        checked = [self._store.check(rank) for rank in ranks]
        try:
            return [self._loader.submit(self._load, rank) for rank in checked]
        except RuntimeError as error:
            raise EngineError("the session was closed") from error

    def close(self) -> None:
        """Stop loading and free every graph; one that answers a request goes when that request ends."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._store.close()
        self._freer.shutdown(wait=True)

    def __enter__(self) -> EdgeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, rank: int | None) -> None:
        rank = self._store.check(self._store.top_rank if rank is None else rank)
        self._store.release(self._store.lease(rank))  # a failure is raised, so the listener need not hear of it
        self._store.make_current(rank)

    def _submit(self, rank: int, ticket: int, asked_s: float) -> Future[Switch]:
        try:
            return self._loader.submit(self._load_and_switch, rank, ticket, asked_s)
        except RuntimeError as error:  # what an executor raises after its shutdown
            raise EngineError("the session was closed") from error

    def _load_and_switch(self, rank: int, ticket: int, asked_s: float) -> Switch:
        """In the background thread: load, then become current unless a later switch was asked for meanwhile."""
        before, happened = self._store.current, False
        if ticket == self._last_asked:
            lease = self._lease_or_report(rank)
            try:
                with self._switching:
                    before = self._store.current
                    happened = ticket == self._last_asked and self._store.make_current(rank)
            finally:
                self._store.release(lease)
        if happened and before != rank:
            self._tell(SWITCHED, rank)
        return Switch(before, rank, happened, True, (time.perf_counter() - asked_s) * 1e3)

    def _load(self, rank: int) -> None:
        self._store.release(self._lease_or_report(rank))

    def _lease_or_report(self, rank: int) -> Lease:
        try:
            return self._store.lease(rank)
        except Exception as error:
            self._tell(LOAD_FAILED, rank, one_line(error))
            raise

    def _defer(self, work: Callable[[], None]) -> None:
        """Freeing a graph holds the interpreter's lock for milliseconds: do it where no request waits."""
        try:
            self._freer.submit(work)
        except RuntimeError:
            work()

    def _tell(self, kind: str, rank: int, message: str = "") -> None:
        tell(self._listener, SessionEvent(kind, rank, message))


def _give_way() -> None:
    """Lower the calling thread's priority, so that a load takes the processor time that requests leave.

    Measured with MiniLM on two cores that other programs kept busy: the median request during loads took 44 ms instead
    of 57 ms (31 ms undisturbed), and a load 0.35 s instead of 0.17 s; on idle cores neither changes. Lower still would
    be worse: the loader needs the interpreter's lock for moments, and must not fall asleep holding it.
    """
    if sys.platform == "linux":  # elsewhere priorities belong to processes
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADER_NICENESS)
