"""Sources made of sources: nothing raises through them, nothing is remembered for ever."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_tree import HandClock

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.telemetry import (
    Aged,
    Answered,
    Combined,
    Guarded,
    NoTelemetry,
    Reading,
    TelemetrySource,
    Work,
)
from nsn_edge.runtimes.telemetry.base import FIELDS
from nsn_edge.runtimes.telemetry.sanity import PLAUSIBLE


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
    assert source.read() == Reading(10.0, battery_pct=50.0, on_mains=False, temperature_c=40.0, age_s=10.0)
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
    assert source.read() == Reading(12.0, temperature_c=41.0, age_s=4.0)


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
        4.0, battery_pct=10.0, on_mains=True, throttling=False, age_s=4.0
    )


def test_a_limit_belongs_to_its_temperature() -> None:
    hot = Scripted(Reading(0.0, temperature_c=80.0))
    other = Scripted(Reading(0.0, temperature_c=30.0, temperature_limit_c=45.0))
    assert Combined(hot, other, clock=lambda: 4.0).read() == Reading(4.0, temperature_c=80.0, age_s=4.0)
    assert Combined(other, hot, clock=lambda: 4.0).read().temperature_limit_c == 45.0
    bare = Scripted(Reading(0.0, throttling=True))
    assert Combined(bare, other, clock=lambda: 4.0).read().temperature_limit_c == 45.0


# --- what cannot be -------------------------------------------------------------------------------------------------


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_that_cannot_be_is_unknown(value: float) -> None:
    names = sorted(PLAUSIBLE)
    told = Reading(1.0, **dict.fromkeys(names, value), rails_mw={"VDD_IN": value})  # type: ignore[arg-type]
    reading = Guarded(Scripted(told)).read()
    for name, (low, high) in PLAUSIBLE.items():
        assert getattr(reading, name) == (value if low <= value <= high else None)
    assert reading.rails_mw == ({"VDD_IN": value} if 0.0 <= value <= 1e7 else {})


def test_the_placeholder_of_a_zone_that_is_off_is_no_cold() -> None:
    for placeholder in (-256.0, -256000.0, 1e9):
        assert Aged(Scripted(Reading(0.0, temperature_c=placeholder)), clock=lambda: 0.0).read() == Reading(0.0)


# --- age ------------------------------------------------------------------------------------------------------------

FULL = Reading(
    0.0,
    battery_pct=50.0,
    on_mains=False,
    temperature_c=60.0,
    temperature_limit_c=95.0,
    throttling=False,
    power_mw=9000.0,
    energy_j=12.0,
    battery_j=1e5,
    gpu_load_pct=30.0,
    gpu_mhz=1300.0,
    cpu_mhz=2000.0,
    over_current=False,
    power_mode="MAXN",
    rails_mw={"VDD_IN": 9000.0, "VDD_GPU": 300.0},
    wall_s=1e9,
)


def test_every_field_is_remembered_and_forgotten() -> None:
    assert all(getattr(FULL, name) is not None for name in FIELDS)
    clock = HandClock(0.0)
    source = Aged(Scripted(FULL, Reading(3.0), OSError("gone")), 10.0, clock)
    assert source.read() == FULL
    clock.now_s = 3.0
    assert source.read() == replace(FULL, time_s=3.0, age_s=3.0, wall_s=1e9 + 3.0)  # the wall clock went on
    clock.now_s = 10.5
    assert source.read() == Reading(10.5)


def test_rails_age_one_by_one() -> None:
    clock = HandClock(0.0)
    rails = Scripted(Reading(0.0, rails_mw={"A": 1.0, "B": 2.0}), Reading(8.0, rails_mw={"B": 3.0}))
    source = Aged(rails, 10.0, clock)
    source.read()
    clock.now_s = 8.0
    assert source.read().rails_mw == {"A": 1.0, "B": 3.0}
    clock.now_s = 11.0
    assert source.read().rails_mw == {"B": 3.0}


def test_over_current_is_told_for_a_while_so_that_nobody_misses_it() -> None:
    clock = HandClock(0.0)
    events = Scripted(*(Reading(float(t), over_current=t == 1) for t in range(30)))
    source = Aged(events, 10.0, clock)
    told = []
    for now_s in range(20):
        clock.now_s = float(now_s)
        told.append(source.read().over_current)
    assert told == [False] + [True] * 11 + [False] * 8


def test_answers_are_told_once() -> None:
    work = Work(answers=(Answered(96, 5.0),), arrivals_per_s=3.0, waiting=1)
    source = Aged(Scripted(Reading(0.0, work=work)), 10.0, clock=lambda: 0.0)
    assert source.read().work == work
    assert source.read().work is None


def test_an_old_value_inside_a_new_reading_is_old() -> None:
    """As of a source that ages by itself: the two ages do not add up to twice as much."""
    clock = HandClock(0.0)
    inner = Aged(Scripted(Reading(0.0, battery_pct=50.0), Reading(9.0)), 10.0, clock)
    outer = Aged(inner, 10.0, clock)
    outer.read()
    clock.now_s = 9.0
    assert outer.read() == Reading(9.0, battery_pct=50.0, age_s=9.0)
    clock.now_s = 10.1
    assert outer.read() == Reading(10.1)


@pytest.mark.parametrize("age_s", [math.nan, math.inf])
def test_a_source_that_does_not_know_its_age_is_not_believed(age_s: float) -> None:
    assert Aged(Scripted(Reading(0.0, battery_pct=50.0, age_s=age_s)), clock=lambda: 0.0).read() == Reading(0.0)


def test_a_reading_from_the_future_does_not_live_for_ever() -> None:
    clock = HandClock(0.0)
    source = Aged(Scripted(Reading(86400.0, battery_pct=50.0)), 10.0, clock)
    assert source.read().battery_pct == 50.0
    clock.now_s = 11.0
    assert source.read() == Reading(11.0)  # it repeats one reading


def test_a_clock_that_steps_back_does_not_take_the_younger_value_away() -> None:
    clock = HandClock(100.0)
    readings = Reading(100.0, battery_pct=50.0), Reading(-3500.0, battery_pct=90.0), Reading(102.0, battery_pct=49.0)
    source = Aged(Scripted(*readings), 10.0, clock)
    seen = []
    for now_s in (100.0, 101.0, 102.0):
        clock.now_s = now_s
        seen.append(source.read().battery_pct)
    assert seen == [50.0, 50.0, 49.0]


def test_what_was_known_before_the_device_slept_is_forgotten() -> None:
    """The monotonic clock stands while it sleeps, so the values look young; the wall clock tells."""
    clock = HandClock(0.0)
    awake = Reading(1.0, temperature_c=30.0, wall_s=1e9 + 3601.0)
    source = Aged(Scripted(Reading(0.0, battery_pct=80.0, temperature_c=60.0, wall_s=1e9), awake), 10.0, clock)
    source.read()
    clock.now_s = 1.0
    assert source.read() == awake
    stepped_back = Reading(2.0, wall_s=1e9)
    source = Aged(Scripted(awake, stepped_back), 10.0, clock)
    source.read()
    clock.now_s = 2.0
    assert source.read().temperature_c == 30.0  # a clock that is set back is no sleep


@given(
    steps=st.lists(
        st.tuples(
            st.floats(0.0, 30.0),  # the clock moves on
            st.none() | st.floats(-100.0, 100.0),  # the source raises, or its time is off by so much
            st.floats(0.0, 20.0),  # what it says of its age
            st.none() | st.integers(0, 100),
        ),
        max_size=30,
    ),
    max_age_s=st.floats(0.0, 20.0),
)
def test_no_value_is_ever_older_than_the_largest_age(
    steps: list[tuple[float, float | None, float, int | None]], max_age_s: float
) -> None:
    """Whatever the source's clock says: a value was first told at most so long ago."""
    clock = HandClock(0.0)
    told_s: dict[float, float] = {}

    class Odd:
        def read(self) -> Reading:
            if off_s is None:
                raise OSError("gone")
            if pct is not None:
                told_s[float(pct)] = clock.now_s
            return Reading(clock.now_s + off_s, battery_pct=pct, age_s=age_s)

    source = Aged(Odd(), max_age_s, clock)
    for step_s, off_s, age_s, pct in steps:  # noqa: B007 - read by the source
        clock.now_s += step_s
        reading = source.read()
        assert reading.time_s == clock.now_s
        assert 0.0 <= reading.age_s <= max_age_s * (1 + 1e-9) + 1e-9
        if reading.battery_pct is not None:
            assert clock.now_s - told_s[reading.battery_pct] <= max_age_s + 1e-9


