"""Many threads, random switches, evictions, slow and failing loads: no request is lost, held up or answered wrongly."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import ALL_RUNGS, TOP, TinyModel

from nsn_edge.bundle import Bundle
from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines import FaultyEngine, OnnxRuntimeEngine
from nsn_edge.runtimes.events import SessionEvent
from nsn_edge.runtimes.session import EdgeSession, Switch

TinyBundle = tuple[Path, TinyModel]
X = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
PATIENCE_S = 60.0
"""For things that must happen; never reached unless they do not."""


class Gate:
    """Holds the loads of some graphs back until it is opened."""

    def __init__(self, *file_names: str) -> None:
        self._names = file_names
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, graph_path: Path) -> None:
        if graph_path.name in self._names:
            self.reached.set()
            assert self.open.wait(PATIENCE_S)


def is_right(session: EdgeSession, model: TinyModel, expected: dict[int, np.ndarray], rank: int | None) -> bool:
    answer = session.run({"x": X}, rank=rank)
    assert rank in (None, answer.rank)
    return np.allclose(answer.outputs["y"], expected[answer.rank], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget_rungs", [None, (2, TOP), (TOP,)], ids=["unbounded", "two rungs", "one rung"])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_switches_under_load(tiny_bundle: TinyBundle, budget_rungs: tuple[int, ...] | None, seed: int) -> None:
    path, model = tiny_bundle
    expected = {rank: model(X, rank) for rank in ALL_RUNGS}
    bundle = Bundle.open(path)
    budget_mb = None
    if budget_rungs is not None:
        budget_mb = sum(bundle.graph(rank).weight_bytes or 0 for rank in budget_rungs) / 1e6
    switches: list[Switch] = []
    failed: list[SessionEvent] = []

    with EdgeSession.open(
        bundle, memory_budget_mb=budget_mb, listener=lambda event: failed.append(event) if event.message else None
    ) as session:

        def requests(worker: int) -> int:
            draw = random.Random(seed * 100 + worker)
            right = 0
            for _ in range(250):
                named = draw.choice(ALL_RUNGS) if draw.random() < 0.2 else None
                right += is_right(session, model, expected, named)
            return right

        def switching() -> None:
            draw = random.Random(seed)
            pending = []
            for _ in range(150):
                pending.append(session.switch(draw.choice(ALL_RUNGS)))
                if draw.random() < 0.5:
                    pending[-1].result(PATIENCE_S)
            switches.extend(done.result(PATIENCE_S) for done in pending)

        with ThreadPoolExecutor(5) as pool:
            switcher = pool.submit(switching)
            answered = list(pool.map(requests, range(4)))
            switcher.result()

        assert answered == [250] * 4
        assert failed == []
        assert len(switches) == 150
        assert any(switch.happened for switch in switches)
        last = [switch for switch in switches if switch.happened][-1]
        assert session.rank in ALL_RUNGS
        assert session.rank == last.to_rank
        assert session.run({"x": X}).rank == session.rank
        if budget_mb is not None:
            # What is over the budget may only be what is in use, and nothing is.
            assert session.resident_bytes <= budget_mb * 1e6


def test_a_slow_load_holds_up_nobody(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    gate = Gate("rank-005.onnx")
    expected = {rank: model(X, rank) for rank in ALL_RUNGS}
    engine = FaultyEngine(OnnxRuntimeEngine(), before_load=gate)
    with EdgeSession.open(path, engine=engine) as session:
        switch = session.switch(5)
        assert gate.reached.wait(PATIENCE_S)
        for _ in range(50):  # the loader is stuck, and these return
            assert is_right(session, model, expected, None)
            assert session.rank == TOP
        assert is_right(session, model, expected, 8), "not even another cold rung waits for it"
        assert session.switch(8).result(PATIENCE_S).happened
        assert not switch.done()
        gate.open.set()
        overtaken = switch.result(PATIENCE_S)
        assert not overtaken.happened, "the later switch to 8 wins"
        assert session.rank == 8
        assert 5 in session.resident_ranks


def test_of_several_switches_the_last_wins(tiny_bundle: TinyBundle) -> None:
    path, _ = tiny_bundle
    gate = Gate("rank-002.onnx")
    loads: list[str] = []
    engine = FaultyEngine(OnnxRuntimeEngine(), before_load=lambda path: (loads.append(path.name), gate(path))[0])
    with EdgeSession.open(path, engine=engine) as session:
        pending = [session.switch(rank) for rank in (2, 5, 8)]
        gate.open.set()
        outcomes = [switch.result(PATIENCE_S) for switch in pending]
        assert [outcome.happened for outcome in outcomes[1:]] == [False, True]
        assert session.rank == 8
        assert "rank-005.onnx" not in loads, "what was overtaken before it began is not loaded"


def test_several_requests_for_one_cold_rung_load_it_once(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    gate = Gate("rank-005.onnx")
    loads: list[str] = []
    engine = FaultyEngine(OnnxRuntimeEngine(), before_load=lambda path: (loads.append(path.name), gate(path))[0])
    expected = {rank: model(X, rank) for rank in ALL_RUNGS}
    with EdgeSession.open(path, engine=engine) as session, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(is_right, session, model, expected, 5) for _ in range(4)]
        assert gate.reached.wait(PATIENCE_S)
        gate.open.set()
        assert all(future.result(PATIENCE_S) for future in waiting)
    assert loads.count("rank-005.onnx") == 1


def test_all_who_wait_for_a_failing_load_hear_of_it(tiny_bundle: TinyBundle) -> None:
    gate = Gate("rank-005.onnx")

    def fail(path: Path) -> None:
        gate(path)
        if path.name == "rank-005.onnx":
            raise EngineError("no such luck")

    engine = FaultyEngine(OnnxRuntimeEngine(), before_load=fail)
    with EdgeSession.open(tiny_bundle[0], engine=engine) as session, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(session.run, {"x": X}, 5) for _ in range(4)]
        assert gate.reached.wait(PATIENCE_S)
        gate.open.set()
        assert all(isinstance(future.exception(PATIENCE_S), EngineError) for future in waiting)
        assert session.run({"x": X}).rank == TOP
        assert session.resident_ranks == (TOP,)


def test_a_rung_in_use_outlives_its_eviction(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    running, finish = threading.Event(), threading.Event()

    def before_run(graph_path: Path) -> None:
        if graph_path.name == "rank-002.onnx":
            running.set()
            assert finish.wait(PATIENCE_S)

    engine = FaultyEngine(OnnxRuntimeEngine(), before_run=before_run)
    budget_mb = (Bundle.open(path).graph(8).weight_bytes or 0) / 1e6
    with (
        EdgeSession.open(path, engine=engine, rank=2, memory_budget_mb=budget_mb) as session,
        ThreadPoolExecutor(1) as pool,
    ):
        request = pool.submit(session.run, {"x": X})
        assert running.wait(PATIENCE_S)
        assert session.switch(8).result(PATIENCE_S).happened
        assert session.resident_ranks == (2, 8), "over the budget, as the old rung still answers"
        finish.set()
        answer = request.result(PATIENCE_S)
        np.testing.assert_allclose(answer.outputs["y"], model(X, 2), rtol=1e-4, atol=1e-4)
        assert answer.rank == 2
        assert session.resident_ranks == (8,)


def test_closing_lets_a_running_request_finish(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    running, finish = threading.Event(), threading.Event()

    def before_run(graph_path: Path) -> None:
        running.set()
        assert finish.wait(PATIENCE_S)

    session = EdgeSession.open(path, engine=FaultyEngine(OnnxRuntimeEngine(), before_run=before_run))
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(session.run, {"x": X})
        assert running.wait(PATIENCE_S)
        session.close()
        finish.set()
        np.testing.assert_allclose(request.result(PATIENCE_S).outputs["y"], model(X, TOP), rtol=1e-4, atol=1e-4)
    assert session.resident_ranks == ()


def test_closing_cancels_loads_that_have_not_begun(tiny_bundle: TinyBundle) -> None:
    gate = Gate("rank-002.onnx")
    session = EdgeSession.open(tiny_bundle[0], engine=FaultyEngine(OnnxRuntimeEngine(), before_load=gate))
    first, second = session.preload([2, 5])
    assert gate.reached.wait(PATIENCE_S)
    closing = threading.Thread(target=session.close)
    closing.start()
    gate.open.set()
    closing.join(PATIENCE_S)
    assert first.exception(PATIENCE_S) is None
    assert second.done()
    assert session.resident_ranks == ()


def test_a_listener_may_switch(tiny_bundle: TinyBundle) -> None:
    """A dashboard that reacts to an event by asking for another rung must not lock the session up."""
    asked: list[object] = []

    def listener(event: SessionEvent) -> None:
        if event.kind == "switched" and event.rank == 5:
            asked.append(session.switch(8))

    session = EdgeSession.open(tiny_bundle[0], listener=listener)
    with session:
        for done in session.preload([5, 8]):
            done.result(PATIENCE_S)
        session.switch(5).result(PATIENCE_S)
        assert len(asked) == 1
        assert session.rank == 8
