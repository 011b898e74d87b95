"""A session: every answer is that of the rank it claims; ranks, budgets, forms and errors."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import ALL_RUNGS, TOP, TinyModel

from nsn_edge.bundle import Bundle
from nsn_edge.errors import BundleError, EngineError, NsnEdgeError, RankError, UsageError
from nsn_edge.runtimes.engines import FaultyEngine, OnnxRuntimeEngine
from nsn_edge.runtimes.engines.faulty import fail_on
from nsn_edge.runtimes.events import SessionEvent
from nsn_edge.runtimes.session import EdgeSession

TinyBundle = tuple[Path, TinyModel]

X = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)


def assert_answers(session: EdgeSession, model: TinyModel, rank: int, asked: int | None = None) -> None:
    answer = session.run({"x": X}, rank=asked)
    assert answer.rank == rank
    assert answer.latency_ms > 0
    np.testing.assert_allclose(answer.outputs["y"], model(X, rank), rtol=1e-4, atol=1e-4)


def costs_mb(path: Path) -> dict[int, float]:
    bundle = Bundle.open(path)
    return {rank: (bundle.graph(rank).weight_bytes or 0) / 1e6 for rank in ALL_RUNGS}


def test_every_rung_answers_as_numpy_does(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    with EdgeSession.open(path) as session:
        assert session.rank == session.top_rank == TOP
        assert session.resident_ranks == (TOP,)
        for rank in ALL_RUNGS:
            assert_answers(session, model, rank, asked=rank)
        assert session.rank == TOP, "a rank named for one request leaves the current one as it is"
        assert session.resident_ranks == ALL_RUNGS
        assert session.resident_bytes == round(sum(costs_mb(path).values()) * 1e6)


@pytest.mark.parametrize("form", ["sliced", "masked"])
def test_a_graph_with_a_rank_input_answers_at_every_rank(tiny_bundle: TinyBundle, form: str) -> None:
    path, model = tiny_bundle
    with EdgeSession.open(path, form=form) as session:
        for rank in range(1, TOP + 1):
            answer = session.run({"x": X}, rank=rank)
            assert answer.rank == rank
            np.testing.assert_allclose(answer.outputs["y"], model(X, rank, dense=False), rtol=1e-4, atol=1e-4)
        switch = session.switch(7).result()
        assert (switch.from_rank, switch.to_rank, switch.happened, switch.cold) == (TOP, 7, True, False)
        assert session.run({"x": X}).rank == session.rank == 7
        assert session.resident_ranks == tuple(range(1, TOP + 1))
        for wrong in (0, TOP + 1):
            with pytest.raises(RankError, match=rf"rank {wrong} is outside 1\.\.16"):
                session.run({"x": X}, rank=wrong)
            with pytest.raises(RankError):
                session.switch(wrong)
    with pytest.raises(EngineError, match="session was closed"):
        session.run({"x": X})


def test_switching_loads_once_and_is_instant_afterwards(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    with EdgeSession.open(path, rank=8) as session:
        cold = session.switch(5).result()
        assert (cold.from_rank, cold.to_rank, cold.happened, cold.cold) == (8, 5, True, True)
        assert_answers(session, model, 5)
        back = session.switch(8)
        assert back.done(), "a resident rung needs no thread"
        assert not back.result().cold
        assert_answers(session, model, 8)
        assert session.resident_ranks == (5, 8)


def test_preloading_does_not_switch(tiny_bundle: TinyBundle) -> None:
    with EdgeSession.open(tiny_bundle[0]) as session:
        for done in session.preload([2, 5]):
            done.result()
        assert session.resident_ranks == (2, 5, TOP)
        assert session.rank == TOP
        assert not session.switch(2).result().cold


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, r"rank 0 is outside 1\.\.16"),
        (17, r"rank 17 is outside 1\.\.16"),
        (6, "no rung at rank 6 (the rungs are 2, 5, 8, 16)"),
        (True, "a rank is a whole number, not True"),
        (5.0, "a rank is a whole number, not 5.0"),
    ],
)
def test_ranks_that_are_none(tiny_bundle: TinyBundle, rank: Any, message: str) -> None:
    pattern = message if "\\" in message else re.escape(message)
    with EdgeSession.open(tiny_bundle[0]) as session:
        for call in (
            lambda: session.run({"x": X}, rank=rank),
            lambda: session.switch(rank),
            lambda: session.preload([rank]),
        ):
            with pytest.raises(RankError, match=pattern):
                call()
        assert session.run({"x": X}).rank == TOP
    with pytest.raises(RankError, match=pattern):
        EdgeSession.open(tiny_bundle[0], rank=rank)


def test_a_numpy_rank_is_a_rank(tiny_bundle: TinyBundle) -> None:
    with EdgeSession.open(tiny_bundle[0]) as session:
        assert session.run({"x": X}, rank=np.int64(5)).rank == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "folded"}, "unknown form 'folded' (choose static, gated, bound, sliced, masked)"),
        ({"memory_budget_mb": 0}, "a memory budget is a positive number of megabytes, not 0"),
        ({"memory_budget_mb": float("nan")}, "a memory budget is a positive number"),
    ],
)
def test_settings_that_make_no_sense(tiny_bundle: TinyBundle, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        EdgeSession.open(tiny_bundle[0], **settings)


def test_damaged_bundles_are_refused(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    path, _ = tiny_bundle
    with pytest.raises(UsageError, match="no bundle at"):
        EdgeSession.open(tmp_path / "absent")
    weights = (path / "weights.bin").read_bytes()
    (path / "weights.bin").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"weights\.bin .* SHA-256"):
        EdgeSession.open(path)
    EdgeSession.open(path, check_hashes=False).close()
    (path / "rank-005.onnx").unlink()
    with pytest.raises(BundleError, match=r"rank-005\.onnx is missing"):
        EdgeSession.open(path, check_hashes=False)


def test_a_closed_session_says_so(tiny_bundle: TinyBundle) -> None:
    session = EdgeSession.open(tiny_bundle[0])
    session.close()
    session.close()
    for call in (
        lambda: session.run({"x": X}),
        lambda: session.run({"x": X}, rank=5),
        lambda: session.switch(TOP),
        lambda: session.preload([5]),
    ):
        with pytest.raises(EngineError, match="session was closed"):
            call()
    assert session.resident_ranks == ()


def test_wrong_inputs_leave_the_session_usable(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    with EdgeSession.open(path, memory_budget_mb=costs_mb(path)[TOP]) as session:
        for _ in range(3):
            with pytest.raises(EngineError, match="lacks the input 'x'"):
                session.run({}, rank=5)
        assert session.resident_ranks == (TOP,), "a failed request must give its lease back"
        assert_answers(session, model, TOP)


# --- memory budget ------------------------------------------------------------------------------------------------


def test_the_least_recently_used_rung_goes(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    cost = costs_mb(path)
    events: list[SessionEvent] = []
    budget = cost[2] + cost[5] + cost[8]
    with EdgeSession.open(path, rank=2, memory_budget_mb=budget, listener=events.append) as session:
        session.run({"x": X}, rank=5)
        session.run({"x": X}, rank=8)
        assert session.resident_ranks == (2, 5, 8)
        session.run({"x": X}, rank=5)
        session.run({"x": X}, rank=2)
        assert_answers(session, model, TOP, asked=TOP)  # needs the room of 8 and of 5
        assert session.resident_ranks == (2, TOP)
        assert session.resident_bytes <= budget * 1e6
    assert [event.rank for event in events if event.kind == "evicted"][:2] == [8, 5]


def test_the_current_rung_is_never_evicted(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    cost = costs_mb(path)
    with EdgeSession.open(path, rank=2, memory_budget_mb=cost[2] + cost[8]) as session:
        for rank in (5, 8, 5, 8, 5):
            assert_answers(session, model, rank, asked=rank)
            assert 2 in session.resident_ranks
            assert session.resident_bytes <= (cost[2] + cost[8]) * 1e6
        assert session.run({"x": X}).rank == 2


def test_a_budget_for_one_rung_still_switches(tiny_bundle: TinyBundle) -> None:
    """The old and the new rung are held together while the switch lasts; afterwards the budget holds again."""
    path, model = tiny_bundle
    with EdgeSession.open(path, memory_budget_mb=costs_mb(path)[TOP]) as session:
        for rank in (2, 5, 8, TOP, 2):
            assert session.switch(rank).result().happened
            assert session.rank == rank
            assert_answers(session, model, rank)
        assert session.resident_ranks == (2,)


def test_a_budget_too_small_says_how_much_is_needed(tiny_bundle: TinyBundle) -> None:
    path, _ = tiny_bundle
    tiny_mb = costs_mb(path)[2]
    with pytest.raises(UsageError, match=r"smallest rung takes 0\.000448 MB: raise the budget to that"):
        EdgeSession.open(path, memory_budget_mb=tiny_mb / 2)
    with EdgeSession.open(path, memory_budget_mb=tiny_mb) as session:
        assert session.rank == session.top_rank == 2, "without a rank, the highest that fits"
        for call in (lambda: session.switch(5), lambda: session.run({"x": X}, rank=TOP)):
            with pytest.raises(UsageError, match=r"more than the memory budget .*within it fit: 2"):
                call()
    with pytest.raises(UsageError, match="rank 8 takes"):
        EdgeSession.open(path, rank=8, memory_budget_mb=tiny_mb)


def test_the_session_s_ladder_has_the_rungs_that_fit_so_a_policy_never_asks_for_another(
    tiny_bundle: TinyBundle,
) -> None:
    path, _ = tiny_bundle
    with EdgeSession.open(path) as session:
        assert session.ladder == session.bundle.manifest.ladder
    with EdgeSession.open(path, memory_budget_mb=costs_mb(path)[5]) as session:
        assert session.ladder.ranks == (2, 5)
        assert session.ladder.layers == session.bundle.manifest.ladder.layers
        assert session.switch(session.ladder.rung_within(1.0).rank).result().happened


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_rung_that_fails_to_load_leaves_the_old_one(
    tiny_bundle: TinyBundle, caplog: pytest.LogCaptureFixture
) -> None:
    path, model = tiny_bundle
    engine = FaultyEngine(OnnxRuntimeEngine(), before_load=fail_on("rank-005.onnx"))
    with EdgeSession.open(path, engine=engine) as session:
        with caplog.at_level(logging.WARNING, "nsn_edge.runtimes"):
            error = session.switch(5).exception()
        assert isinstance(error, EngineError)
        assert "rank 5 load_failed rank-005.onnx fails on purpose" in caplog.text
        assert session.rank == TOP
        assert session.resident_ranks == (TOP,)
        assert_answers(session, model, TOP)
        with pytest.raises(EngineError, match="fails on purpose"):
            session.run({"x": X}, rank=5)
        assert session.switch(8).result().happened
        assert_answers(session, model, 8)


def test_a_file_that_breaks_after_opening_is_reported(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    events: list[SessionEvent] = []
    with EdgeSession.open(path, listener=events.append) as session:
        (path / "rank-005.onnx").write_bytes(b"gone bad")
        with pytest.raises(EngineError, match=r"cannot load rank-005\.onnx"):
            session.switch(5).result()
        assert [event.kind for event in events] == ["loaded", "load_failed"]
        assert "rank-005.onnx" in events[-1].message
        assert_answers(session, model, TOP)


def test_opening_fails_when_the_first_rung_does(tiny_bundle: TinyBundle) -> None:
    engine = FaultyEngine(OnnxRuntimeEngine(), before_load=fail_on("rank-016.onnx", "sliced.onnx"))
    for settings in ({}, {"form": "sliced"}):
        with pytest.raises(EngineError, match="fails on purpose"):
            EdgeSession.open(tiny_bundle[0], engine=engine, **settings)
    EdgeSession.open(tiny_bundle[0], engine=engine, rank=5).close()


def test_a_listener_that_raises_does_no_harm(tiny_bundle: TinyBundle, caplog: pytest.LogCaptureFixture) -> None:
    def listener(event: SessionEvent) -> None:
        raise ValueError("a broken dashboard")

    with EdgeSession.open(tiny_bundle[0], listener=listener) as session:
        assert session.switch(5).result().happened
    assert "a broken dashboard" in caplog.text


def test_events_tell_the_story(tiny_bundle: TinyBundle) -> None:
    events: list[SessionEvent] = []
    with EdgeSession.open(tiny_bundle[0], listener=events.append) as session:
        session.switch(5).result()
        session.switch(5).result()
        session.switch(TOP).result()
    told = [(event.kind, event.rank) for event in events]
    assert told[:4] == [("loaded", TOP), ("loaded", 5), ("switched", 5), ("switched", TOP)]
    assert sorted(told[4:]) == [("evicted", 5), ("evicted", TOP)]


def test_an_engine_that_is_no_onnxruntime_plugs_in(tiny_bundle: TinyBundle) -> None:
    """What an outsider writes: two small classes, no base class."""

    class Graph:
        def __init__(self, path: Path) -> None:
            self.path, self.inputs, self.outputs = path, (), ()

        def run(self, inputs: Any) -> dict[str, np.ndarray]:
            return {"y": np.array([int(self.path.stem.rsplit("-", 1)[1])])}

        def close(self) -> None:
            pass

    class Mine:
        name, owns_threads = "mine", False

        def load(self, graph_path: Path) -> Graph:
            return Graph(graph_path)

        def describe(self) -> dict[str, Any]:
            return {"engine": self.name}

    with EdgeSession.open(tiny_bundle[0], engine=Mine()) as session:
        assert [session.run({}, rank=rank).outputs["y"].item() for rank in ALL_RUNGS] == list(ALL_RUNGS)


def test_every_error_is_one_line(tiny_bundle: TinyBundle) -> None:
    with EdgeSession.open(tiny_bundle[0]) as session, pytest.raises(NsnEdgeError) as caught:
        session.run({"x": X[:, :3]})
    assert "\n" not in str(caught.value)
