"""No request is lost, whatever senders, workers and the clock do: a state machine against a model of the queue."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule
from sensor_tree import HandClock

from nsn_edge.errors import ClosedError, DeadlineError, EngineError, QueueFullError
from nsn_edge.runtimes.engines import Array
from nsn_edge.runtimes.serving import Ended, Server, ServerSettings
from nsn_edge.runtimes.serving.request_queue import Pending, Request, RequestQueue
from nsn_edge.runtimes.session import Answer, EdgeSession

PATIENCE_S = 60.0
NOTHING: Mapping[str, Array] = {}


class QueueMachine(RuleBasedStateMachine):
    """One thread plays senders and workers in any order, and compares with a list."""

    requests = Bundle("requests")

    @initialize(capacity=st.integers(1, 4))
    def begin(self, capacity: int) -> None:
        self.queue = RequestQueue(capacity)
        self.capacity = capacity
        self.waiting: list[tuple[Pending, float]] = []
        self.all: list[Pending] = []
        self.now_s = 0.0
        self.closed = False

    @rule(target=requests, left_s=st.sampled_from([1.0, 2.0, 5.0, math.inf]))
    def put(self, left_s: float) -> Pending:
        pending = Pending(lambda future: self.queue.remove(future) and None)
        self.all.append(pending)
        request = Request(NOTHING, None, self.now_s, self.now_s + left_s)
        try:
            self.queue.put(pending, request, 0.0)
        except ClosedError:
            assert self.closed
            pending.cancel()
        except QueueFullError:
            assert len(self.waiting) == self.capacity
            pending.cancel()
        else:
            assert not self.closed
            assert len(self.waiting) < self.capacity
            self.waiting.append((pending, request.deadline_s))
        return pending

    @precondition(lambda self: self.waiting or self.closed)
    @rule()
    def take(self) -> None:
        taken = self.queue.take()
        if not self.waiting:
            assert taken is None
            return
        assert taken is not None
        assert taken[0] is self.waiting.pop(0)[0], "the oldest goes first"
        assert taken[0].set_running_or_notify_cancel()
        taken[0].set_result(Answer({}, 1, 1.0))

    @rule(pending=requests)
    def cancel(self, pending: Pending) -> None:
        waits = any(pending is other for other, _ in self.waiting)
        assert pending.cancel() == (waits or pending.cancelled())
        self.waiting = [entry for entry in self.waiting if entry[0] is not pending]

    @rule(passed_s=st.sampled_from([0.5, 1.0, 3.0]))
    def expire(self, passed_s: float) -> None:
        self.now_s += passed_s
        expired = [pending for pending, _ in self.queue.take_expired(self.now_s)]
        assert expired == [pending for pending, deadline_s in self.waiting if deadline_s <= self.now_s]
        self.waiting = [entry for entry in self.waiting if entry[1] > self.now_s]
        for pending in expired:
            assert pending.set_running_or_notify_cancel()
            pending.set_exception(DeadlineError("late"))

    @rule()
    def close(self) -> None:
        self.queue.close()
        self.closed = True

    @precondition(lambda self: self.closed)
    @rule()
    def clear(self) -> None:
        rest = self.queue.clear()
        assert rest == [pending for pending, _ in self.waiting]
        self.waiting = []
        for pending in rest:
            assert pending.set_running_or_notify_cancel()
            pending.set_exception(ClosedError("closed"))

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert len(self.queue) == len(self.waiting) <= self.capacity
        waiting = {id(pending) for pending, _ in self.waiting}
        assert all(pending.done() or id(pending) in waiting for pending in self.all), "none is lost"


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class FakeSession:
    """Answers with the question, and fails now and then; counts how often each question ran."""

    rank = 1
    resident_ranks = (1,)

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.ran: list[int] = []

    def run(self, inputs: Mapping[str, Array], rank: int | None = None, *, fall_back: bool | None = None) -> Answer:
        number = int(inputs["number"])
        with self.lock:
            self.ran.append(number)
            dice = self.random.random()
        if dice < 0.1:
            raise EngineError(f"request {number} fails")
        if dice < 0.15:
            raise SystemExit
        return Answer({"number": inputs["number"]}, 1, 0.1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("drain", [True, False])
def test_under_real_threads_every_future_ends_once_and_as_it_should(seed: int, drain: bool) -> None:
    """Senders submit, cancel and set deadlines at random while workers serve, and the server closes amidst."""
    clock = HandClock(0.0)
    session = FakeSession(seed)
    ends: list[Ended] = []
    server = Server(
        cast(EdgeSession, session),
        ServerSettings(workers=3, capacity=8, wait_s=0.001 if seed % 2 else 0.0),
        clock=clock,
        observer=ends.append,
        listener=lambda event: None,
    )
    counts = SimpleNamespace(rejected=0, refused=0)
    lock = threading.Lock()
    half_way = threading.Event()

    def send(sender: int) -> list[tuple[int, Future[Answer]]]:
        draw = random.Random(seed * 100 + sender)
        sent: list[tuple[int, Future[Answer]]] = []
        for number in range(150):
            mark = sender * 1000 + number
            if sender == 0 and number == 100:
                half_way.set()
            deadline_ms = draw.choice([None, 5.0, -1.0])
            try:
                future = server.submit({"number": np.array(mark)}, deadline_ms=deadline_ms)
            except QueueFullError:
                with lock:
                    counts.rejected += 1
                continue
            except ClosedError:
                with lock:
                    counts.refused += 1
                continue
            sent.append((mark, future))
            if draw.random() < 0.2:
                future.cancel()
            if draw.random() < 0.1:
                clock.now_s += 0.002
        return sent

    with ThreadPoolExecutor(5) as pool:
        senders = [pool.submit(send, sender) for sender in range(4)]
        assert half_way.wait(PATIENCE_S)
        pool.submit(server.close, drain=drain).result(PATIENCE_S)
        sent = [pair for sender in senders for pair in sender.result(PATIENCE_S)]
    assert len(sent) + counts.rejected + counts.refused == 600
    assert len(session.ran) == len(set(session.ran)), "none ran twice"
    outcomes: dict[str, int] = {}
    for mark, future in sent:
        assert future.done(), "none is lost"
        outcome = ended_as(future, mark)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        assert (mark in session.ran) == (outcome in ("answered", "failed"))
    if drain:
        assert "abandoned" not in outcomes
    told: dict[str, int] = {}
    for end in ends:
        told[end.outcome] = told.get(end.outcome, 0) + 1
    assert told.pop("rejected", 0) == counts.rejected
    assert told == outcomes


def ended_as(future: Future[Any], mark: int) -> str:
    try:
        answer = future.result(0)
    except CancelledError:
        return "cancelled"
    except DeadlineError:
        return "expired"
    except ClosedError:
        return "abandoned"
    except (EngineError, SystemExit):
        return "failed"
    assert int(answer.outputs["number"]) == mark, "each gets its own answer"
    return "answered"
