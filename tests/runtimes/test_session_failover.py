"""When a rung's engine fails, at loading or at a request: another rung answers and says so, and the rung comes back."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sensor_tree import HandClock
from tiny_bundle import ALL_RUNGS, TOP, TinyModel

from nsn_edge.bundle import Bundle
from nsn_edge.errors import ClosedError, EngineError, InputError, NoRungError
from nsn_edge.runtimes.engines import FaultyEngine, OnnxRuntimeEngine
from nsn_edge.runtimes.events import SessionEvent
from nsn_edge.runtimes.serving import Server
from nsn_edge.runtimes.session import Answer, EdgeSession

TinyBundle = tuple[Path, TinyModel]
X = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
PATIENCE_S = 60.0


class Faults:
    """An onnxruntime whose loads and runs fail at the rungs named in `loads` and `runs`, as long as they are named."""

    def __init__(self) -> None:
        self.loads: set[int] = set()
        self.runs: set[int] = set()
        self.loaded: list[int] = []
        self.ran: list[int] = []
        self.on_run: Callable[[int], None] = lambda rank: None
        self.engine = FaultyEngine(OnnxRuntimeEngine(), before_load=self._load, before_run=self._run)

    def _load(self, path: Path) -> None:
        rank = _rank(path)
        self.loaded.append(rank)
        if rank in self.loads:
            raise EngineError(f"rank {rank} will not load")

    def _run(self, path: Path) -> None:
        rank = _rank(path)
        self.ran.append(rank)
        self.on_run(rank)
        if rank in self.runs:
            raise RuntimeError(f"rank {rank} fell over")


def _rank(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def clock() -> HandClock:
    return HandClock(0.0)


@pytest.fixture
def events() -> list[SessionEvent]:
    return []


@pytest.fixture
def session(tiny_bundle: TinyBundle, faults: Faults, clock: HandClock, events: list[SessionEvent]):  # type: ignore[no-untyped-def]
    with EdgeSession.open(tiny_bundle[0], engine=faults.engine, clock=clock, listener=events.append) as opened:
        yield opened


def load(session: EdgeSession, *ranks: int) -> None:
    for done in session.preload(ranks):
        done.result(PATIENCE_S)


def settle(session: EdgeSession) -> None:
    """Wait until the loader has done what it was asked: it does one thing after another."""
    load(session, min(session.resident_ranks))


def told(events: list[SessionEvent], kind: str) -> list[tuple[int | None, int | None]]:
    return [(event.rank, event.other_rank) for event in events if event.kind == kind]


def assert_right(answer: Answer, model: TinyModel, rank: int, *, degraded: bool) -> None:
    assert (answer.rank, answer.degraded) == (rank, degraded)
    np.testing.assert_allclose(answer.outputs["y"], model(X, rank), rtol=1e-4, atol=1e-4)


def test_the_nearest_lower_rung_in_memory_answers_and_the_failed_one_comes_back(
    session: EdgeSession, tiny_bundle: TinyBundle, faults: Faults, events: list[SessionEvent]
) -> None:
    load(session, 2, 8)
    faults.runs = {TOP}
    assert_right(session.run({"x": X}), tiny_bundle[1], 8, degraded=True)
    assert told(events, "run_failed") == [(TOP, None)]
    assert told(events, "degraded") == [(TOP, 8)]
    assert session.rank == TOP, "what was decided stays decided"
    faults.runs = set()
    settle(session)
    assert faults.loaded.count(TOP) == 2, "loaded again in the background"
    assert_right(session.run({"x": X}), tiny_bundle[1], TOP, degraded=False)


def test_if_no_lower_rung_is_in_memory_a_higher_one_answers(
    session: EdgeSession, tiny_bundle: TinyBundle, faults: Faults
) -> None:
    load(session, 8)
    session.switch(5).result(PATIENCE_S)
    faults.runs = {5}
    assert_right(session.run({"x": X}), tiny_bundle[1], 8, degraded=True)


def test_while_the_rung_is_away_requests_do_not_wait_for_it(
    session: EdgeSession, tiny_bundle: TinyBundle, faults: Faults, clock: HandClock, events: list[SessionEvent]
) -> None:
    load(session, 8)
    faults.runs, faults.loads = {TOP}, {TOP}
    for _ in range(5):
        assert_right(session.run({"x": X}), tiny_bundle[1], 8, degraded=True)
    settle(session)
    assert faults.ran.count(TOP) == 1, "a rung that failed is asked no more"
    assert faults.loaded.count(TOP) == 2, "one attempt, no storm"
    assert told(events, "load_failed") == [(TOP, None)]
    faults.runs, faults.loads = set(), set()
    clock.now_s += 10.0
    assert session.run({"x": X}).rank == 8
    settle(session)
    assert_right(session.run({"x": X}), tiny_bundle[1], TOP, degraded=False)


def test_the_only_rung_in_memory_is_loaded_again_for_the_request(
    session: EdgeSession, tiny_bundle: TinyBundle, faults: Faults, events: list[SessionEvent]
) -> None:
    once = [TOP]
    faults.runs = {TOP}
    faults.on_run = lambda rank: faults.runs.clear() if not once else once.clear()
    assert_right(session.run({"x": X}), tiny_bundle[1], TOP, degraded=False)
    assert faults.loaded == [TOP, TOP]
    assert told(events, "run_failed") == [(TOP, None)]
    assert told(events, "degraded") == []


def test_if_that_cannot_be_loaded_the_next_lower_rung_is(
    session: EdgeSession, tiny_bundle: TinyBundle, faults: Faults, events: list[SessionEvent]
) -> None:
    faults.runs, faults.loads = {TOP}, {TOP, 8}
    assert_right(session.run({"x": X}), tiny_bundle[1], 5, degraded=True)
    assert faults.loaded[1:4] == [TOP, 8, 5]
    assert told(events, "load_failed")[:2] == [(TOP, None), (8, None)]


def test_a_request_that_every_engine_fails_at_costs_no_sound_engine(
    session: EdgeSession, faults: Faults, events: list[SessionEvent]
) -> None:
    load(session, 2, 5, 8)
    faults.runs = set(ALL_RUNGS)
    with pytest.raises(
        NoRungError, match=r"no rung could answer \(tried 16, 8, 5, 2\): RuntimeError: rank 16 fell over"
    ):
        session.run({"x": X})
    with pytest.raises(NoRungError):
        session.run({"x": X})
    faults.runs = set()
    assert session.resident_ranks == ALL_RUNGS
    assert session.run({"x": X}).rank == TOP
    assert faults.loaded.count(TOP) == 2, "loaded afresh once, not for each such request"
    assert [faults.loaded.count(rank) for rank in (2, 5, 8)] == [1, 1, 1]


def test_wrong_inputs_are_nobody_s_fault_but_the_caller_s(
    session: EdgeSession, faults: Faults, events: list[SessionEvent]
) -> None:
    load(session, 8)
    with pytest.raises(InputError, match="lacks the input 'x'"):
        session.run({})
    assert faults.loaded == [TOP, 8]
    assert told(events, "run_failed") == told(events, "degraded") == []


def test_a_named_rank_gets_that_rung_or_an_error_unless_it_says_otherwise(
    session: EdgeSession, tiny_bundle: TinyBundle, faults: Faults, events: list[SessionEvent]
) -> None:
    load(session, 2, 8)
    faults.runs = {8}
    with pytest.raises(RuntimeError, match="fell over"):
        session.run({"x": X}, rank=8)
    assert told(events, "run_failed") == []
    assert_right(session.run({"x": X}, rank=8, fall_back=True), tiny_bundle[1], 2, degraded=True)
    faults.loads = {5}
    for _ in range(3):
        assert_right(session.run({"x": X}, rank=5, fall_back=True), tiny_bundle[1], 2, degraded=True)
    assert faults.loaded.count(5) == 1, "a rung that cannot be loaded is not tried at every request"
    assert told(events, "load_failed") == [(5, None)]
    with pytest.raises(EngineError, match="will not load"):
        session.run({"x": X}, rank=5)


def test_without_falling_back_the_current_rung_s_error_comes_through(session: EdgeSession, faults: Faults) -> None:
    load(session, 8)
    faults.runs = {TOP}
    with pytest.raises(RuntimeError, match="rank 16 fell over"):
        session.run({"x": X}, fall_back=False)


@pytest.mark.parametrize("form", ["sliced", "masked"])
def test_one_graph_for_all_ranks_has_no_substitute(tiny_bundle: TinyBundle, form: str) -> None:
    failing = [True]

    def fail(path: Path) -> None:
        if failing:
            raise EngineError("fell over")

    engine = FaultyEngine(OnnxRuntimeEngine(), before_run=fail)
    with EdgeSession.open(tiny_bundle[0], engine=engine, form=form) as session:
        with pytest.raises(EngineError, match="fell over") as caught:
            session.run({"x": X})
        assert not isinstance(caught.value, NoRungError)
        failing.clear()
        assert session.run({"x": X}).rank == TOP


def test_a_failed_graph_still_in_use_elsewhere_is_freed_last(
    session: EdgeSession, tiny_bundle: TinyBundle, faults: Faults
) -> None:
    """One thread is inside the graph while another's request fails at it."""
    load(session, 8)
    inside, go_on = threading.Event(), threading.Event()

    def hold(rank: int) -> None:
        if rank == TOP and not inside.is_set():
            inside.set()
            assert go_on.wait(PATIENCE_S)

    faults.on_run = hold
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(session.run, {"x": X})
        assert inside.wait(PATIENCE_S)
        faults.runs = {TOP}
        assert session.run({"x": X}).rank == 8
        faults.runs = set()
        go_on.set()
        assert_right(slow.result(PATIENCE_S), tiny_bundle[1], TOP, degraded=False)
    settle(session)
    assert session.resident_bytes == sum(
        session.bundle.graph(rank).weight_bytes or 0 for rank in session.resident_ranks
    )


