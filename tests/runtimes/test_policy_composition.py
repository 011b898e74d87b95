"""What must hold for every limiter alone and for any composition of them, whatever sensors and sessions say."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import (
    COSTS,
    HALF,
    HIGH,
    LADDER,
    LOW,
    LOWEST,
    PLAIN,
    TABLES,
    TOP,
    answers,
    any_costs,
    heats,
    percents,
    policies,
    readings,
    settled,
)

from nsn_edge.errors import PolicyError, RankError
from nsn_edge.runtimes.policy import (
    Deadline,
    EnergyBudget,
    Pi,
    PolicyState,
    RungCost,
    RungCosts,
    RungLimits,
    RungPolicy,
    StepWise,
    TemperatureStep,
)
from nsn_edge.runtimes.telemetry import Reading
from nsn_edge.runtimes.telemetry.base import Work

quick = settings(max_examples=40)
traces = st.lists(readings, max_size=12)
# Each limiter alone, then all of them together.
each = pytest.mark.parametrize("tables", [*((name,) for name in TABLES), tuple(TABLES)], ids="-".join)


@each
@quick
@given(data=st.data(), costs=any_costs(), trace=traces)
def test_the_rank_is_a_rung_and_the_decision_is_pure_and_explained(
    tables: tuple[str, ...], data: st.DataObject, costs: RungCosts, trace: list[Reading]
) -> None:
    policy, state = RungPolicy(data.draw(policies(tables)), LADDER, costs), PolicyState()
    for reading in trace:
        decision = policy.decide(reading, state)
        assert decision == policy.decide(reading, state)
        assert decision.rank == decision.state.rank
        assert decision.rank in LADDER.ranks
        assert decision.reason
        assert "\n" not in decision.reason
        assert decision.limiter in ("", *TABLES)
        state = decision.state


@each
@quick
@given(data=st.data(), trace=traces, reading=readings, hotter=heats, lower=percents)
def test_less_battery_or_more_heat_never_gives_a_higher_rung(
    tables: tuple[str, ...], data: st.DataObject, trace: list[Reading], reading: Reading, hotter: float, lower: float
) -> None:
    """From the same state, whatever it is, where costs rise with the rank."""
    policy, state = RungPolicy(data.draw(policies(tables)), LADDER, COSTS), PolicyState()
    for earlier in trace:
        state = policy.decide(earlier, state).state
    rank = policy.decide(reading, state).rank
    if reading.temperature_c is not None:
        hot = replace(reading, temperature_c=max(hotter, reading.temperature_c))
        assert policy.decide(hot, state).rank <= rank
    less = reading.battery_pct if reading.battery_pct is None else min(lower, reading.battery_pct)
    joules = reading.battery_j if reading.battery_j is None else reading.battery_j * lower / 100.0
    assert policy.decide(replace(reading, battery_pct=less, battery_j=joules), state).rank <= rank
    assert policy.decide(replace(reading, throttling=True), state).rank <= rank or reading.throttling is None


@each
@quick
@given(data=st.data(), costs=any_costs(), trace=st.lists(readings, max_size=30))
def test_rises_are_a_dwell_apart_whatever_the_noise(
    tables: tuple[str, ...], data: st.DataObject, costs: RungCosts, trace: list[Reading]
) -> None:
    """No noise of any sensor makes a composition flap."""
    limits = data.draw(policies(tables))
    policy, state = RungPolicy(limits, LADDER, costs), PolicyState()
    times = sorted(reading.time_s for reading in trace)
    changed_s = None
    for time_s, reading in zip(times, trace, strict=True):
        before = state.rank
        state = policy.decide(replace(reading, time_s=time_s), state).state
        assert state.rank is not None
        if before is not None and state.rank > before:
            assert changed_s is not None
            assert time_s - changed_s >= limits.min_dwell_s
        if before != state.rank:
            changed_s = time_s


@each
@quick
@given(data=st.data(), trace=st.lists(readings, min_size=2, max_size=40), step_s=st.sampled_from((1.0, 7.0)))
def test_switches_are_bounded_where_costs_rise_with_the_rank(
    tables: tuple[str, ...], data: st.DataObject, trace: list[Reading], step_s: float
) -> None:
    """At most a rise per dwell, and what falls must have risen."""
    limits = replace(data.draw(policies(tables)), min_dwell_s=20.0)
    policy, state = RungPolicy(limits, LADDER, COSTS), PolicyState()
    ranks = []
    for index, reading in enumerate(trace):
        state = policy.decide(replace(reading, time_s=index * step_s), state).state
        ranks.append(state.rank)
    switches = sum(a != b for a, b in itertools.pairwise(ranks))
    seconds = (len(trace) - 1) * step_s
    assert switches <= 2 * seconds / limits.min_dwell_s + len(LADDER.ranks) - 1


@each
@quick
@given(data=st.data(), trace=st.lists(readings, max_size=10), offset_s=st.floats(-1e9, 1e9))
def test_a_step_of_the_wall_clock_moves_nothing_but_a_promise_about_the_time_of_day(
    tables: tuple[str, ...], data: st.DataObject, trace: list[Reading], offset_s: float
) -> None:
    limits = data.draw(policies(tables))
    policy, one, other = RungPolicy(limits, LADDER, COSTS), PolicyState(), PolicyState()
    for reading in trace:
        stepped = replace(reading, wall_s=None if reading.wall_s is None else reading.wall_s + offset_s)
        one, other = policy.decide(reading, one).state, policy.decide(stepped, other).state
        if limits.energy is None or limits.energy.until is None:
            assert one == other
    calm = Reading(2e6, 90.0, True, 20.0, 100.0, False, wall_s=0.0)
    assert settled(policy, calm, one) == settled(policy, calm, other), "and once it is right again, nothing is left"


@each
@settings(max_examples=20)
@given(data=st.data(), trace=st.lists(readings, max_size=6), jump_s=st.floats(-1e6, 1e6))
def test_time_that_jumps_or_stood_still_in_a_suspend_leaves_nothing_behind(
    tables: tuple[str, ...], data: st.DataObject, trace: list[Reading], jump_s: float
) -> None:
    """Once the device is cool, full and as fast as ever, it is back at the top, after any jump."""
    limits = replace(data.draw(policies(tables)), min_dwell_s=20.0)
    if limits.deadline is not None:
        limits = replace(limits, deadline=Deadline(400.0))
    policy, state = RungPolicy(limits, LADDER, COSTS), PolicyState()
    for reading in trace:
        state = policy.decide(reading, state).state
    last_s = trace[-1].time_s if trace else 0.0
    calm = Reading(last_s + jump_s, 100.0, True, 20.0, 100.0, False, work=Work(answers(HALF, 1.0, 3)))
    state = policy.decide(calm, state).state
    for index in range(100):
        state = policy.decide(replace(calm, time_s=calm.time_s + 10.0 * index), state).state
    assert state.rank == TOP


@pytest.mark.parametrize("table", [{"step_wise": StepWise()}, {"pi": Pi()}], ids=["step_wise", "pi"])
def test_a_blind_thermal_limiter_goes_to_the_stated_safe_rung(table: dict[str, Any]) -> None:
    (name,) = table
    limits = RungLimits(0.35, 0.0, **table)
    policy = RungPolicy(limits, LADDER)
    assert policy.decide(Reading(0.0), PolicyState()).rank == LOW
    assert policy.decide(Reading(0.0, temperature_c=40.0), PolicyState()).rank == LOW, (
        "without a limit it is blind, too"
    )
    fine = policy.decide(Reading(0.0, temperature_c=40.0, temperature_limit_c=100.0), PolicyState())
    assert (fine.rank, fine.limiter) == (TOP, "")
    lost = policy.decide(Reading(1.0), fine.state)
    assert (lost.rank, lost.limiter, lost.reason) == (
        LOW,
        name,
        "the temperature is unknown: at most 35 % of FLOPs",
    )
    stale = Reading(1.0, temperature_c=40.0, temperature_limit_c=100.0, age_s=61.0)
    assert policy.decide(stale, fine.state).rank == LOW, "what is older than max_age_s is unknown"


def test_the_strictest_wins_and_its_reason_is_kept() -> None:
    limits = RungLimits(
        0.25, 20.0, temperature=(TemperatureStep(75.0, 70.0, 0.5),), step_wise=StepWise(), deadline=Deadline(20.0)
    )
    policy = RungPolicy(limits, LADDER, COSTS)
    cool = policy.decide(Reading(0.0, temperature_c=40.0, temperature_limit_c=100.0), PolicyState())
    assert (cool.rank, cool.limiter) == (LOW, "deadline")
    assert cool.reason.startswith("deadline 20 ms, slowdown 1.00 ± 0.10: rank 384 would be late for 99.7 %")
    hot = policy.decide(Reading(0.0, temperature_c=101.0, temperature_limit_c=100.0), PolicyState())
    assert (hot.rank, hot.limiter) == (LOWEST, "step_wise")
    assert hot.reason == "temperature 101 °C is at or above the limit of 100 °C: rank 48 at most"


DENSE_IS_FASTEST = RungCosts(
    tuple(
        RungCost(rank, p50_ms, 1.1 * p50_ms, 10.0, quality)
        for rank, p50_ms, quality in zip(
            LADDER.ranks, (30.0, 35.0, 40.0, 45.0, 20.0), (0.5, 0.6, 0.7, 0.8, 1.0), strict=True
        )
    ),
    "accuracy",
)


def test_a_device_on_which_the_dense_model_is_the_fastest_runs_it() -> None:
    """Two small products may take longer than a large one: then a deadline is met at the top alone."""
    policy = RungPolicy(RungLimits(0.25, 20.0, deadline=Deadline(28.0)), LADDER, DENSE_IS_FASTEST)
    assert policy.decide(Reading(0.0), PolicyState()).rank == TOP
    waiting = policy.decide(Reading(0.0), PolicyState(rank=HALF))
    assert waiting.rank == HALF, "up is slow even so"
    risen = policy.decide(Reading(20.0), waiting.state)
    assert (risen.rank, risen.reason.partition("; ")[2]) == (TOP, "room to rise for 20 s: one rung up")


def test_heat_comes_before_a_deadline_that_only_a_forbidden_rung_keeps() -> None:
    limits = RungLimits(0.25, 20.0, temperature=(TemperatureStep(75.0, 70.0, 0.5),), deadline=Deadline(28.0))
    decision = RungPolicy(limits, LADDER, DENSE_IS_FASTEST).decide(Reading(0.0, temperature_c=80.0), PolicyState())
    assert (decision.rank, decision.limiter) == (LOWEST, "thresholds")
    assert decision.reason.endswith("[deadline] wants rungs that others forbid")


def test_the_best_rung_is_the_one_of_the_best_quality() -> None:
    odd = RungCosts(tuple(replace(cost, quality=0.99 if cost.rank == HIGH else cost.quality) for cost in COSTS.rungs))
    worse_top = RungCosts(tuple(replace(cost, quality=0.5 if cost.rank == TOP else cost.quality) for cost in odd.rungs))
    policy = RungPolicy(RungLimits(0.25, 20.0, deadline=Deadline(1000.0)), LADDER, worse_top)
    assert policy.decide(Reading(0.0), PolicyState()).rank == HIGH
    assert policy.decide(Reading(0.0), PolicyState(rank=TOP)).rank == HIGH


@pytest.mark.parametrize("table", [{"deadline": Deadline(50.0)}, {"energy": EnergyBudget(last_h=8.0)}])
def test_what_plans_with_costs_says_what_is_missing(table: dict[str, Any]) -> None:
    (name,) = table
    with pytest.raises(PolicyError, match=rf"\[{name}\] plans with it \(nsn-edge profile"):
        RungPolicy(RungLimits(0.25, 20.0, **table), LADDER)


def test_costs_of_other_rungs_are_refused() -> None:
    with pytest.raises(RankError, match="the costs are of the rungs"):
        RungPolicy(RungLimits(0.25, 20.0, deadline=Deadline(50.0)), PLAIN.with_rungs([8], dense_top=False), COSTS)


def test_work_alone_is_enough_for_a_deadline_on_a_device_without_sensors() -> None:
    policy = RungPolicy(RungLimits(0.25, 20.0, deadline=Deadline(500.0)), LADDER, COSTS)
    assert policy.decide(Reading(0.0, work=Work()), PolicyState()).rank == TOP