# --- several sources ------------------------------------------------------------------------------------------------


def test_all_of_several_sources_together() -> None:
    board = Reading(4.0, power_mode="MAXN", rails_mw={"VDD_IN": 9000.0, "both": 1.0}, over_current=False)
    gpu = Reading(4.0, gpu_mhz=1410.0, rails_mw={"gpu0": 300.0, "both": 2.0}, over_current=True, wall_s=5.0)
    assert Combined(Scripted(board), Scripted(gpu), clock=lambda: 4.0).read() == Reading(
        4.0,
        power_mode="MAXN",
        gpu_mhz=1410.0,
        over_current=True,
        rails_mw={"VDD_IN": 9000.0, "both": 1.0, "gpu0": 300.0},
        wall_s=5.0,
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(60.0, 100.0), (70.0, 90.0)], (70.0, 90.0)),
        ([(60.0, 70.0), (80.0, 100.0)], (60.0, 70.0)),
        ([(60.0, 70.0), (80.0, None)], (60.0, 70.0)),
        ([(60.0, None), (80.0, 90.0)], (60.0, None)),
        ([(None, 95.0), (80.0, 90.0)], (80.0, 90.0)),
    ],
)
def test_the_part_that_is_nearest_to_its_limit_counts(
    parts: list[tuple[float | None, float | None]], expected: tuple[float | None, float | None]
) -> None:
    sources = [Scripted(Reading(0.0, temperature_c=heat, temperature_limit_c=limit)) for heat, limit in parts]
    reading = Combined(*sources, clock=lambda: 0.0).read()
    assert (reading.temperature_c, reading.temperature_limit_c) == expected


