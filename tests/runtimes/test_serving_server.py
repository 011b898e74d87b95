"""A server: order, back-pressure, deadlines, ranks, cancelling, closing; no request is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sensor_tree import HandClock
from tiny_bundle import ALL_RUNGS, TOP, TinyModel

from nsn_edge.errors import (
    ClosedError,
    DeadlineError,
    EngineError,
    InputError,
    QueueFullError,
    RankError,
    UsageError,
)
from nsn_edge.runtimes.engines import FaultyEngine, OnnxRuntimeEngine
from nsn_edge.runtimes.events import SessionEvent
from nsn_edge.runtimes.governor import Governor
from nsn_edge.runtimes.policy import Decision, PolicyState
from nsn_edge.runtimes.policy.costs import RungCost, RungCosts
from nsn_edge.runtimes.serving import Ended, Server, ServerSettings
from nsn_edge.runtimes.serving.rung_in_time import rung_in_time
from nsn_edge.runtimes.session import Answer, EdgeSession
from nsn_edge.runtimes.telemetry import NoTelemetry, Reading

TinyBundle = tuple[Path, TinyModel]
X = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
PATIENCE_S = 60.0
COSTS = RungCosts(tuple(RungCost(rank, p50_ms=rank * 1.0, p99_ms=rank * 2.0) for rank in ALL_RUNGS))


class Door:
    """Requests run through it one after another: each waits until it is let in."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.passes = threading.Semaphore(0)
        self.order: list[float] = []

    def before_run(self, path: Path) -> None:
        self.reached.release()
        assert self.passes.acquire(timeout=PATIENCE_S)

    def wait_for_one(self) -> None:
        assert self.reached.acquire(timeout=PATIENCE_S)

    def let(self, count: int) -> None:
        for _ in range(count):
            self.passes.release()


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def clock() -> HandClock:
    return HandClock(1000.0)


@pytest.fixture
def session(tiny_bundle: TinyBundle) -> Iterator[EdgeSession]:
    with EdgeSession.open(tiny_bundle[0]) as opened:
        for done in opened.preload(ALL_RUNGS):
            done.result(PATIENCE_S)
        yield opened


@pytest.fixture
def slow_session(tiny_bundle: TinyBundle, door: Door) -> Iterator[EdgeSession]:
    engine = FaultyEngine(OnnxRuntimeEngine(), before_run=door.before_run)
    with EdgeSession.open(tiny_bundle[0], engine=engine) as opened:
        yield opened


def test_many_senders_each_get_the_answer_to_their_own_question(session: EdgeSession, tiny_bundle: TinyBundle) -> None:
    model = tiny_bundle[1]
    questions = [np.random.default_rng(seed).standard_normal((1, 16)).astype(np.float32) for seed in range(40)]
    with Server(session, ServerSettings(workers=3, wait_s=PATIENCE_S, capacity=4)) as server:
        with ThreadPoolExecutor(4) as senders:
            futures = list(senders.map(lambda question: server.submit({"x": question}), questions))
        for question, future in zip(questions, futures, strict=True):
            answer = future.result(PATIENCE_S)
            np.testing.assert_allclose(answer.outputs["y"], model(question, TOP), rtol=1e-4, atol=1e-4)
            assert answer.waited_ms >= 0.0


def test_first_come_first_served(slow_session: EdgeSession, door: Door) -> None:
    ended: list[int] = []
    with Server(slow_session) as server:
        for number in range(6):
            server.submit({"x": X}).add_done_callback(lambda _, number=number: ended.append(number))  # type: ignore[misc]
        door.let(6)
    assert ended == list(range(6))


