"""A session: a bundle being answered from, at a rank that can change while requests run.

    with EdgeSession.open("bundle") as session:
        session.run(inputs)                 # at the current rung, the top one at first
        session.switch(96)                  # returns at once; loads in the background if need be ...
        session.run(inputs).rank            # ... and until then the old rung answers
        session.run(inputs, rank=192)       # this one request at another rung

A switch changes one number under a lock, so no request waits for it or is lost to it. Of several switches under way the
last one asked for wins. If loading fails the old rung stays: the future raises, and the listener hears `load_failed`.
If an engine fails at a request another rung answers it (`failover.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.errors import ClosedError, InputError, UsageError
from nsn_edge.ladder import RankLadder
from nsn_edge.runtimes.answers import Answer, Switch
from nsn_edge.runtimes.background import Background
from nsn_edge.runtimes.dynamic import RankInputStore
from nsn_edge.runtimes.engines import Array, Engine, Held, OnnxRuntimeEngine, run_holding
from nsn_edge.runtimes.events import (
    DEGRADED,
    EVICTED,
    LOADED,
    Cause,
    Listener,
    SessionEvent,
    log_event,
    one_line,
    tell,
)
from nsn_edge.runtimes.failover import Attempts, Failover
from nsn_edge.runtimes.graph_store import MB, GraphStore, Lease, NotInMemoryError
from nsn_edge.runtimes.residency import RungStore
from nsn_edge.runtimes.switching import Switcher
from nsn_edge.runtimes.telemetry.base import Clock, Work
from nsn_edge.runtimes.workload import WorkMeter

__all__ = ["Answer", "EdgeSession", "Switch"]


class EdgeSession:
    """Answers requests from a bundle. Every method may be called from any thread."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        form: str,
        budget_bytes: int | None,
        *,
        prefetch: bool,
        retry_after_s: float,
        listener: Listener,
        observer: Callable[[Answer], None] | None,
        clock: Clock,
    ) -> None:
        """Use `open`, which checks, and loads the first rung."""
        self.bundle = bundle
        """What is answered from."""
        self.engine = engine
        """What executes the graphs."""
        self.form = form
        """One of `GRAPH_FORMS`."""
        self._listener = listener
        self._observer = observer
        self._background = Background(give_way=not engine.owns_threads)
        self._meter = WorkMeter(clock=clock)
        self._store: GraphStore
        if form == "static":
            self._store = RungStore(
                bundle,
                engine,
                budget_bytes,
                on_load=lambda rank, ms: self._tell(SessionEvent(LOADED, rank, duration_ms=ms)),
                on_load_failed=self._load_failed,
                on_evict=lambda rank: self._tell(SessionEvent(EVICTED, rank)),
                defer=self._background.free,
            )
        else:
            self._store = RankInputStore(bundle, engine, form)
        self._failover = Failover(
            self._store,
            retry_after_s=retry_after_s,
            clock=clock,
            reload=self._reload,
            tell=self._tell,
        )
        self._switcher = Switcher(
            self._store,
            self._background,
            self._failover,
            prefetch_among=self.ladder.ranks if prefetch else (),
            tell=self._tell,
        )

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path | str,
        *,
        engine: Engine | None = None,
        form: str = "static",
        rank: int | None = None,
        memory_budget_mb: float | None = None,
        prefetch: bool = False,
        retry_after_s: float = 10.0,
        check_hashes: bool = True,
        listener: Listener = log_event,
        observer: Callable[[Answer], None] | None = None,
        clock: Clock = time.monotonic,
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
            prefetch: keep the neighbours of the current rung in memory, too, as far as the budget has room: they are
                loaded in the background when nothing else is to be loaded. A step up or down is then warm.
            retry_after_s: how long a rung that could not be loaded, or failed again after it was, is left alone.
            check_hashes: compare the files' SHA-256 with the manifest.
            listener: hears of loads, switches, evictions and failures; by default they are logged.
            observer: sees every answer, in the thread that asked; what it raises goes to that thread.
            clock: monotonic seconds.

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
        if not retry_after_s >= 0.0:
            raise UsageError(f"a failed rung is tried again after 0 seconds or more, not {retry_after_s}")
        session = cls(
            bundle,
            engine or OnnxRuntimeEngine(),
            form,
            None if memory_budget_mb is None else round(memory_budget_mb * MB),
            prefetch=prefetch,
            retry_after_s=retry_after_s,
            listener=listener,
            observer=observer,
            clock=clock,
        )
        try:
            session._switcher.begin(session._store.check(session._store.top_rank if rank is None else rank))
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
        fall_back: bool | None = None,
        held: Mapping[str, Held] | None = None,
        hold: Collection[str] = (),
    ) -> Answer:
        """Answer one request.

        Args:
            inputs: one array per input of the manifest that `held` does not give, with its dtype and shape.
            rank: answer at this rank and leave the current one as it is. A rung not in memory is loaded first, and
                only this request waits for that. None: the current rank, which never waits.
            fall_back: where the rung cannot be loaded or its engine fails, let the nearest lower rung in memory answer,
                then any other; the answer says so (`degraded`), and the rung is loaded again in the background. By
                default a request that names a rank gets that one or an error.
            held: inputs that are tensors held by an earlier answer, of any rank: a decoder's cache.
            hold: outputs to hold for a later request instead of returning them.

        Raises:
            RankError: `rank` is outside `1..R`, or no rung is there.
            UsageError: the rung does not fit the memory budget.
            InputError: the inputs do not fit the graph.
            NoRungError: the rung failed, and so did every other that could be tried.
            ClosedError: the session is closed.
            EngineError: the rung failed, and no other could stand in.
        """
        self._meter.arrived()
        asked = rank if rank is None else self._store.check(rank)
        if fall_back if fall_back is not None else rank is None:
            answer = self._run_or_fall_back(asked, lambda lease: self._run_on(lease, inputs, held, hold))
        else:
            lease = self._store.lease(asked)
            try:
                answer = self._run_on(lease, inputs, held, hold)
            finally:
                self._store.release(lease)
        self._meter.answered(answer.rank, answer.latency_ms)
        if self._observer is not None:
            self._observer(answer)
        return answer

    def work(self) -> Work:
        """What was asked of this session since the last call: a `Governor` puts it into each reading. `waiting` is
        unknown, as requests wait where they are sent from."""
        return self._meter.take()

    def switch(self, rank: int, *, cause: Cause | None = None) -> Future[Switch]:
        """Make `rank` the current one: now if it is in memory, else when the background thread has loaded it.

        Args:
            rank: of a rung.
            cause: why, for whoever listens.

        Returns:
            A future that is done already for a rung in memory. It raises what the loading raised.

        Raises:
            RankError: `rank` is outside `1..R`, or no rung is there.
            UsageError: the rung does not fit the memory budget.
            ClosedError: the session is closed.
        """
        return self._switcher.switch(self._store.check(rank), cause)

    def preload(self, ranks: Iterable[int]) -> list[Future[None]]:
        """Load rungs in the background without switching, in the order given. What the budget has no room for is
        evicted again, the least recently used first.

        Raises:
            RankError: a rank is outside `1..R`, or no rung is there.
            UsageError: a rung does not fit the memory budget.
            ClosedError: the session is closed.
        """
        checked = [self._store.check(rank) for rank in ranks]
        return [self._switcher.load(rank) for rank in checked]

    def close(self) -> None:
        """Stop loading and free every graph; one that answers a request goes when that request ends."""
        self._background.stop_loading()
        self._store.close()
        self._background.close()

    def __enter__(self) -> EdgeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_on(
        self, lease: Lease, inputs: Mapping[str, Array], held: Mapping[str, Held] | None, hold: Collection[str]
    ) -> Answer:
        start = time.perf_counter()
        if held or hold:
            outputs, kept = run_holding(lease.graph, inputs, held or {}, hold)
        else:
            outputs, kept = lease.graph.run(inputs), {}
        return Answer(outputs, lease.rank, (time.perf_counter() - start) * 1e3, kept)

    def _run_or_fall_back(self, asked: int | None, run: Callable[[Lease], Answer]) -> Answer:
        lease = None
        try:
            if asked is not None and (known := self._failover.unloadable(asked)) is not None:
                raise known
            lease = self._store.lease(asked)
            return run(lease)
        except (InputError, ClosedError):
            raise
        except Exception as error:  # an engine may raise anything
            if lease is not None:
                attempts = Attempts(lease.rank)
            else:
                attempts = Attempts(error.rank if isinstance(error, NotInMemoryError) else asked or self.rank)
            attempts.note(attempts.asked, error, lease)
        finally:
            if lease is not None:
                self._store.release(lease)
        why = one_line(attempts.errors[0][1])
        try:
            answer = self._failover.answer(attempts, run)
        finally:
            attempts.forget()
        if answer.rank == attempts.asked:
            return answer
        self._tell(SessionEvent(DEGRADED, attempts.asked, why, other_rank=answer.rank))
        return replace(answer, degraded=True)

    def _load_failed(self, rank: int, error: Exception) -> None:
        if self._store.current:  # the first rung's failure is raised by `open`
            self._failover.note_unloadable(rank, error)

    def _reload(self, rank: int) -> None:
        self._switcher.reload(rank)

    def _tell(self, event: SessionEvent) -> None:
        tell(self._listener, event)