def test_any_part_that_throttles_throttles() -> None:
    def throttling(*answers: bool | None) -> bool | None:
        sources = [Scripted(Reading(0.0, throttling=answer)) for answer in answers]
        return Combined(*sources, clock=lambda: 0.0).read().throttling

    assert throttling(False, True) is True
    assert throttling(False, None) is False
    assert throttling(None, None) is None


def test_energy_of_several_counters_adds_up_and_never_pretends_to_save() -> None:
    clock = HandClock(0.0)
    gpu_j = [None, 1e6, 1e6 + 5, None, 1e6 + 15, None, None, 0.0, 5.0]
    cpu = Scripted(*(Reading(10.0 * t, energy_j=500.0 + 10 * t) for t in range(9)))
    gpu = Scripted(*(Reading(10.0 * t, energy_j=joules) for t, joules in enumerate(gpu_j)))
    source = Combined(cpu, gpu, max_age_s=5.0, clock=clock)
    seen = []
    for t in range(9):
        clock.now_s = 10.0 * t
        seen.append(source.read().energy_j)
    # The GPU sleeps at first, its counter began long ago, it is silent now and then, and its driver is loaded anew.
    assert seen == [0.0, 10.0, 25.0, None, 55.0, None, None, 85.0, 100.0]


def test_a_stuck_source_is_found_out_and_does_not_age_the_others() -> None:
    clock = HandClock(0.0)

    class Alive:
        def read(self) -> Reading:
            return Reading(clock.now_s, temperature_c=40.0)

    source = Aged(Combined(Scripted(Reading(0.0, battery_pct=50.0)), Alive(), clock=clock), 10.0, clock)
    for now_s in range(30):
        clock.now_s = float(now_s)
        reading = source.read()
        assert reading.temperature_c == 40.0
        assert (reading.battery_pct is None) == (now_s > 10)


def test_a_source_that_blinks_is_not_replaced_at_once() -> None:
    clock = HandClock(0.0)
    blinking = Scripted(Reading(0.0, power_mw=20_000.0), Reading(1.0), Reading(6.0))
    other = Scripted(*(Reading(t, power_mw=9_000.0) for t in (0.0, 1.0, 6.0)))
    source = Combined(blinking, other, clock=clock)
    seen = []
    for now_s in (0.0, 1.0, 6.0):
        clock.now_s = now_s
        seen.append(source.read().power_mw)
    assert seen == [20_000.0, 20_000.0, 9_000.0]


def test_no_part_remembers_what_was_before_the_device_slept() -> None:
    clock = HandClock(0.0)
    silent = Scripted(Reading(0.0, battery_pct=80.0), Reading(1.0))
    wall = Scripted(Reading(0.0, wall_s=1e9), Reading(1.0, wall_s=1e9 + 3601.0))
    source = Combined(silent, wall, clock=clock)
    assert source.read().battery_pct == 80.0
    clock.now_s = 1.0
    assert source.read() == Reading(1.0, wall_s=1e9 + 3601.0)