def test_a_full_queue_refuses_at_once(slow_session: EdgeSession, door: Door) -> None:
    events: list[SessionEvent] = []
    ends: list[Ended] = []
    settings = ServerSettings(capacity=2)
    with Server(slow_session, settings, listener=events.append, observer=ends.append) as server:
        running = server.submit({"x": X})
        door.wait_for_one()
        waiting = [server.submit({"x": X}) for _ in range(2)]
        assert server.waiting == 2
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            server.submit({"x": X})
        assert server.work().waiting == 2
        door.let(3)
        assert all(future.result(PATIENCE_S).rank == TOP for future in (running, *waiting))
    assert [event.kind for event in events] == ["rejected"]
    assert [end.outcome for end in ends] == ["rejected", "answered", "answered", "answered"]


def test_a_sender_may_wait_for_room_and_those_who_wait_are_served_in_order(
    slow_session: EdgeSession, door: Door
) -> None:
    ended: list[int] = []
    with Server(slow_session, ServerSettings(capacity=1, wait_s=PATIENCE_S)) as server:
        server.submit({"x": X})
        door.wait_for_one()

        def send(number: int) -> None:
            server.submit({"x": X}).add_done_callback(lambda _: ended.append(number))

        threads = []
        for number in range(4):
            threads.append(threading.Thread(target=send, args=(number,)))
            threads[-1].start()
            while server.waiting + len(server._queue._line) < number + 1:  # each stands in line before the next comes
                threading.Event().wait(0.001)
        assert server.waiting == 1, "the others wait for room"
        door.let(5)
        for thread in threads:
            thread.join(PATIENCE_S)
    assert ended == [0, 1, 2, 3]


def test_waiting_for_room_has_an_end(slow_session: EdgeSession, door: Door) -> None:
    with Server(slow_session, ServerSettings(capacity=1, wait_s=0.01)) as server:
        server.submit({"x": X})
        door.wait_for_one()
        server.submit({"x": X})
        with pytest.raises(QueueFullError):
            server.submit({"x": X})
        door.let(2)


def test_what_expired_while_it_waited_is_not_run(slow_session: EdgeSession, door: Door, clock: HandClock) -> None:
    events: list[SessionEvent] = []
    ends: list[Ended] = []
    with Server(slow_session, listener=events.append, observer=ends.append, clock=clock) as server:
        first = server.submit({"x": X}, deadline_ms=50)
        door.wait_for_one()
        short, long, none = (server.submit({"x": X}, deadline_ms=left) for left in (100, 5000, None))
        clock.now_s += 1.0
        door.let(3)
        assert first.result(PATIENCE_S).rank == TOP, "what runs already is answered, late"
        with pytest.raises(DeadlineError, match="passed while the request waited for 1000 ms"):
            short.result(PATIENCE_S)
        assert long.result(PATIENCE_S).waited_ms == pytest.approx(1000.0)
        assert none.result(PATIENCE_S).rank == TOP
    assert [event.kind for event in events] == ["expired"]
    assert sorted((end.outcome, end.missed) for end in ends) == [
        ("answered", False),
        ("answered", False),
        ("answered", True),
        ("expired", True),
    ]


def test_expired_requests_make_room_and_are_told_before_their_turn(
    slow_session: EdgeSession, door: Door, clock: HandClock
) -> None:
    with Server(slow_session, ServerSettings(capacity=2), clock=clock) as server:
        server.submit({"x": X})
        door.wait_for_one()
        expiring = [server.submit({"x": X}, deadline_ms=10) for _ in range(2)]
        clock.now_s += 1.0
        fresh = server.submit({"x": X})
        assert all(isinstance(future.exception(0), DeadlineError) for future in expiring), "while the worker is busy"
        door.let(2)
        assert fresh.result(PATIENCE_S).rank == TOP


@pytest.mark.parametrize("deadline_ms", [0.0, -5.0])
def test_a_deadline_that_has_passed_already(session: EdgeSession, clock: HandClock, deadline_ms: float) -> None:
    with Server(session, clock=clock) as server, pytest.raises(DeadlineError):
        server.submit({"x": X}, deadline_ms=deadline_ms).result(PATIENCE_S)


def test_a_deadline_that_is_no_number(session: EdgeSession) -> None:
    with Server(session) as server, pytest.raises(UsageError, match="a deadline is a number of milliseconds, not nan"):
        server.submit({"x": X}, deadline_ms=float("nan"))


