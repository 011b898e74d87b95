"""The background sampler: it answers at once whatever the source does. Events order the threads, no clock does."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator

import pytest
from sensor_tree import HandClock

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.telemetry import Fault, FaultyTelemetry, NoTelemetry, Reading, Sampler, chances
from nsn_edge.runtimes.telemetry.sampler import MOST_HANGING

PATIENCE_S = 60.0
"""Waits for another thread; only a broken test ever waits so long."""


class Gate:
    """A source whose every read waits until the test lets it through."""

    def __init__(self, clock: HandClock, temperature_c: float = 40.0) -> None:
        self.clock, self.temperature_c = clock, temperature_c
        self.entered = threading.Semaphore(0)
        self.release = threading.Semaphore(0)
        self.readers: set[int] = set()
        self.inside = self.most_inside = 0

    def read(self) -> Reading:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.readers.add(threading.get_ident())
        self.entered.release()
        self.release.acquire()
        self.inside -= 1
        return Reading(self.clock(), temperature_c=self.temperature_c)

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_S)

    def let_through(self) -> None:
        """One read, and wait for the next one to begin."""
        self.release.release()
        self.wait_until_entered()


@pytest.fixture
def clock() -> HandClock:
    return HandClock(0.0)


@pytest.fixture
def gate(clock: HandClock) -> Iterator[Gate]:
    gate = Gate(clock)
    yield gate
    gate.release.release(1000)


def start(sampler: Sampler) -> None:
    sampler.start(first_within_s=0.0)


def test_a_source_that_hangs_from_the_beginning(gate: Gate, clock: HandClock) -> None:
    with Sampler(gate, 0.001, clock=clock) as sampler:
        gate.wait_until_entered()
        for now_s in (0.0, 100.0, 1e6):  # it answers, as it is the test's own thread that reads
            clock.now_s = now_s
            assert sampler.read() == Reading(now_s)
        gate.release.release(1000)


def test_what_a_hanging_source_said_ages_out(gate: Gate, clock: HandClock) -> None:
    sampler = Sampler(gate, 0.001, max_age_s=10.0, clock=clock)
    start(sampler)
    gate.wait_until_entered()
    gate.let_through()
    for now_s in (0.0, 5.0, 10.0):
        clock.now_s = now_s
        assert sampler.read() == Reading(now_s, temperature_c=40.0, age_s=now_s)
    clock.now_s = 10.5
    assert sampler.read() == Reading(10.5)
    gate.let_through()  # it answers again
    assert sampler.read() == Reading(10.5, temperature_c=40.0)
    assert gate.most_inside == 1
    sampler.close(within_s=0.0)


def test_without_another_source_nobody_else_enters_one_that_hangs(
    gate: Gate, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = Sampler(gate, 0.001, clock=clock)
    start(sampler)
    gate.wait_until_entered()
    for now_s in range(100, 1000, 100):
        clock.now_s = float(now_s)
        sampler.read()
    assert [record.message for record in caplog.records] == [
        "a telemetry source hangs; its values are unknown until it returns"
    ]
    assert len(gate.readers) == 1
    assert not gate.entered.acquire(blocking=False)
    sampler.close(within_s=0.0)


def test_a_source_that_hangs_is_replaced_where_another_can_be_made(gate: Gate, clock: HandClock) -> None:
    other = Gate(clock, temperature_c=50.0)
    sampler = Sampler(gate, 0.001, hangs_after_s=5.0, reopen=lambda: other, clock=clock)
    start(sampler)
    gate.wait_until_entered()
    clock.now_s = 5.0
    sampler.read()
    assert sampler.hanging == 0
    clock.now_s = 5.5
    assert sampler.read() == Reading(5.5)
    other.wait_until_entered()
    other.let_through()
    assert sampler.hanging == 1
    assert sampler.read().temperature_c == 50.0
    # The first one returns: what it says is too late to count, and its thread ends.
    (left,) = [thread for thread in threading.enumerate() if thread.ident in gate.readers]
    gate.release.release()
    left.join(PATIENCE_S)
    assert sampler.hanging == 0
    assert sampler.read().temperature_c == 50.0
    other.release.release(1000)
    sampler.close(PATIENCE_S)


def test_sources_that_all_hang_do_not_fill_the_process_with_threads(clock: HandClock) -> None:
    gates: list[Gate] = []
    entered = threading.Semaphore(0)

    def reopen() -> Gate:
        gates.append(Gate(clock))
        gates[-1].entered = entered
        return gates[-1]

    sampler = Sampler(reopen(), 0.001, hangs_after_s=5.0, reopen=reopen, clock=clock)
    start(sampler)
    for count in range(1, MOST_HANGING + 2):
        assert entered.acquire(timeout=PATIENCE_S)
        clock.now_s += 6.0
        sampler.read()
        assert sampler.hanging == min(count, MOST_HANGING)
    for _ in range(50):
        clock.now_s += 6.0
        sampler.read()
    assert len(gates) == MOST_HANGING + 1
    for gate in gates:
        gate.release.release(1000)
    sampler.close(PATIENCE_S)


def test_a_new_source_that_cannot_be_made_is_unknown_and_tried_again(
    gate: Gate, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    tried = threading.Semaphore(0)

    def reopen() -> Gate:
        tried.release()
        raise OSError("the device is gone")

    sampler = Sampler(gate, 0.001, hangs_after_s=5.0, reopen=reopen, clock=clock)
    start(sampler)
    gate.wait_until_entered()
    clock.now_s = 6.0
    with caplog.at_level(logging.WARNING):
        sampler.read()
        for _ in range(3):
            assert tried.acquire(timeout=PATIENCE_S)
    assert sampler.read() == Reading(6.0)
    gate.release.release(1000)
    sampler.close(PATIENCE_S)
    assert "the device is gone" in caplog.text


def test_a_thread_that_dies_is_started_again(gate: Gate, clock: HandClock) -> None:
    source = FaultyTelemetry(gate)
    sampler = Sampler(source, 0.001, clock=clock)
    start(sampler)
    gate.wait_until_entered()
    (thread,) = [thread for thread in threading.enumerate() if thread.ident in gate.readers]
    source.inject(Fault.KILLS)
    gate.release.release()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    clock.now_s, gate.temperature_c = 1.0, 50.0
    assert sampler.read() == Reading(1.0, temperature_c=40.0, age_s=1.0)  # this starts it again
    gate.wait_until_entered()
    gate.let_through()
    assert sampler.read() == Reading(1.0, temperature_c=50.0)
    gate.release.release(1000)
    sampler.close(PATIENCE_S)


def test_a_source_that_raises_is_unknown_and_asked_again(clock: HandClock) -> None:
    reads = threading.Semaphore(0)

    class Blinking:
        count = 0

        def read(self) -> Reading:
            self.count += 1
            reads.release()
            if self.count <= 3:
                raise OSError("gated")
            return Reading(clock(), temperature_c=40.0)

    with Sampler(Blinking(), 0.001, clock=clock) as sampler:
        for _ in range(5):
            assert reads.acquire(timeout=PATIENCE_S)
        assert sampler.read().temperature_c == 40.0


def test_it_begins_with_a_reading_and_ends_with_its_thread() -> None:
    before = threading.active_count()
    with Sampler(NoTelemetry(clock=lambda: 3.0), clock=lambda: 3.0) as sampler:
        sampler.start()  # a second call does nothing
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    sampler.close()
    assert sampler.read() == Reading(3.0)


def test_the_first_reading_is_there_when_it_has_started(clock: HandClock) -> None:
    class Quick:
        def read(self) -> Reading:
            return Reading(clock(), temperature_c=40.0)

    sampler = Sampler(Quick(), clock=clock)
    assert sampler.read() == Reading(0.0)  # not started yet
    sampler.start(PATIENCE_S)
    assert sampler.read().temperature_c == 40.0
    sampler.close(PATIENCE_S)


def test_closing_does_not_wait_for_a_source_that_hangs(
    gate: Gate, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = Sampler(gate, 0.001, clock=clock)
    start(sampler)
    gate.wait_until_entered()
    with caplog.at_level(logging.WARNING):
        sampler.close(within_s=0.0)
    assert "its thread is left behind" in caplog.text
    clock.now_s = 100.0
    assert sampler.read() == Reading(100.0)
    # Started again, it does not enter the source a second time: the thread that hangs goes on when it returns.
    start(sampler)
    gate.let_through()
    assert sampler.read().temperature_c == 40.0
    assert gate.most_inside == 1
    gate.release.release(1000)
    sampler.close(PATIENCE_S)


def test_many_readers_at_once(clock: HandClock) -> None:
    """Readers never see half a reading: battery and heat of one moment belong together."""
    moments = iter(range(10**9))

    class Moving:
        def read(self) -> Reading:
            moment = float(next(moments))
            return Reading(moment, battery_pct=moment % 100.0, temperature_c=moment % 100.0)

    with Sampler(Moving(), 1e-6, max_age_s=math.inf, clock=clock) as sampler:
        seen: list[Reading] = []

        def ask() -> None:
            seen.extend(sampler.read() for _ in range(500))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(seen) == 2000
    assert all(reading.battery_pct == reading.temperature_c for reading in seen)


@pytest.mark.parametrize("interval_s", [0.0, -1.0, math.nan])
def test_a_senseless_interval_is_refused(interval_s: float) -> None:
    with pytest.raises(UsageError, match="interval of a sampler"):
        Sampler(NoTelemetry(), interval_s)


def test_a_senseless_age_is_refused_here_too() -> None:
    with pytest.raises(UsageError, match="largest age"):
        Sampler(NoTelemetry(), max_age_s=-1.0)


@pytest.mark.parametrize("seed", range(3))
def test_faults_of_every_kind_by_chance(seed: int) -> None:
    """Readers get an answer that can be, and no older than it may be, whatever befalls the source and its thread."""
    clock = HandClock(0.0)

    class Weather:
        def read(self) -> Reading:
            clock.now_s += 1.0
            return Reading(clock.now_s, battery_pct=50.0, temperature_c=60.0, wall_s=1e9 + clock.now_s)

    faulty = FaultyTelemetry(Weather(), chances(0.08), seed, sleep=lambda _: None)
    counted = threading.Semaphore(0)

    class Counting:
        def read(self) -> Reading:
            counted.release()
            return faulty.read()

    with Sampler(Counting(), 1e-6, max_age_s=10.0, clock=clock) as sampler:
        while sum(faulty.injected.values()) < 400 or set(faulty.injected) != set(Fault):
            while not counted.acquire(timeout=0.001):
                sampler.read()  # a thread that died is started again by this
                clock.now_s += 0.001
            reading = sampler.read()
            assert reading.temperature_c in (None, 60.0)
            assert reading.battery_pct in (None, 50.0)
            assert 0.0 <= reading.age_s <= 10.0 + 1e-6
