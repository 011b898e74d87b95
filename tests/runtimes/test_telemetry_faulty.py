"""Fault injection: each kind does what it says, by a seed, and is counted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_tree import HandClock

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.telemetry import Fault, FaultyTelemetry, Reading, chances


class Thermometer:
    """Gives a new reading each second of its clock."""

    def __init__(self) -> None:
        self.clock = HandClock(0.0)

    def read(self) -> Reading:
        self.clock.now_s += 1.0
        return Reading(
            self.clock.now_s,
            battery_pct=50.0,
            on_mains=False,
            temperature_c=60.0 + self.clock.now_s,
            rails_mw={"VDD_IN": 9000.0},
            wall_s=1e9 + self.clock.now_s,
        )


def outcomes(source: FaultyTelemetry, reads: int) -> list[object]:
    """What each read gave, or the type of what it raised."""
    seen: list[object] = []
    for _ in range(reads):
        try:
            seen.append(source.read())
        except (Exception, SystemExit) as error:
            seen.append(repr(error))
    return seen


def faulty(fault: Fault, reads: int = 1, **options: Callable[[float], object]) -> FaultyTelemetry:
    source = FaultyTelemetry(Thermometer(), **options)  # type: ignore[arg-type]
    source.read()
    source.inject(fault, reads)
    return source


def test_without_faults_it_is_the_source() -> None:
    plain = Thermometer()
    assert outcomes(FaultyTelemetry(Thermometer()), 5) == [plain.read() for _ in range(5)]


def test_raising_is_an_exception_and_killing_ends_a_thread() -> None:
    source = faulty(Fault.RAISES, 50)
    kinds = set()
    for _ in range(50):
        with pytest.raises(Exception) as caught:
            source.read()
        kinds.add(type(caught.value))
    assert {BlockingIOError, FileNotFoundError, PermissionError, ConnectionRefusedError, TypeError} <= kinds
    assert source.read().temperature_c == 62.0
    with pytest.raises(SystemExit):
        faulty(Fault.KILLS).read()


def test_what_is_no_reading() -> None:
    assert not any(isinstance(given, Reading) for given in outcomes(faulty(Fault.NO_READING, 9), 9))


def test_unknown_fields_and_a_vanished_sensor() -> None:
    source = faulty(Fault.UNKNOWN)
    reading = source.read()
    assert reading != source.read()
    assert reading.rails_mw == {}
    source = faulty(Fault.VANISHED, 2)
    assert [source.read() for _ in range(2)] == [Reading(2.0), Reading(3.0)]
    assert source.read().temperature_c == 64.0


def test_a_stuck_sensor_repeats_its_last_reading_and_its_time() -> None:
    source = faulty(Fault.STUCK, 3)
    stuck = [source.read() for _ in range(3)]
    assert {reading.time_s for reading in stuck} == {1.0}
    assert {reading.temperature_c for reading in stuck} == {61.0}
    assert source.read().time_s == 2.0
    fresh = FaultyTelemetry(Thermometer())
    fresh.inject(Fault.STUCK)
    assert fresh.read().time_s == 1.0  # nothing to repeat yet


def test_absurd_numbers_are_finite_and_not_finite_ones_become_unknown() -> None:
    source = faulty(Fault.ABSURD, 40)
    values = {source.read().temperature_c for _ in range(40)}
    assert {-256.0, -256000.0, 1e9} <= values
    source = faulty(Fault.NAN, 40)
    values = {source.read().temperature_c for _ in range(40)}
    assert None in values
    assert all(value is None or math.isfinite(value) for value in values)


def test_a_slow_read_waits_and_then_answers() -> None:
    waited: list[float] = []
    source = faulty(Fault.SLOW, sleep=waited.append)
    assert source.read().temperature_c == 62.0
    assert waited == [1.0]


def test_a_clock_that_steps_and_a_device_that_slept() -> None:
    source = faulty(Fault.CLOCK_STEP)
    stepped = source.read()
    assert abs(stepped.time_s - 2.0) >= 360.0
    assert source.read().time_s == 3.0
    source = faulty(Fault.SUSPEND)
    ahead_s = [(reading.wall_s or 0.0) - 1e9 - reading.time_s for reading in (source.read(), source.read())]
    assert ahead_s[0] >= 360.0
    assert ahead_s[1] == pytest.approx(ahead_s[0])  # it stays ahead, and the monotonic clock saw nothing of it


@given(seed=st.integers(0, 2**32))
def test_a_seed_gives_the_same_faults_again(seed: int) -> None:
    first, second = (FaultyTelemetry(Thermometer(), chances(0.06), seed, sleep=lambda _: None) for _ in range(2))
    assert outcomes(first, 60) == outcomes(second, 60)
    assert first.injected == second.injected


def test_every_kind_comes_by_chance() -> None:
    source = FaultyTelemetry(Thermometer(), chances(0.05), seed=3, sleep=lambda _: None)
    outcomes(source, 2000)
    assert set(source.injected) == set(Fault)
    assert sum(source.injected.values()) < 2000


@pytest.mark.parametrize("faults", [{Fault.NAN: 1.5}, {Fault.NAN: -0.1}, {Fault.NAN: math.nan}, chances(0.5)])
def test_chances_that_are_none_are_refused(faults: dict[Fault, float]) -> None:
    with pytest.raises(UsageError, match=r"chances of faults lie in 0\.\.1"):
        FaultyTelemetry(Thermometer(), faults)


def test_every_field_of_a_reading_can_go_unknown() -> None:
    source = faulty(Fault.UNKNOWN, 200)
    unknown = set()
    for _ in range(200):
        reading = source.read()
        unknown |= {name for name in ("battery_pct", "on_mains", "temperature_c") if getattr(reading, name) is None}
    assert unknown == {"battery_pct", "on_mains", "temperature_c"}
