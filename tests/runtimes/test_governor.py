"""The loop on a device: it follows the policy, and no fault of sensor, policy or load ends it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from sensor_tree import HandClock, write_supply

from nsn_edge.errors import EngineError, UsageError
from nsn_edge.ladder import RankLadder, uniform_ladder
from nsn_edge.runtimes.data import DEFAULT_POLICY
from nsn_edge.runtimes.events import Cause, SessionEvent
from nsn_edge.runtimes.governor import Governor
from nsn_edge.runtimes.policy import Decision, PolicyState, RungPolicy, load_policy
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.telemetry import LinuxBattery, Reading

PLAIN = uniform_ladder([("a", 384, 384, 384)], align=8)
LADDER = PLAIN.with_rungs([PLAIN.rank_for_fraction(part) for part in (0.25, 0.35, 0.5, 0.75)], dense_top=True)
POLICY = RungPolicy(load_policy(DEFAULT_POLICY), LADDER)


class Device:
    """A sensor that tests set by hand; an exception is raised."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.battery_pct: float | Exception | None = 90.0

    def read(self) -> Reading:
        if isinstance(self.battery_pct, Exception):
            raise self.battery_pct
        return Reading(self.clock(), battery_pct=self.battery_pct, on_mains=False)


class FakeSession:
    """Remembers what it was asked; `outcome` makes the future of each switch."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.causes: list[Cause | None] = []
        self.heard = threading.Event()
        self.outcome: Callable[[Future[Any]], None] = lambda future: future.set_result(None)

    def switch(self, rank: int, *, cause: Cause | None = None) -> Future[Any]:
        self.asked.append(rank)
        self.causes.append(cause)
        self.heard.set()
        future: Future[Any] = Future()
        self.outcome(future)
        return future


@pytest.fixture
def clock() -> HandClock:
    return HandClock(0.0)


@pytest.fixture
def device(clock: HandClock) -> Device:
    return Device(clock)


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def governor(device: Device, session: FakeSession, clock: HandClock) -> Iterator[Governor]:
    with_clock = Governor(device, POLICY, session, interval_s=0.001, clock=clock)
    yield with_clock
    with_clock.close()


def test_it_asks_for_a_rung_only_when_the_decision_changes(
    governor: Governor, device: Device, session: FakeSession, clock: HandClock
) -> None:
    assert governor.decision is None
    for battery_pct, rank in ((90.0, 384), (90.0, 384), (9.0, 48), (9.5, 48)):
        device.battery_pct = battery_pct
        clock.now_s += 1.0
        assert governor.tick().rank == rank
    assert session.asked == [384, 48]
    assert governor.decision is not None
    assert governor.decision.reason.startswith("battery 9.5 %")


def test_a_sensor_that_dies_is_bridged_then_unknown_and_reported_once(
    governor: Governor, device: Device, session: FakeSession, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    governor.tick()
    device.battery_pct = OSError("gone")
    for _ in range(10):
        clock.now_s += 1.0
        assert governor.tick().rank == 384
    clock.now_s += 1.0
    decision = governor.tick()
    assert (decision.rank, session.asked) == (48, [384, 48])
    assert "nothing is known" in decision.reason or "unknown" in decision.reason
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


@pytest.mark.parametrize("when", ["at once", "in the background"])
def test_a_rung_that_cannot_be_loaded_is_tried_again_later(
    governor: Governor,
    device: Device,
    session: FakeSession,
    clock: HandClock,
    caplog: pytest.LogCaptureFixture,
    when: str,
) -> None:
    governor.tick()

    def fail(future: Future[Any]) -> None:
        if when == "at once":
            raise EngineError("the graph is cut")
        future.set_exception(EngineError("the graph is cut"))

    session.outcome = fail
    device.battery_pct = 9.0
    for _ in range(25):
        clock.now_s += 1.0
        governor.tick()
    assert session.asked == [384, 48], "one attempt, no storm"
    assert "rank 48 cannot be loaded: the graph is cut" in caplog.text
    session.outcome = lambda future: future.set_result(None)
    clock.now_s += 30.0
    governor.tick()
    governor.tick()
    assert session.asked == [384, 48, 48]


def test_after_a_failure_another_rung_is_asked_for_at_once(
    governor: Governor, device: Device, session: FakeSession, clock: HandClock
) -> None:
    governor.tick()
    session.outcome = lambda future: future.set_exception(EngineError("cut"))
    device.battery_pct = 30.0
    governor.tick()
    session.outcome = lambda future: future.set_result(None)
    device.battery_pct = 9.0
    governor.tick()
    assert session.asked == [384, 96, 48]


class LadderSession(FakeSession):
    """Knows its rungs, as a real one; the loads of those in `broken` fail, now or when `release` is called."""

    def __init__(self, ladder: RankLadder, *, later: bool) -> None:
        super().__init__()
        self.ladder = ladder
        self.rank = ladder.ranks[-1]
        self.broken: set[int] = set()
        self.later = later
        self.pending: list[tuple[int, Future[Any]]] = []

    def switch(self, rank: int, *, cause: Cause | None = None) -> Future[Any]:
        self.outcome = lambda future: self.pending.append((rank, future))
        future = super().switch(rank, cause=cause)
        if not self.later:
            self.release()
        return future

    def release(self) -> None:
        while self.pending:
            rank, future = self.pending.pop(0)
            if rank in self.broken:
                future.set_exception(EngineError(f"rank {rank} is cut"))
            else:
                self.rank = rank
                future.set_result(None)


@pytest.mark.parametrize("later", [False, True], ids=["at once", "in the background"])
@pytest.mark.parametrize(
    ("battery_pct", "broken", "asked"),
    [
        (30.0, {96}, [384, 96, 64]),
        (30.0, {96, 64}, [384, 96, 64, 48]),
        (9.0, {48}, [384, 48, 64]),
        (9.0, {48, 64, 96, 144}, [384, 48, 64, 96, 144]),
    ],
    ids=["next lower", "the one after", "none lower: nearest higher", "none at all: it stays"],
)
def test_a_down_switch_that_fails_goes_to_the_next_rung_at_once(
    device: Device,
    clock: HandClock,
    battery_pct: float,
    broken: set[int],
    asked: list[int],
    later: bool,
) -> None:
    session = LadderSession(LADDER, later=later)
    assert set(asked) <= set(LADDER.ranks)
    governor = Governor(device, POLICY, session, clock=clock)
    governor.tick()
    session.release()
    session.broken = broken
    device.battery_pct = battery_pct
    clock.now_s += 1.0
    governor.tick()
    session.release()
    assert session.asked == asked, "without waiting for another tick"
    stands_at = session.rank
    for _ in range(20):
        clock.now_s += 1.0
        governor.tick()
        session.release()
    assert session.asked == asked, "no storm"
    assert session.rank == stands_at
    session.broken = set()
    clock.now_s += 30.0
    for _ in range(3):
        governor.tick()
        session.release()
    assert governor.decision is not None
    assert session.rank == governor.decision.rank, "the failed rung is tried again later"


def test_an_up_switch_that_fails_stops_at_the_highest_rung_that_loads(device: Device, clock: HandClock) -> None:
    session = LadderSession(LADDER, later=False)
    session.broken = {384}
    session.rank = 48
    governor = Governor(device, POLICY, session, clock=clock)
    governor.tick()
    assert session.asked == [384, 144]
    assert session.rank == 144


def test_the_switch_carries_its_cause(governor: Governor, device: Device, session: FakeSession) -> None:
    governor.tick()
    device.battery_pct = 9.0
    governor.tick()
    cause = session.causes[-1]
    assert cause is not None
    assert cause.reason.startswith("battery 9 %")
    assert cause.reading is not None
    assert cause.reading.battery_pct == 9.0
    assert governor.reading is not None
    assert governor.reading.battery_pct == 9.0


def test_outages_of_sensors_are_told_when_they_begin_and_end(
    device: Device, session: FakeSession, clock: HandClock
) -> None:
    events: list[SessionEvent] = []
    governor = Governor(device, POLICY, session, clock=clock, max_age_s=5.0, listener=events.append)
    governor.tick()
    device.battery_pct = OSError("gone")
    for _ in range(20):
        clock.now_s += 1.0
        governor.tick()
    device.battery_pct = 50.0
    clock.now_s += 1.0
    governor.tick()
    assert [(event.kind, event.message) for event in events] == [
        ("telemetry_lost", "unknown now: battery_pct, on_mains"),
        ("telemetry_back", "known again: battery_pct, on_mains"),
    ]


def test_a_cancelled_switch_is_no_failure(
    governor: Governor, session: FakeSession, caplog: pytest.LogCaptureFixture
) -> None:
    session.outcome = lambda future: future.cancel()  # type: ignore[assignment, return-value]
    governor.tick()
    governor.tick()
    assert session.asked == [384]
    assert not caplog.records


def test_the_thread_follows_the_device_and_stops(governor: Governor, device: Device, session: FakeSession) -> None:
    with governor:
        governor.start()
        assert session.heard.wait(20)
        session.heard.clear()
        device.battery_pct = 9.0
        assert session.heard.wait(20)
    assert session.asked == [384, 48]
    assert "nsn-edge-governor" not in {thread.name for thread in threading.enumerate()}
    device.battery_pct = 90.0
    assert session.asked == [384, 48]


def test_the_thread_outlives_a_policy_that_raises(
    device: Device, session: FakeSession, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty:
        calls = 0

        def decide(self, reading: Reading, state: PolicyState) -> Decision:
            self.calls += 1
            if self.calls < 4:
                raise ZeroDivisionError if self.calls % 2 else SystemExit
            return POLICY.decide(reading, state)

        def to_json(self) -> dict[str, Any]:
            return {}

    events: list[SessionEvent] = []
    recovered = threading.Event()

    def listen(event: SessionEvent) -> None:
        events.append(event)
        if event.kind == "governor_back":
            recovered.set()

    with (
        caplog.at_level(logging.ERROR),
        Governor(device, Faulty(), session, interval_s=0.001, clock=clock, listener=listen),
    ):
        assert session.heard.wait(20)
        assert recovered.wait(20)
    assert session.asked == [384]
    assert [event.kind for event in events] == ["governor_failed", "governor_back"]
    assert len(caplog.records) == 1, "one report per outage"


def test_it_can_be_started_again(governor: Governor, device: Device, session: FakeSession) -> None:
    governor.start()
    governor.close()
    session.heard.clear()
    device.battery_pct = 9.0
    governor.start()
    assert session.heard.wait(20)
    governor.close()
    governor.close()
    assert session.asked[-1] == 48


@pytest.mark.parametrize("interval_s", [0.0, -1.0, float("nan")])
def test_a_senseless_interval_is_refused(device: Device, session: FakeSession, interval_s: float) -> None:
    with pytest.raises(UsageError, match="interval"):
        Governor(device, POLICY, session, interval_s=interval_s)


def test_a_real_session_on_a_real_tree_of_sensors(text_bundle: tuple[Path, Any], tmp_path: Path) -> None:
    path, model = text_bundle
    root = tmp_path / "device"
    battery = {"type": "Battery", "status": "Discharging"}
    write_supply(root, "BAT0", {**battery, "capacity": 90})
    clock = HandClock(0.0)
    with EdgeSession.open(path) as session:
        session.preload(model.ladder.ranks)[-1].result(20)
        policy = RungPolicy(load_policy(DEFAULT_POLICY), session.bundle.manifest.ladder)
        governor = Governor(LinuxBattery(root, clock), policy, session, clock=clock)
        governor.tick()
        assert session.rank == model.ladder.ranks[-1]
        write_supply(root, "BAT0", {**battery, "capacity": 5})
        governor.tick()
        assert session.rank == model.ladder.ranks[0]
