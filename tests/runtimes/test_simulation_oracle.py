"""The oracle's bound: no policy that keeps the limits is above it, and it is not idle talk either."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_worlds import COSTS, EXACT, small_scenario, small_world, steady_trace

from nsn_edge.runtimes.policy import Decision, PolicyState
from nsn_edge.runtimes.simulation import (
    Battery,
    FixedRung,
    Heat,
    Load,
    Outcome,
    ThermalModel,
    Unplugged,
    World,
    compare,
    lay_out,
    oracle_bound,
    run_closed_loop,
    yardsticks,
)
from nsn_edge.runtimes.simulation.oracle import _Problem
from nsn_edge.runtimes.telemetry import Reading

RANKS = COSTS.ranks


class Plan:
    """A rank for each row, whatever the reading says: with the future known any policy is one."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self._ranks = ranks

    def decide(self, reading: Reading, state: PolicyState) -> Decision:
        rank = self._ranks[round(reading.time_s) % len(self._ranks)]
        return Decision(rank, "planned", replace(state, rank=rank))

    def to_json(self) -> dict[str, str]:
        return {"name": "plan"}


def quality(outcome: Outcome) -> float:
    value = outcome.quality_per_request
    assert value is not None
    return value


worlds = st.builds(
    small_world,
    rows=st.integers(3, 25),
    seed=st.integers(0, 999),
    arrivals_per_s=st.floats(0.5, 6.0),
    deadline_ms=st.floats(300.0, 4000.0),
    temperature_limit_c=st.none() | st.floats(50.5, 58.0),
    max_miss_fraction=st.sampled_from([0.01, 0.5, 1.0]),
    thermal=st.builds(ThermalModel, st.floats(0.5, 4.0), st.floats(1.0, 60.0)),
    battery=st.none() | st.builds(Battery, capacity_wh=st.floats(0.02, 0.06), charge_w=st.sampled_from([0.0, 5.0])),
    heat=st.lists(st.builds(Heat, st.floats(0.0, 2.0), st.floats(-3.0, 3.0)), max_size=2).map(tuple),
    load=st.lists(st.builds(Load, st.floats(0.0, 2.0), slowdown=st.floats(1.0, 2.0)), max_size=1).map(tuple),
)
plans = st.lists(st.sampled_from(RANKS), min_size=1, max_size=25)


@given(worlds, st.lists(plans, min_size=1, max_size=4), st.booleans(), st.sampled_from([1, 7, 120]))
@settings(max_examples=150)
def test_no_policy_that_keeps_the_limits_beats_it(
    world: World, tried: list[list[int]], unplug: bool, steps: int
) -> None:
    if unplug and world.scenario.battery is not None:
        scenario = replace(world.scenario, unplugged=(Unplugged(1.0),))
        world = lay_out(world.trace, scenario, world.costs, seed=world.seed)
    assume(len(world.arrival_s) > 0)
    bound = oracle_bound(world, steps).quality_per_request
    for ranks in [*tried, *([rank] for rank in RANKS)]:
        outcome = run_closed_loop(world, Plan(ranks))
        if not outcome.broken:
            assert quality(outcome) <= bound + 1e-9


@given(st.integers(0, 99), st.floats(50.6, 54.0), st.integers(3, 6))
@settings(max_examples=12)
def test_it_is_above_the_best_of_every_plan_and_near_it(seed: int, limit_c: float, rows: int) -> None:
    """Brute force over every rung at every row of a tiny world."""
    world = small_world(rows=rows, seed=seed, arrivals_per_s=1.5, temperature_limit_c=limit_c)
    assume(len(world.arrival_s) >= 3)
    outcomes = (run_closed_loop(world, Plan(ranks)) for ranks in itertools.product(RANKS, repeat=rows))
    best = max((quality(outcome) for outcome in outcomes if not outcome.broken), default=None)
    bound = oracle_bound(world).quality_per_request
    assert bound <= 1.0 + 1e-9
    if best is not None:
        assert bound >= best - 1e-9


def test_where_nothing_is_scarce_it_is_the_best_rung() -> None:
    world = small_world(rows=30, arrivals_per_s=0.2)
    assert oracle_bound(world).quality_per_request == pytest.approx(1.0)
    assert quality(run_closed_loop(world, FixedRung(32))) == pytest.approx(1.0)


def test_a_rung_that_is_never_in_time_is_worth_nothing() -> None:
    world = small_world(rows=30, costs=EXACT, deadline_ms=300.0)
    assert oracle_bound(world).quality_per_request == pytest.approx(0.8)


def test_scarce_heat_is_shared_out() -> None:
    """One request a second for long: the limit leaves 1.0 W, the rungs take 0.4, 0.9 and 2 W. The best mix of the two
    rungs around it is 10/11 of 0.8 and 1/11 of 1.0."""
    world = lay_out(
        steady_trace(400), small_scenario(temperature_limit_c=52.0), EXACT, arrivals=np.ones(400, dtype=np.int64)
    )
    best = (10 * 0.8 + 1.0) / 11
    # The body is cold at first (5 % more energy), and heat counts from the arrival, a deadline early (another 5 %).
    assert best - 1e-3 <= oracle_bound(world, 1500).quality_per_request <= best + 0.03