def test_with_known_costs_the_best_rung_in_time_answers(session: EdgeSession, clock: HandClock) -> None:
    with Server(session, costs=COSTS, clock=clock) as server:

        def rank_for(deadline_ms: float | None, rank: int | None = None) -> int:
            return server.submit({"x": X}, deadline_ms=deadline_ms, rank=rank).result(PATIENCE_S).rank

        assert [rank_for(left) for left in (None, 100.0, 32.0, 31.0, 12.0, 3.0)] == [TOP, TOP, TOP, 8, 5, 2]
        assert rank_for(12.0, rank=8) == 8, "the sender's own choice goes first"
        session.switch(5).result(PATIENCE_S)
        assert rank_for(100.0) == 5, "never above what the policy allows"


def test_only_rungs_in_memory_are_chosen() -> None:
    assert rung_in_time(COSTS, 100.0, ceiling=TOP, resident=(2, 8)) == 8
    assert rung_in_time(COSTS, 1.0, ceiling=TOP, resident=(5, 8)) == 5, "none is in time: the fastest"
    assert rung_in_time(COSTS, 100.0, ceiling=1, resident=(5, 8)) is None


def test_a_named_rank_answers_or_is_stood_in_for(tiny_bundle: TinyBundle, clock: HandClock) -> None:
    def fail(path: Path) -> None:
        if path.name == "rank-005.onnx":
            raise EngineError("cut")

    with (
        EdgeSession.open(tiny_bundle[0], engine=FaultyEngine(OnnxRuntimeEngine(), before_load=fail)) as session,
        Server(session) as server,
    ):
        assert server.submit({"x": X}, rank=8).result(PATIENCE_S).rank == 8
        answer = server.submit({"x": X}, rank=5).result(PATIENCE_S)
        assert (answer.rank, answer.degraded) == (8, True)
        with pytest.raises(RankError):
            server.submit({"x": X}, rank=7).result(PATIENCE_S)


def test_a_cancelled_request_leaves_its_place_and_is_not_run(slow_session: EdgeSession, door: Door) -> None:
    ends: list[Ended] = []
    with Server(slow_session, ServerSettings(capacity=1), observer=ends.append) as server:
        running = server.submit({"x": X})
        door.wait_for_one()
        waiting = server.submit({"x": X})
        assert waiting.cancel()
        assert waiting.cancel(), "twice is no error"
        assert server.waiting == 0
        other = server.submit({"x": X})
        assert not running.cancel(), "it runs"
        door.let(2)
        assert other.result(PATIENCE_S).rank == running.result(PATIENCE_S).rank == TOP
    with pytest.raises(CancelledError):
        waiting.result(0)
    assert [end.outcome for end in ends] == ["cancelled", "answered", "answered"]


def test_wrong_inputs_fail_their_own_request_alone(session: EdgeSession) -> None:
    with Server(session) as server:
        bad, good = server.submit({}), server.submit({"x": X})
        assert isinstance(bad.exception(PATIENCE_S), InputError)
        assert good.result(PATIENCE_S).rank == TOP


@pytest.mark.parametrize("drain", [True, False])
def test_closing_ends_every_request(slow_session: EdgeSession, door: Door, drain: bool) -> None:
    ends: list[Ended] = []
    server = Server(slow_session, observer=ends.append)
    running = server.submit({"x": X})
    door.wait_for_one()
    waiting = [server.submit({"x": X}) for _ in range(5)]
    closing = threading.Thread(target=server.close, kwargs={"drain": drain})
    closing.start()
    if not drain:
        assert all(isinstance(future.exception(PATIENCE_S), ClosedError) for future in waiting)
    door.let(6)
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert running.result(0).rank == TOP
    if drain:
        assert all(future.result(0).rank == TOP for future in waiting)
    with pytest.raises(ClosedError, match="the server was closed"):
        server.submit({"x": X})
    server.close()
    assert len(ends) == 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nsn-edge-worker")]