def test_many_requests_that_fail_at_once_load_one_graph(
    session: EdgeSession, tiny_bundle: TinyBundle, faults: Faults
) -> None:
    """Four requests fail at the only rung in memory; one loads it again, and all are answered by that."""
    together = threading.Barrier(4)
    waiting = [0, 1, 2, 3]

    def fail_together(rank: int) -> None:
        if waiting:
            together.wait(PATIENCE_S)
            waiting.clear()
            raise RuntimeError("all fall over together")

    faults.on_run = fail_together
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: session.run({"x": X}), range(4)))
    for answer in answers:
        assert_right(answer, tiny_bundle[1], TOP, degraded=False)
    assert faults.loaded == [TOP, TOP]


def test_the_last_graph_is_kept_and_a_fault_that_passes_costs_nothing(
    session: EdgeSession, tiny_bundle: TinyBundle, faults: Faults
) -> None:
    """Nothing else can be loaded: there is always one rung in memory, and it is asked again."""
    faults.runs, faults.loads = {TOP}, set(ALL_RUNGS)
    with pytest.raises(NoRungError, match=r"tried 16, 8, 5, 2"):
        session.run({"x": X})
    assert session.resident_ranks == (TOP,)
    loads = len(faults.loaded)
    with pytest.raises(NoRungError):
        session.run({"x": X})
    assert len(faults.loaded) == loads, "no storm of loads"
    once = [TOP]
    faults.on_run = lambda rank: faults.runs.clear() if not once else once.clear()
    assert_right(session.run({"x": X}), tiny_bundle[1], TOP, degraded=False)
    session.close()
    with pytest.raises(ClosedError):
        session.run({"x": X})


