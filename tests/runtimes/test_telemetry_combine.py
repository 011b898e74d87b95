"""Sources made of sources: nothing raises through them, nothing is remembered for ever."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_tree import HandClock

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.telemetry import Aged, Combined, Guarded, NoTelemetry, Reading, TelemetrySource


class Scripted:
    """Gives one prepared answer after the other, the last one for ever; an exception is raised."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)

    def read(self) -> Reading:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]


def test_no_telemetry_knows_the_time_alone() -> None:
    assert NoTelemetry(clock=lambda: 3.0).read() == Reading(3.0)


@given(value=st.floats())
def test_a_reading_holds_finite_numbers_or_none(value: float) -> None:
    reading = Reading(0.0, battery_pct=value, temperature_c=value, temperature_limit_c=value, power_mw=value)
    assert reading.battery_pct is None or 0.0 <= reading.battery_pct <= 100.0
    for number in (reading.temperature_c, reading.temperature_limit_c, reading.power_mw):
        assert number == (value if math.isfinite(value) else None)


def test_a_reading_needs_a_time() -> None:
    with pytest.raises(UsageError, match="time is a finite number"):
        Reading(math.nan)


@pytest.mark.parametrize("fault", [OSError("gone"), TypeError("x"), RuntimeError("driver"), None, 3])
def test_a_faulty_source_is_unknown_and_reported_once_per_outage(
    fault: object, caplog: pytest.LogCaptureFixture
) -> None:
    good = Reading(5.0, temperature_c=50.0)
    source = Guarded(Scripted(fault, fault, fault, good, fault, fault), clock=lambda: 9.0)
    with caplog.at_level(logging.WARNING):
        assert [source.read() for _ in range(3)] == [Reading(9.0)] * 3
        assert len(caplog.records) == 1
        assert source.read() == good
        source.read()
        source.read()
    assert len(caplog.records) == 2
    assert "Scripted" in caplog.text


def test_a_blink_is_bridged_and_a_death_is_not() -> None:
    clock = HandClock(0.0)
    source = Aged(
        Scripted(Reading(0.0, battery_pct=50.0, on_mains=False, temperature_c=40.0), Reading(0.0)), 10.0, clock
    )
    assert source.read().battery_pct == 50.0
    clock.now_s = 10.0
    assert source.read() == Reading(10.0, battery_pct=50.0, on_mains=False, temperature_c=40.0)
    clock.now_s = 10.5
    assert source.read() == Reading(10.5)


def test_fields_age_one_by_one() -> None:
    clock = HandClock(0.0)
    source = Aged(
        Scripted(Reading(0.0, battery_pct=50.0, temperature_c=40.0), Reading(8.0, temperature_c=41.0)), 10.0, clock
    )
    source.read()
    clock.now_s = 8.0
    source.read()
    clock.now_s = 12.0
    assert source.read() == Reading(12.0, temperature_c=41.0)


def test_a_source_that_repeats_one_old_reading_is_found_out() -> None:
    clock = HandClock(0.0)
    source = Aged(Scripted(Reading(0.0, battery_pct=50.0)), 10.0, clock)
    for now_s in (0.0, 5.0, 10.0):
        clock.now_s = now_s
        assert source.read().battery_pct == 50.0
    clock.now_s = 11.0
    assert source.read().battery_pct is None


def test_a_source_that_raises_ages_like_a_silent_one() -> None:
    clock = HandClock(0.0)
    source = Aged(Scripted(Reading(0.0, battery_pct=50.0), OSError("gone")), 10.0, clock)
    source.read()
    clock.now_s = 9.0
    assert source.read().battery_pct == 50.0
    clock.now_s = 20.0
    assert source.read() == Reading(20.0)


@pytest.mark.parametrize("age", [-1.0, math.nan])
def test_a_senseless_age_is_refused(age: float) -> None:
    with pytest.raises(UsageError, match="largest age"):
        Aged(NoTelemetry(), age)


def test_the_first_known_value_wins_and_a_faulty_source_is_passed_over() -> None:
    sources: list[TelemetrySource] = [
        Scripted(OSError("gone")),
        Scripted(Reading(0.0, battery_pct=10.0)),
        Scripted(Reading(0.0, battery_pct=90.0, on_mains=True, throttling=False)),
    ]
    assert Combined(*sources, clock=lambda: 4.0).read() == Reading(
        4.0, battery_pct=10.0, on_mains=True, throttling=False
    )


def test_a_limit_belongs_to_its_temperature() -> None:
    hot = Scripted(Reading(0.0, temperature_c=80.0))
    other = Scripted(Reading(0.0, temperature_c=30.0, temperature_limit_c=45.0))
    assert Combined(hot, other, clock=lambda: 4.0).read() == Reading(4.0, temperature_c=80.0)
    assert Combined(other, hot, clock=lambda: 4.0).read().temperature_limit_c == 45.0
    bare = Scripted(Reading(0.0, throttling=True))
    assert Combined(bare, other, clock=lambda: 4.0).read().temperature_limit_c == 45.0
