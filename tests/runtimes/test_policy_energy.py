"""The energy budget: what fits, until when, and clocks that step or stop."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from policy_cases import COSTS, HALF, HIGH, LADDER, LOW, LOWEST, TOP, after, settled

from nsn_edge.errors import PolicyError
from nsn_edge.runtimes.policy import EnergyBudget, PolicyState, RungCosts, RungLimits, RungPolicy
from nsn_edge.runtimes.telemetry import Reading
from nsn_edge.runtimes.telemetry.base import Work

FIVE = Work(arrivals_per_s=5.0)  # at 400 mJ for the top rung 2 W, at 250 for HIGH 1.5, 1, 0.67, 0.5


def policy(**settings: object) -> RungPolicy:
    given = {"capacity_wh": 24.0, "idle_mw": 1000.0, "reserve_pct": 0.0, **settings}
    return RungPolicy(RungLimits(0.25, 20.0, energy=EnergyBudget(**given)), LADDER, COSTS)  # type: ignore[arg-type]


def at(pct: float | None, time_s: float = 0.0, **others: object) -> Reading:
    return Reading(time_s, pct, False, work=FIVE, **others)  # type: ignore[arg-type]


def noon(hour: int = 12, minute: int = 0) -> float:
    return datetime(2026, 6, 1, hour, minute, tzinfo=timezone.utc).timestamp()


def test_the_best_rung_whose_projected_drain_fits() -> None:
    # 24 Wh for 8 h are 3 W at 100 %; 1 W of it is idle.
    limits = policy(last_h=8.0)
    found = [limits.decide(at(pct), PolicyState()) for pct in (100.0, 90.0, 70.0, 60.0, 50.0, 10.0)]
    assert [decision.rank for decision in found] == [TOP, HIGH, HALF, LOW, LOWEST, LOWEST]
    assert found[0].limiter == ""
    assert found[1].reason == "21.6 Wh for 8 h 00 min, that is 2.7 W: rank 384 would draw 3 W"
    assert found[5].reason == "2.4 Wh for 8 h 00 min, that is 0.3 W: even rank 48 draws 1.5 W"


def test_the_reserve_is_not_touched_and_joules_beat_per_cent() -> None:
    # 2.5 W are 72 kJ in 8 h.
    assert policy(last_h=8.0, reserve_pct=20.0).decide(at(100.0), PolicyState()).rank == HALF
    assert policy(last_h=8.0).decide(at(100.0, battery_j=72e3), PolicyState()).rank == HIGH
    assert policy(last_h=8.0, reserve_pct=20.0).decide(at(None, battery_j=72e3), PolicyState()).rank == LOW
    unsized = policy(last_h=8.0, reserve_pct=20.0, capacity_wh=None)
    assert unsized.decide(at(100.0, battery_j=90e3), PolicyState()).rank == HIGH
    assert unsized.decide(at(None, battery_j=90e3), PolicyState()).rank == HIGH
    assert unsized.decide(at(20.0, battery_j=90e3), PolicyState()).rank == LOWEST, "all that is left is the reserve"
    assert unsized.decide(at(0.0, battery_j=90e3), PolicyState()).rank == LOWEST


def test_a_device_that_lives_by_it_lasts() -> None:
    """Simulated for the whole shift, ten seconds a step, with charge in whole per cent."""
    limits = policy(last_h=8.0, reserve_pct=5.0)
    joules, state, time_s = 0.8 * 24 * 3600.0, PolicyState(), 0.0
    best = 0.0
    while time_s < 8 * 3600:
        pct = float(int(100.0 * joules / (24 * 3600.0)))
        state = limits.decide(at(pct, time_s), state).state
        assert state.rank is not None
        joules -= 10.0 * (1.0 + 5.0 * (COSTS.at(state.rank).energy_mj or 0.0) / 1000.0)
        best += COSTS.at(state.rank).quality or 0.0
        time_s += 10.0
    left_pct = 100.0 * joules / (24 * 3600.0)
    assert 4.0 <= left_pct <= 9.0, "it lasts, the reserve is there, and little more than it"


def test_on_mains_there_is_no_budget_and_unplugging_starts_the_hours() -> None:
    limits = policy(last_h=1.0, capacity_wh=2.5)
    state = after(limits, *(replace(at(100.0, 600.0 * n), on_mains=True) for n in range(20)))
    assert state.rank == TOP
    assert state.energy is not None
    assert state.energy.elapsed_s == 0.0
    assert limits.decide(at(100.0, 11401.0), state).rank == HIGH
    late = after(limits, at(50.0, 11401.0), at(50.0, 13801.0), state=state)
    assert limits.decide(at(34.0, 13802.0), late).reason.startswith("0.8 Wh for 20 min, that is 2.6 W")
    kept = limits.decide(at(1.0, 15001.0), late)
    assert kept.reason.startswith("no limit applies"), "the hour is over, and what was promised is kept"


def test_the_rate_and_the_idle_power_are_averaged() -> None:
    limits = policy(last_h=8.0, idle_mw=None)
    first = at(90.0, power_mw=3000.0)
    assert limits.decide(first, PolicyState()).reason.startswith("the idle power is unknown"), "nothing ran yet"
    state = PolicyState(rank=TOP)
    for second in range(300):
        state = limits.decide(at(90.0, float(second), power_mw=3000.0), replace(state, rank=TOP)).state
    assert state.energy is not None
    assert state.energy.idle_mw == pytest.approx(1000.0), "3 W less 5 answers of 400 mJ"
    burst = replace(at(90.0, 300.0), work=Work(arrivals_per_s=25.0))
    bursting = after(limits, burst, state=state)
    assert bursting.energy is not None
    assert bursting.energy.arrivals_per_s == pytest.approx(5.0, abs=0.1), "a battery does not notice a second"


def test_without_a_count_the_device_is_taken_to_be_busy_all_the_time_or_as_the_file_says() -> None:
    # Busy all the time every rung draws 10 W here, and so none fits.
    unknown = replace(at(100.0), work=None)
    assert policy(last_h=8.0).decide(unknown, PolicyState()).rank == LOWEST
    assert policy(last_h=8.0, arrivals_per_s=5.0).decide(unknown, PolicyState()).rank == TOP


def test_a_profile_without_energy_needs_the_power_of_a_busy_device() -> None:
    without = RungCosts(tuple(replace(cost, energy_mj=None) for cost in COSTS.rungs))
    with pytest.raises(PolicyError, match="lacks the energy of a call"):
        RungPolicy(RungLimits(0.25, 20.0, energy=EnergyBudget(last_h=8.0)), LADDER, without)
    budget = EnergyBudget(last_h=8.0, capacity_wh=24.0, idle_mw=1000.0, reserve_pct=0.0, busy_mw=10_000.0)
    known = RungPolicy(RungLimits(0.25, 20.0, energy=budget), LADDER, without)
    assert [known.decide(at(pct), PolicyState()).rank for pct in (100.0, 90.0, 70.0)] == [TOP, HIGH, HALF]


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading(0.0), "the energy left in the battery is unknown: at most 25 % of FLOPs"),
        (Reading(0.0, on_mains=False, work=FIVE), "the energy left in the battery is unknown"),
    ],
)
def test_blind_it_goes_to_the_safe_rung(reading: Reading, words: str) -> None:
    decision = policy(last_h=8.0).decide(reading, PolicyState())
    assert decision.rank == LOWEST
    assert decision.reason.startswith(words)


# Clocks.


def test_until_aims_at_a_time_of_day() -> None:
    # 6 h from noon; 24 Wh for 6 h are 4 W.
    limits = policy(until="18:00Z")
    assert [limits.decide(at(pct, wall_s=noon()), PolicyState()).rank for pct in (75.0, 70.0, 50.0)] == [
        TOP,
        HIGH,
        HALF,
    ]
    assert limits.decide(at(5.0, wall_s=noon(18, 1)), PolicyState()).reason.startswith("no limit applies")
    assert limits.decide(at(5.0, wall_s=noon(5, 59)), PolicyState()).reason.startswith("no limit applies")
    assert limits.decide(at(5.0, wall_s=noon(6, 1)), PolicyState()).rank == LOWEST
    east = policy(until="20:00+02:00")
    assert east.decide(at(70.0, wall_s=noon()), PolicyState()).reason.startswith("16.8 Wh for 6 h 00 min")
    west = policy(until="12:30-05:30")
    assert west.decide(at(70.0, wall_s=noon()), PolicyState()).reason.startswith("16.8 Wh for 6 h 00 min")


def test_until_without_a_zone_is_where_the_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "XYZ-02")  # POSIX: two hours east of Greenwich
    time.tzset()
    try:
        decision = policy(until="20:00").decide(at(70.0, wall_s=noon()), PolicyState())
        assert decision.reason.startswith("16.8 Wh for 6 h 00 min")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("wall_s", [None, -1e300, 1e300, 1e12])
def test_a_wall_clock_that_says_nothing_sensible_plans_for_the_longest(wall_s: float | None) -> None:
    decision = policy(until="18:00Z").decide(at(70.0, wall_s=wall_s), PolicyState())
    assert decision.reason.startswith("16.8 Wh for 12 h 00 min") or wall_s == 1e12
    assert decision.rank in LADDER.ranks


def test_a_step_of_the_wall_clock_is_forgotten_when_it_is_right_again() -> None:
    limits = policy(until="18:00Z")
    state = after(limits, at(75.0, 0.0, wall_s=noon()), at(75.0, 1.0, wall_s=0.0), at(75.0, 2.0, wall_s=noon(17)))
    assert settled(limits, at(75.0, 3.0, wall_s=noon()), state) == settled(limits, at(75.0, 3.0, wall_s=noon()))


def test_a_suspend_shortens_what_until_has_to_last_for() -> None:
    """The monotonic clock stood still meanwhile, the wall clock went on, the battery lost little."""
    limits = policy(until="18:00Z")
    state = after(limits, at(60.0, 100.0, wall_s=noon()))
    assert state.rank == HALF
    awake = at(58.0, 101.0, wall_s=noon(15))
    assert limits.decide(awake, state).state.energy.fitting == LADDER.ranks  # type: ignore[union-attr]
    assert settled(limits, awake, state) == TOP


def test_last_h_counts_the_hours_of_the_monotonic_clock_alone() -> None:
    limits = policy(last_h=8.0)

    def elapsed_s(*readings: Reading) -> float:
        state = after(limits, *readings)
        assert state.energy is not None
        return state.energy.elapsed_s

    assert elapsed_s(at(90.0, 5.0), at(90.0, 10.0), at(90.0, 12.0)) == 7.0
    assert elapsed_s(at(90.0, 5.0), at(90.0, 5.0, wall_s=noon()), at(90.0, 6.0, wall_s=noon(23))) == 1.0, "slept"
    assert elapsed_s(at(90.0, 5.0), at(90.0, -100.0), at(90.0, -90.0)) == 10.0, "a jump back counts nothing"
    assert elapsed_s(at(90.0, 5.0), at(90.0, 3605.0)) == 3600.0, "a gap in which the clock ran is time"


def test_charge_that_trembles_by_less_than_the_band_never_makes_it_rise() -> None:
    budget = EnergyBudget(last_h=8.0, capacity_wh=24.0, idle_mw=1000.0, reserve_pct=0.0)
    limits = RungPolicy(RungLimits(0.25, 0.0, energy=budget), LADDER, COSTS)
    state, ranks = PolicyState(), []
    for second in range(100):
        state = limits.decide(at(98.0 + second % 3, float(second)), state).state
        ranks.append(state.rank)
    assert ranks == sorted(ranks, reverse=True)  # type: ignore[type-var]
    assert ranks[-1] == HIGH


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "a budget lasts for hours or until a time of day (give one of the two"),
        ({"last_h": 8.0, "until": "18:00"}, "give one of the two"),
        ({"until": "6 pm"}, "until is '6 pm', no time of day"),
        ({"until": "25:00"}, "until is '25:00', no time of day"),
        ({"last_h": 0.0}, "last_h is 0"),
        ({"last_h": 8.0, "reserve_pct": 0.05}, "reserve_pct is 0.05, less than one per cent (a fraction? write 5)"),
        ({"last_h": 8.0, "capacity_wh": 50000.0}, "capacity_wh is 50000, outside 0.1..5000 (watt-hours; not milliwatt"),
        ({"last_h": 8.0, "idle_mw": 2.5}, "idle_mw is 2.5, outside 10..1e+06 (watts? write 2500)"),
        ({"last_h": 8.0, "busy_mw": -1.0}, "busy_mw is -1, outside 10..1e+06 (milliwatts)"),
        ({"last_h": 8.0, "arrivals_per_s": float("inf")}, "arrivals_per_s is inf"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        EnergyBudget(**settings)  # type: ignore[arg-type]
    assert words in str(caught.value)