def test_before_a_request_is_lost_what_did_not_load_lately_is_tried_again(
    session: EdgeSession, tiny_bundle: TinyBundle, faults: Faults, clock: HandClock
) -> None:
    faults.runs, faults.loads = {TOP}, set(ALL_RUNGS)
    with pytest.raises(NoRungError):
        session.run({"x": X})
    faults.loads = {TOP, 8}
    loads = len(faults.loaded)
    with pytest.raises(NoRungError):
        session.run({"x": X})
    assert len(faults.loaded) == loads, "not every moment"
    clock.now_s += 1.5  # the usual pause is longer
    answer = session.run({"x": X}, fall_back=True)
    assert_right(answer, tiny_bundle[1], 5, degraded=True)


def test_what_stands_in_stays_while_the_budget_has_room_for_one(
    tiny_bundle: TinyBundle, faults: Faults, clock: HandClock
) -> None:
    """Reloading the failed rung must not evict the one that answers in its place before it is there."""
    path, model = tiny_bundle
    budget_mb = (Bundle.open(path).graph(TOP).weight_bytes or 0) / 1e6
    with EdgeSession.open(path, engine=faults.engine, clock=clock, memory_budget_mb=budget_mb) as session:
        faults.runs, faults.loads = {TOP}, {TOP}
        assert_right(session.run({"x": X}), model, 8, degraded=True)
        settle(session)
        for _ in range(5):
            clock.now_s += 10.0
            assert_right(session.run({"x": X}), model, 8, degraded=True)
            settle(session)
        faults.runs, faults.loads = set(), set()
        clock.now_s += 10.0
        session.run({"x": X})
        settle(session)
        assert_right(session.run({"x": X}), model, TOP, degraded=False)
        assert session.resident_bytes <= budget_mb * 1e6


