"""The closed loop: what a policy decides comes back as heat, battery and queue."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_worlds import COSTS, EXACT, small_scenario, small_world, steady_trace

from nsn_edge.errors import RankError, TraceError, UsageError
from nsn_edge.runtimes.policy import Decision, PolicyState
from nsn_edge.runtimes.simulation import (
    Battery,
    Fate,
    FixedRung,
    Heat,
    Load,
    Outcome,
    ThermalModel,
    Unplugged,
    World,
    lay_out,
    run_closed_loop,
)
from nsn_edge.runtimes.telemetry import Reading, TelemetryTrace, Work

RANKS = COSTS.ranks


class Scripted:
    """A rank for each decision, and what it was told."""

    def __init__(self, *ranks: int) -> None:
        self._ranks = ranks
        self.readings: list[Reading] = []

    def decide(self, reading: Reading, state: PolicyState) -> Decision:
        rank = self._ranks[len(self.readings) % len(self._ranks)]
        self.readings.append(reading)
        return Decision(rank, "scripted", replace(state, rank=rank))

    def to_json(self) -> dict[str, Any]:
        return {"name": "scripted"}


def arriving(world_rows: list[int], **changes: Any) -> World:
    """Requests at stated rows, on a device without luck."""
    trace = steady_trace(len(world_rows))
    return lay_out(trace, small_scenario(**changes), EXACT, arrivals=np.array(world_rows))


worlds = st.builds(
    small_world,
    rows=st.integers(2, 40),
    seed=st.integers(0, 99),
    arrivals_per_s=st.floats(0.0, 12.0),
    deadline_ms=st.floats(50.0, 3000.0),
    queue_limit=st.integers(1, 6),
    temperature_limit_c=st.floats(45.0, 60.0),
    battery=st.none() | st.builds(Battery, capacity_wh=st.floats(0.005, 0.5), charge_w=st.floats(0.0, 20.0)),
    heat=st.lists(st.builds(Heat, st.floats(0.0, 1.5), st.floats(-10.0, 20.0)), max_size=2).map(tuple),
    load=st.lists(
        st.builds(Load, st.floats(0.0, 1.5), slowdown=st.floats(1.0, 4.0), arrivals_per_s=st.none() | st.floats(0, 9)),
        max_size=2,
    ).map(tuple),
)
scripts = st.lists(st.sampled_from(RANKS), min_size=1, max_size=8)


@given(worlds, scripts)
@settings(max_examples=60)
def test_what_holds_in_every_world(world: World, script: list[int]) -> None:
    outcome = run_closed_loop(world, Scripted(*script))
    # Every request has one fate.
    assert sum(outcome.count(fate) for fate in Fate) == outcome.arrived == len(world.arrival_s)
    answers = outcome.answers
    begun = ~np.isnan(answers.begin_s)
    # Nobody is served before they come, two never at once, and the queue is first come, first served.
    assert (answers.begin_s[begun] >= world.arrival_s[begun]).all()
    assert (np.diff(answers.begin_s[begun]) >= 0.0).all()
    ended = ~np.isnan(answers.finish_s)
    assert (answers.begin_s[ended][1:] >= answers.finish_s[ended][:-1] - 1e-9).all()
    # In time, late, given up: by the deadline.
    within = answers.finish_s - world.arrival_s <= world.scenario.deadline_ms / 1000.0
    assert (within == (answers.fate == Fate.IN_TIME)).all()
    assert not begun[(answers.fate == Fate.GIVEN_UP) | (answers.fate == Fate.REFUSED)].any()
    # Heat within physics, time above the limit within the row.
    assert all(0.0 <= moment.above_limit_s <= 1.0 for moment in outcome.timeline)
    assert 0.0 <= outcome.seconds_above_limit <= outcome.duration_s + 1e-9
    assert sum(outcome.time_at_rung_s.values()) <= outcome.duration_s + 1e-9
    assert 0.0 <= outcome.miss_fraction <= 1.0


@given(worlds, scripts)
@settings(max_examples=40)
def test_energy_is_counted_once(world: World, script: list[int]) -> None:
    outcome = run_closed_loop(world, Scripted(*script))
    rows_j = sum((moment.power_w - base) for moment, base in zip(outcome.timeline, world.base_w, strict=True))
    assert rows_j == pytest.approx(outcome.answers.spent_j, abs=1e-6)  # every row lasts a second
    ended = np.flatnonzero(~np.isnan(outcome.answers.finish_s))
    full_j = sum(world.energy_j[request, outcome.answers.rung[request]] for request in ended)
    begun = np.flatnonzero(~np.isnan(outcome.answers.begin_s))
    most_j = sum(world.energy_j[request, outcome.answers.rung[request]] for request in begun)
    assert full_j - 1e-6 <= outcome.answers.spent_j <= most_j + 1e-6


@given(worlds, scripts)
@settings(max_examples=30)
def test_the_same_seed_is_the_same_world(world: World, script: list[int]) -> None:
    again = lay_out(world.trace, world.scenario, world.costs, seed=world.seed)
    assert run_closed_loop(again, Scripted(*script)).summary() == run_closed_loop(world, Scripted(*script)).summary()


@given(st.integers(0, 50), st.floats(1.0, 3.0), st.floats(0.0, 8.0), scripts)
@settings(max_examples=30)
def test_the_battery_holds_what_was_not_drawn(seed: int, wh: float, charge_w: float, script: list[int]) -> None:
    world = small_world(
        rows=40,
        seed=seed,
        battery=Battery(wh, start_pct=60.0, charge_w=charge_w),
        unplugged=(Unplugged(10.0, 25.0),),
    )
    outcome = run_closed_loop(world, Scripted(*script))
    off_j = sum(moment.power_w for moment in outcome.timeline if not moment.on_mains)
    charged_j = 25 * charge_w
    full_j = wh * 3600.0
    left_j = outcome.timeline[-1].battery_j
    assert left_j is not None
    assert left_j <= full_j
    assert left_j <= 0.6 * full_j - off_j + charged_j + 1e-6
    if 0.6 * full_j + 10 * charge_w < full_j:  # it was never full before the plug was pulled
        assert left_j == pytest.approx(min(0.6 * full_j + 10 * charge_w - off_j + 15 * charge_w, full_j))


def test_time_above_the_limit_by_hand() -> None:
    """2 degrees per watt, 20 s: one request of 400 ms and 2 J each second is 2 W, so the rise nears 4 degrees and
    passes 2 after 20 s * ln 2."""
    world = arriving([1] * 30, temperature_limit_c=52.0, throttle_slowdown=1.0)
    world = replace(world, arrival_s=np.arange(30.0))
    outcome = run_closed_loop(world, FixedRung(32))
    assert outcome.seconds_above_limit == pytest.approx(30.0 - 20.0 * math.log(2.0))
    assert outcome.broken == ("temperature",)


def test_heat_follows_the_surroundings_and_the_rung() -> None:
    world = small_world(rows=200, arrivals_per_s=0.0, heat=(Heat(10.0, 8.0),))
    idle = run_closed_loop(world, FixedRung(8))
    assert idle.timeline[10].temperature_c == pytest.approx(50.0)
    assert idle.timeline[30].temperature_c == pytest.approx(50.0 + 8.0 * (1 - math.exp(-1.0)))
    assert idle.timeline[-1].temperature_c == pytest.approx(58.0, abs=0.01)
    busy = small_world(rows=200)
    low, high = (run_closed_loop(busy, FixedRung(rank)).timeline[-1].temperature_c for rank in (8, 32))
    assert 50.0 < low < high


def test_a_throttling_device_is_slower_by_the_stated_factor() -> None:
    cool = run_closed_loop(arriving([1, 0]), FixedRung(16))
    hot = run_closed_loop(arriving([1, 0], temperature_limit_c=49.0, throttle_slowdown=3.0), FixedRung(16))
    assert cool.latency_ms == pytest.approx([200.0])
    assert hot.latency_ms == pytest.approx([600.0])
    assert hot.answers.spent_j == pytest.approx(cool.answers.spent_j)
    busy = run_closed_loop(arriving([1, 0], load=(Load(0.0, slowdown=2.0),)), FixedRung(16))
    assert busy.latency_ms == pytest.approx([400.0])


def test_waiting_counts_and_the_impatient_leave() -> None:
    """Four requests at once, 400 ms each, a deadline of a second: in time, in time, late, given up."""
    world = replace(arriving([4, 0, 0]), arrival_s=np.zeros(4))
    outcome = run_closed_loop(world, FixedRung(32))
    assert [Fate(fate) for fate in outcome.answers.fate] == [Fate.IN_TIME, Fate.IN_TIME, Fate.LATE, Fate.GIVEN_UP]
    assert outcome.latency_ms == pytest.approx([400.0, 800.0, 1200.0])
    assert outcome.quality_per_request == pytest.approx(2 / 4)
    assert outcome.quality_per_answer == pytest.approx(1.0)
    assert outcome.miss_fraction == 0.5
    assert outcome.broken == ("deadline",)
    small = run_closed_loop(replace(world, scenario=replace(world.scenario, queue_limit=1)), FixedRung(32))
    assert [Fate(fate) for fate in small.answers.fate] == [Fate.IN_TIME, Fate.IN_TIME, Fate.REFUSED, Fate.REFUSED]


def test_an_answer_keeps_the_rung_at_which_it_began() -> None:
    world = replace(arriving([2, 0, 0]), arrival_s=np.array([0.9, 0.95]))
    outcome = run_closed_loop(world, Scripted(32, 8, 8))
    assert list(outcome.answers.rung) == [2, 0]
    assert outcome.latency_ms == pytest.approx([400.0, 450.0])
    assert [(s.time_s, s.from_rank, s.to_rank) for s in outcome.switches] == [(1.0, 32, 8)]


def test_an_empty_battery_ends_it() -> None:
    world = small_world(rows=30, battery=Battery(5.0 * 12 / 3600.0), unplugged=(Unplugged(0.0),), arrivals_per_s=0.0)
    policy = Scripted(8)
    outcome = run_closed_loop(world, policy)
    assert outcome.battery_died_at_s == 12.0
    assert len(policy.readings) == 12
    assert [moment.rank for moment in outcome.timeline[11:13]] == [8, None]
    assert outcome.broken == ("battery",)
    late = replace(world, arrival_s=np.array([20.0]), luck=np.zeros(1))
    assert run_closed_loop(late, FixedRung(8)).miss_fraction == 1.0


def test_a_reserve_is_a_promise() -> None:
    world = small_world(rows=10, battery=Battery(1.0, reserve_pct=99.0), unplugged=(Unplugged(0.0),))
    assert run_closed_loop(world, FixedRung(8)).broken == ("battery",)
    assert run_closed_loop(small_world(rows=10, battery=Battery(1.0, reserve_pct=90.0)), FixedRung(8)).broken == ()


def test_what_the_policy_is_told() -> None:
    world = arriving([2] * 12, battery=Battery(10.0, start_pct=50.0), unplugged=(Unplugged(3.0),))
    policy = Scripted(8)
    run_closed_loop(world, policy)
    first, later = policy.readings[0], policy.readings[6]
    assert (first.temperature_c, first.temperature_limit_c, first.throttling) == (50.0, 90.0, False)
    assert (first.battery_pct, first.battery_j, first.on_mains) == (50.0, 18000.0, True)
    assert later.on_mains is False
    assert later.battery_pct is not None
    assert later.battery_pct < 50.0
    assert later.temperature_c is not None
    assert later.temperature_c > 50.0
    assert later.power_mw is not None
    assert later.power_mw >= 5000.0
    assert later.energy_j is not None
    assert later.energy_j > 30.0
    assert later.work is not None
    assert later.work.arrivals_per_s == pytest.approx(2.0)
    assert 1 <= len(later.work.answers) <= 3
    assert {(answer.rank, round(answer.latency_ms)) for answer in later.work.answers} == {(8, 100)}


def test_a_silent_sensor_is_silent_here_and_the_device_warms_all_the_same() -> None:
    readings = [Reading(float(row), temperature_c=None if 5 <= row < 8 else 50.0 + row) for row in range(12)]
    world = lay_out(TelemetryTrace("gaps", tuple(readings)), small_scenario(arrivals_per_s=0.0), COSTS)
    policy = Scripted(8)
    outcome = run_closed_loop(world, policy)
    assert [reading.temperature_c is None for reading in policy.readings] == [5 <= row < 8 for row in range(12)]
    assert {reading.throttling for reading in policy.readings[5:8]} == {None}
    assert outcome.timeline[6].temperature_c == pytest.approx(56.0)


def test_given_arrivals_come_in_their_rows() -> None:
    world = lay_out(steady_trace(4), small_scenario(), COSTS, arrivals=np.array([0, 3, 0, 1]))
    assert [math.floor(moment) for moment in world.arrival_s] == [1, 1, 1, 3]
    with pytest.raises(UsageError, match="4 whole numbers, one per row"):
        lay_out(steady_trace(4), small_scenario(), COSTS, arrivals=np.array([1, 2]))
    with pytest.raises(UsageError, match="0 or more"):
        lay_out(steady_trace(4), small_scenario(), COSTS, arrivals=np.array([1, 2, -1, 0]))


def test_arrivals_as_the_trace_counted_them() -> None:
    rates = [None, 0.0, None, 300.0, None, None]
    readings = [
        Reading(float(row), temperature_c=50.0, work=Work(arrivals_per_s=0.0 if row == 0 else rate))
        for row, rate in enumerate(rates)
    ]
    world = lay_out(TelemetryTrace("counted", tuple(readings)), small_scenario(arrivals_per_s=None), COSTS)
    rows = [int((np.floor(world.arrival_s) == row).sum()) for row in range(6)]
    assert rows[:3] == [0, 0, 0]
    assert all(200 < count < 400 for count in rows[3:])


def test_service_times_follow_the_profile() -> None:
    world = small_world(rows=4000, arrivals_per_s=5.0)
    for rung, cost in enumerate(COSTS.rungs):
        p50, p99 = np.percentile(1000.0 * world.service_s[:, rung], [50, 99])
        assert p50 == pytest.approx(cost.p50_ms, rel=0.01)
        assert p99 == pytest.approx(cost.p99_ms, rel=0.01)
    assert len(world.arrival_s) == pytest.approx(20000, rel=0.03)
    assert (np.diff(world.arrival_s) >= 0.0).all()


def test_assumed_power_stands_in_for_energy() -> None:
    plain = replace(EXACT, rungs=tuple(replace(cost, energy_mj=None) for cost in EXACT.rungs))
    world = lay_out(steady_trace(3), small_scenario(active_w=10.0), plain, arrivals=np.array([1, 1, 1]))
    assert world.energy_is_modelled
    assert world.energy_j[0] == pytest.approx([1.0, 2.0, 4.0])
    with pytest.raises(UsageError, match="no energy, so joules and heat must be modelled"):
        lay_out(steady_trace(3), small_scenario(), plain)


def test_what_cannot_be_simulated() -> None:
    blind = replace(EXACT, rungs=tuple(replace(cost, quality=None) for cost in EXACT.rungs))
    with pytest.raises(UsageError, match="does not say how good its rungs are"):
        lay_out(steady_trace(3), small_scenario(), blind)
    with pytest.raises(TraceError, match="at rest has one row"):
        lay_out(steady_trace(1), small_scenario(), COSTS)
    with pytest.raises(UsageError, match="heat begins at 30 s, and at rest ends at 10 s"):
        lay_out(steady_trace(10), small_scenario(heat=(Heat(30.0, 5.0),)), COSTS)
    silent = TelemetryTrace("mute", tuple(Reading(float(row), temperature_c=50.0) for row in range(5)))
    with pytest.raises(TraceError, match="mute does not say what the device draws"):
        lay_out(silent, small_scenario(battery=Battery(5.0)), COSTS)
    assert lay_out(silent, small_scenario(battery=Battery(5.0), base_w=3.0), COSTS).base_w[0] == 3.0
    with pytest.raises(TraceError, match="never says a temperature"):
        lay_out(TelemetryTrace("cold", (Reading(0.0), Reading(1.0))), small_scenario(), COSTS)
    with pytest.raises(RankError, match="no costs of rank 7"):
        run_closed_loop(small_world(), FixedRung(7))


def test_a_gap_is_named_by_line() -> None:
    times = [0.0, 1.0, 2.0, 60.0, 61.0]
    trace = TelemetryTrace("walk.csv", tuple(Reading(at, temperature_c=50.0) for at in times), (2, 3, 5, 6, 7))
    with pytest.raises(TraceError, match=r"walk\.csv, line 6: a gap of 58 s before this row, where rows are 1 s apart"):
        lay_out(trace, small_scenario(), COSTS)


def test_without_a_limit_nothing_is_above_it() -> None:
    outcome = run_closed_loop(small_world(temperature_limit_c=None), FixedRung(32))
    assert outcome.seconds_above_limit == 0.0


def test_the_thermal_model_of_a_scenario_is_used_as_it_is() -> None:
    world = small_world()
    assert world.fit is None
    assert world.thermal == ThermalModel(2.0, 20.0)


def outcome_of(world: World, *script: int) -> Outcome:
    return run_closed_loop(world, Scripted(*script))


def test_the_summary_is_plain_and_complete() -> None:
    summary = outcome_of(small_world(), 8, 32).summary()
    assert summary["requests"] == sum(summary[key] for key in ("in_time", "late", "given_up", "refused", "waiting"))
    assert summary["p50_ms"] <= summary["p95_ms"] <= summary["p99_ms"]
    nothing = outcome_of(small_world(arrivals_per_s=0.0), 8).summary()
    assert {nothing[key] for key in ("p50_ms", "quality_per_request", "quality_per_answer", "joules_per_answer")} == {
        None
    }
