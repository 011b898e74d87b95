"""What a session counts of its requests, and that the policy sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sensor_tree import HandClock
from tiny_bundle import TOP, TinyModel

from nsn_edge.errors import EngineError
from nsn_edge.runtimes.governor import Governor
from nsn_edge.runtimes.policy import Decision, PolicyState
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.telemetry import NoTelemetry, Reading, Work
from nsn_edge.runtimes.workload import WorkMeter

X = np.ones((1, 16), np.float32)


def test_answers_are_handed_over_once_oldest_first() -> None:
    meter = WorkMeter(clock=HandClock(0.0))
    meter.answered(5, 1.0)
    meter.answered(8, 2.0)
    assert meter.take().answers == ((5, 1.0), (8, 2.0))
    assert meter.take().answers == ()


def test_of_many_answers_the_newest_stay() -> None:
    meter = WorkMeter(clock=HandClock(0.0))
    for number in range(5000):
        meter.answered(5, float(number))
    answers = meter.take().answers
    assert len(answers) == 1024
    assert answers[-1].latency_ms == 4999.0
    assert answers[0].latency_ms == 5000.0 - 1024.0


def test_arrivals_are_averaged_over_the_last_ten_seconds() -> None:
    clock = HandClock(100.0)
    meter = WorkMeter(clock=clock)
    assert meter.take() == Work((), None, None), "no time has passed, so no rate is known"
    for _ in range(30):  # two a second for half a minute
        clock.now_s += 1.0
        meter.arrived()
        meter.arrived()
        work = meter.take(waiting=3)
    assert work.arrivals_per_s == pytest.approx(2.0)
    assert work.waiting == 3
    for _ in range(30):
        clock.now_s += 1.0
        work = meter.take()
    assert work.arrivals_per_s == 0.0, "what is long ago is forgotten"


def test_frequent_questions_do_not_shorten_the_window() -> None:
    clock = HandClock(0.0)
    meter = WorkMeter(clock=clock)
    for step in range(2000):
        clock.now_s += 0.01
        if step % 100 == 0:
            meter.arrived()
        work = meter.take()
    assert work.arrivals_per_s == pytest.approx(1.0, abs=0.15)


def test_a_session_counts_what_it_answers(tiny_bundle: tuple[Path, TinyModel]) -> None:
    with EdgeSession.open(tiny_bundle[0]) as session:
        session.run({"x": X})
        answer = session.run({"x": X}, rank=5)
        with pytest.raises(EngineError):
            session.run({})
        work = session.work()
        assert [done.rank for done in work.answers] == [TOP, 5], "what failed is no answer"
        assert work.answers[1].latency_ms == answer.latency_ms
        assert work.arrivals_per_s is not None
        assert work.arrivals_per_s > 0.0
        assert work.waiting is None
        assert session.work().answers == ()


def test_the_policy_sees_the_work_in_each_reading(tiny_bundle: tuple[Path, TinyModel]) -> None:
    seen: list[Reading] = []

    class Looks:
        def decide(self, reading: Reading, state: PolicyState) -> Decision:
            seen.append(reading)
            return Decision(5, "always", state)

        def to_json(self) -> dict[str, Any]:
            return {}

    with EdgeSession.open(tiny_bundle[0]) as session:
        governor = Governor(NoTelemetry(), Looks(), session)
        session.run({"x": X})
        governor.tick()
        governor.tick()
    assert [len(reading.work.answers) if reading.work else None for reading in seen] == [1, 0]