def test_a_graph_that_cannot_even_be_freed_does_no_harm(
    tiny_bundle: TinyBundle, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck:
        name, owns_threads = "stuck", False

        def load(self, graph_path: Path):  # type: ignore[no-untyped-def]
            graph = OnnxRuntimeEngine().load(graph_path)

            class Graph:
                inputs, outputs = graph.inputs, graph.outputs

                def run(self, inputs):  # type: ignore[no-untyped-def]
                    return graph.run(inputs)

                def close(self) -> None:
                    raise RuntimeError("stuck")

            return Graph()

        def describe(self) -> dict[str, object]:
            return {}

    events: list[SessionEvent] = []
    session = EdgeSession.open(tiny_bundle[0], engine=Stuck(), listener=events.append)
    load(session, 2, 5)
    session.close()
    assert sorted(rank for rank, _ in told(events, "evicted") if rank) == [2, 5, TOP]
    assert "the graph of rank 2 could not be freed" in caplog.text


# --- prefetching --------------------------------------------------------------------------------------------------


def wait_until_idle(session: EdgeSession) -> None:
    settle(session)
    settle(session)


def test_the_neighbours_of_the_current_rung_are_kept_warm(tiny_bundle: TinyBundle) -> None:
    with EdgeSession.open(tiny_bundle[0], prefetch=True) as session:
        wait_until_idle(session)
        assert session.resident_ranks == (8, TOP)
        switch = session.switch(8).result()
        assert not switch.cold
        wait_until_idle(session)
        assert session.resident_ranks == (5, 8, TOP)
        assert not session.switch(5).result().cold


def test_prefetching_keeps_to_the_budget_and_prefers_neighbours(tiny_bundle: TinyBundle) -> None:
    path, _ = tiny_bundle
    bundle = Bundle.open(path)
    cost = {rank: (bundle.graph(rank).weight_bytes or 0) / 1e6 for rank in ALL_RUNGS}
    with EdgeSession.open(path, rank=8, prefetch=True, memory_budget_mb=cost[8] + cost[5]) as session:
        wait_until_idle(session)
        assert session.resident_ranks == (5, 8), "the lower one first; for the higher one there is no room"
        assert session.resident_bytes <= (cost[8] + cost[5]) * 1e6
    with EdgeSession.open(path, rank=2, prefetch=True, memory_budget_mb=cost[2] + cost[5] + cost[8]) as session:
        wait_until_idle(session)
        session.run({"x": X}, rank=8)
        assert session.resident_ranks == (2, 5, 8)
        session.switch(5).result()
        wait_until_idle(session)
        assert session.resident_ranks == (2, 5, 8)


def test_a_neighbour_that_cannot_be_loaded_is_left_alone(
    tiny_bundle: TinyBundle, faults: Faults, events: list[SessionEvent], clock: HandClock
) -> None:
    faults.loads = {8}
    with EdgeSession.open(
        tiny_bundle[0], engine=faults.engine, prefetch=True, listener=events.append, clock=clock
    ) as session:
        wait_until_idle(session)
        for rank in (5, TOP, 5, TOP):
            session.switch(rank).result(PATIENCE_S)
            wait_until_idle(session)
        assert told(events, "load_failed") == [(8, None)]
        assert faults.loaded.count(8) == 1


def test_a_rung_loaded_twice_at_once_is_counted_once(tiny_bundle: TinyBundle, faults: Faults) -> None:
    """The background is loading the rung when a request, too, needs it afresh."""
    loading, go_on = threading.Event(), threading.Event()
    plain = faults.engine.engine

    class Slow:
        name, owns_threads = "slow", True

        def load(self, graph_path: Path):  # type: ignore[no-untyped-def]
            if threading.current_thread().name.startswith("nsn-edge-loader") and _rank(graph_path) == TOP:
                loading.set()
                assert go_on.wait(PATIENCE_S)
            return faults.engine.load(graph_path)

        def describe(self) -> dict[str, object]:
            return plain.describe()

    with EdgeSession.open(tiny_bundle[0], engine=Slow(), listener=lambda event: None) as slow:
        for done in slow.preload([8]):
            done.result(PATIENCE_S)
        faults.runs = {TOP}
        assert slow.run({"x": X}).rank == 8  # drops the top rung and has it loaded in the background
        assert loading.wait(PATIENCE_S)
        failing = [8]  # now the stand-in fails, too; afresh the top rung answers

        def fail_next(rank: int) -> None:
            faults.runs = {failing.pop(0)} if failing and failing[0] == rank else set()

        faults.on_run = fail_next
        assert_right(slow.run({"x": X}), tiny_bundle[1], TOP, degraded=False)
        faults.on_run, faults.runs = (lambda rank: None), set()
        go_on.set()
        for done in slow.preload([2]):
            done.result(PATIENCE_S)
        assert slow.run({"x": X}).rank == TOP
        costs = {rank: slow.bundle.graph(rank).weight_bytes or 0 for rank in ALL_RUNGS}
        assert slow._store._held_bytes == sum(costs[rank] for rank in slow.resident_ranks)  # type: ignore[attr-defined]


def test_what_failed_is_gone_without_the_garbage_collector(tiny_bundle: TinyBundle, faults: Faults) -> None:
    """An error's traceback leads to the graph that it came from: neither the session nor a future may keep it."""
    graphs: list[tuple[int, weakref.ref[object]]] = []

    class Watching:
        name, owns_threads = "watching", False

        def load(self, graph_path: Path) -> object:
            graph = faults.engine.load(graph_path)
            graphs.append((_rank(graph_path), weakref.ref(graph)))
            return graph

        def describe(self) -> dict[str, object]:
            return {}

    gc.collect()
    gc.disable()
    try:
        with (
            EdgeSession.open(tiny_bundle[0], engine=Watching(), listener=lambda event: None) as session,  # type: ignore[arg-type]
            Server(session) as server,
        ):
            load(session, 8)
            faults.loads, faults.runs = {5, TOP}, {TOP}
            with pytest.raises(EngineError):
                session.run({"x": X}, rank=5, fall_back=False)
            for _ in range(3):
                assert server.submit({"x": X}).result(PATIENCE_S).rank == 8
                assert server.submit({"x": X}, rank=5).result(PATIENCE_S).degraded
            faults.runs = set(ALL_RUNGS)
            assert isinstance(server.submit({"x": X}).exception(PATIENCE_S), NoRungError)
            faults.runs = set()
            assert server.submit({"x": X}).result(PATIENCE_S).degraded
            settle(session)
            session.close()  # waits until everything is freed
            alive = [rank for rank, graph in graphs if graph() is not None]
            assert alive == []
            assert len(graphs) >= 3
    finally:
        gc.enable()