def test_a_scarce_battery_is_shared_out() -> None:
    """5 W at rest for 100 s and 100 requests with 90 J for them: all at the middle rung, 0.9 J each."""
    battery = Battery((500.0 + 90.0) / 3600.0)
    world = lay_out(
        steady_trace(100),
        small_scenario(battery=battery, unplugged=(Unplugged(0.0),)),
        EXACT,
        arrivals=np.ones(100, dtype=np.int64),
    )
    # The last request may be answered after the end, for which nobody knows who pays.
    assert oracle_bound(world, 1500).quality_per_request == pytest.approx(0.8, abs=0.005)


def test_time_is_shared_out() -> None:
    """Five requests a second: 0.2 s each, so all at the middle rung (or better and worse ones beside each other)."""
    world = lay_out(
        steady_trace(200), small_scenario(temperature_limit_c=None), EXACT, arrivals=np.full(200, 5, dtype=np.int64)
    )
    # A stretch of 10 s counts the work of 9 s: what comes in its last second may be done after it.
    assert 0.8 <= oracle_bound(world, 1500).quality_per_request <= 0.85


def test_it_is_the_optimum_of_its_linear_programme() -> None:
    """The same programme, laid out as a matrix and solved by HiGHS."""
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    world = small_world(
        rows=60,
        seed=1,
        temperature_limit_c=53.0,
        battery=Battery(0.16),
        unplugged=(Unplugged(20.0),),
        load=(Load(40.0, arrivals_per_s=6.0),),
    )
    problem = _Problem(world)
    requests, rungs = problem._quality.shape

    def used(request: int, rung: int) -> np.ndarray:
        """What one answer takes of every resource."""
        alone = np.zeros(requests)
        alone[request] = problem._energy_j[request, rung]
        parts = [problem._heat.used(alone), np.array([alone @ problem._battery])]
        alone[request] = problem._busy_s[request, rung]
        for at, length_s in problem._stretches:
            parts.append(np.bincount(at, alone, len(length_s) + 1)[:-1] / length_s)
        return np.concatenate(parts)

    taken = np.stack([used(request, rung) for request in range(requests) for rung in range(rungs)], axis=1)
    once = np.kron(np.eye(requests), np.ones(rungs))
    worth = np.where(np.isfinite(problem._quality), problem._quality, 0.0).ravel()
    solved = optimize.linprog(
        -worth, A_ub=np.vstack([taken, once]), b_ub=np.ones(len(taken) + requests), bounds=(0, 1), method="highs"
    )
    bound = oracle_bound(world, 1000).quality_per_request
    assert bound >= -solved.fun / requests - 1e-9
    assert bound == pytest.approx(-solved.fun / requests, abs=0.002)
    assert bound < 0.95  # something was scarce


def test_without_requests_there_is_nothing_to_bound() -> None:
    world = small_world(arrivals_per_s=0.0)
    assert oracle_bound(world).quality_per_request == 0.0
    assert compare(world, FixedRung(8)).oracle_fraction is None


def test_more_steps_never_raise_it() -> None:
    world = small_world(rows=60, temperature_limit_c=52.0)
    bounds = [oracle_bound(world, steps).quality_per_request for steps in (1, 10, 100)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < bounds[0]


def test_the_best_fixed_rung_keeps_every_limit() -> None:
    world = small_world(rows=120, temperature_limit_c=54.5, deadline_ms=3000.0)
    marks = yardsticks(world)
    kept = {rank: quality(outcome) for rank, outcome in marks.fixed.items() if not outcome.broken}
    assert 0 < len(kept) < len(RANKS)
    assert marks.best_fixed is marks.fixed[max(kept, key=lambda rank: kept[rank])]
    assert marks.needless_seconds_above(marks.fixed[32]) == pytest.approx(marks.fixed[32].seconds_above_limit)
    impossible = yardsticks(small_world(rows=20, temperature_limit_c=49.0))
    assert impossible.best_fixed is None
    assert impossible.needless_seconds_above(impossible.fixed[32]) == 0.0


def test_the_report_as_json() -> None:
    world = small_world(rows=20, battery=Battery(1.0))
    report = compare(world, FixedRung(16))
    data = report.to_json()
    assert (data["schema_version"], data["kind"], data["seed"]) == (1, "scenario", 0)
    assert set(data) == {
        *("schema_version", "kind", "trace", "scenario", "seed", "device", "policy", "rungs", "summary", "fixed"),
        *("switches", "timeline"),
    }
    assert data["summary"]["oracle_fraction"] == report.oracle_fraction
    best = report.yardsticks.best_fixed
    assert data["summary"]["best_fixed_rank"] == (None if best is None else best.policy["rank"])
    assert list(data["fixed"]) == ["8", "16", "32"]
    assert data["fixed"]["16"].items() <= data["summary"].items()
    assert len(data["timeline"]) == 20
    assert report.to_json(timeline=False)["timeline"] == []