def test_closing_wakes_those_who_wait_for_room(slow_session: EdgeSession, door: Door) -> None:
    server = Server(slow_session, ServerSettings(capacity=1, wait_s=float("inf")))
    server.submit({"x": X})
    door.wait_for_one()
    server.submit({"x": X})
    with ThreadPoolExecutor(2) as pool:
        blocked = pool.submit(server.submit, {"x": X})
        while not server._queue._line:  # until it stands there
            threading.Event().wait(0.001)
        closing = pool.submit(server.close, drain=False)
        assert isinstance(blocked.exception(PATIENCE_S), ClosedError)
        door.let(1)
        closing.result(PATIENCE_S)


def test_leaving_with_an_error_does_not_wait_for_the_queue(slow_session: EdgeSession, door: Door) -> None:
    server = Server(slow_session)
    running = server.submit({"x": X})
    door.wait_for_one()
    waiting = server.submit({"x": X})
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(server.__exit__, KeyboardInterrupt, KeyboardInterrupt(), None)
        assert isinstance(waiting.exception(PATIENCE_S), ClosedError)
        door.let(1)
        leaving.result(PATIENCE_S)
    assert running.result(0).rank == TOP


def test_a_callback_may_close_and_may_raise_anything(session: EdgeSession, caplog: pytest.LogCaptureFixture) -> None:
    server = Server(session)
    closed = threading.Event()

    def leave(future: Future[Answer]) -> None:
        raise SystemExit

    def close(future: Future[Answer]) -> None:
        server.close()
        closed.set()

    server.submit({"x": X}).add_done_callback(leave)
    assert server.submit({"x": X}).result(PATIENCE_S).rank == TOP, "the worker outlived the first"
    server.submit({"x": X}).add_done_callback(close)
    assert closed.wait(PATIENCE_S)
    server.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "the workers of a server are a whole number from 1, not 0"),
        ({"capacity": 2.5}, "the capacity of a server are a whole number from 1, not 2.5"),
        ({"wait_s": -1.0}, "the wait_s of a server are 0 seconds or more"),
        ({"wait_s": float("nan")}, "the wait_s of a server are 0 seconds or more"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ServerSettings(**settings)


def test_a_governor_moves_a_server_and_its_policy_sees_the_queue(slow_session: EdgeSession, door: Door) -> None:
    seen: list[Reading] = []

    class Looks:
        def decide(self, reading: Reading, state: PolicyState) -> Decision:
            seen.append(reading)
            return Decision(5, "always", state)

        def to_json(self) -> dict[str, Any]:
            return {}

    with Server(slow_session) as server:
        governor = Governor(NoTelemetry(), Looks(), server)
        server.submit({"x": X})
        door.wait_for_one()
        for _ in range(3):
            server.submit({"x": X})
        governor.tick()
        assert seen[0].work is not None
        assert seen[0].work.waiting == 3
        assert seen[0].work.arrivals_per_s is not None
        assert server.ladder.ranks == ALL_RUNGS
        slow_session.switch(5).result(PATIENCE_S)
        assert server.rank == 5
        door.let(4)


def test_a_session_that_was_closed_first(tiny_bundle: TinyBundle) -> None:
    session = EdgeSession.open(tiny_bundle[0])
    with Server(session) as server:
        session.close()
        assert isinstance(server.submit({"x": X}).exception(PATIENCE_S), ClosedError)


def test_a_broken_observer_or_listener_does_no_harm(session: EdgeSession, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: object) -> None:
        raise ValueError("a broken dashboard")

    hook: Callable[[Any], None] = broken
    with Server(session, observer=hook, listener=hook) as server:
        assert server.submit({"x": X}).result(PATIENCE_S).rank == TOP
        with pytest.raises(DeadlineError):
            server.submit({"x": X}, deadline_ms=0).result(PATIENCE_S)
    assert "a broken dashboard" in caplog.text
