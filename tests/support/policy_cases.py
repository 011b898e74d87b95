"""Ladders, costs, policies and readings for the policies' tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from nsn_edge.ladder import RankLadder, uniform_ladder
from nsn_edge.runtimes.policy import (
    BatteryStep,
    Deadline,
    EnergyBudget,
    Pi,
    PolicyState,
    RankPolicy,
    RungCost,
    RungCosts,
    RungLimits,
    StepWise,
    TemperatureStep,
    ThrottlingLimit,
)
from nsn_edge.runtimes.telemetry import Reading
from nsn_edge.runtimes.telemetry.base import Answered, Work

PLAIN = uniform_ladder([("a", 384, 384, 384)], align=8)
LADDER = PLAIN.with_rungs([PLAIN.rank_for_fraction(part) for part in (0.25, 0.35, 0.5, 0.75)], dense_top=True)
LOWEST, LOW, HALF, HIGH, TOP = LADDER.ranks
QUALITY = dict(zip(LADDER.ranks, (0.80, 0.88, 0.94, 0.98, 1.0), strict=True))


def rising_costs(ladder: RankLadder = LADDER, top_ms: float = 40.0, top_mj: float = 400.0) -> RungCosts:
    """Latency and energy in proportion to FLOPs: 40 ms (99th percentile 54 ms) and 400 mJ at the top."""
    return RungCosts(
        tuple(
            RungCost(
                rank,
                p50_ms=top_ms * ladder.flops_fraction(rank),
                p99_ms=1.35 * top_ms * ladder.flops_fraction(rank),
                energy_mj=top_mj * ladder.flops_fraction(rank),
                quality=QUALITY.get(rank, rank / 1000.0),
            )
            for rank in ladder.ranks
        ),
        "accuracy",
    )


COSTS = rising_costs()


def answers(rank: int, slowdown: float, count: int = 1, costs: RungCosts = COSTS) -> tuple[Answered, ...]:
    """Of a device that is so many times slower than in its profile."""
    return (Answered(rank, costs.at(rank).p50_ms * slowdown),) * count


def after(policy: RankPolicy, *readings: Reading, state: PolicyState | None = None) -> PolicyState:
    """The state after some readings."""
    state = state or PolicyState()
    for reading in readings:
        state = policy.decide(reading, state).state
    return state


def settled(policy: RankPolicy, reading: Reading, state: PolicyState | None = None) -> int:
    """The rank after the same reading was seen long enough for every rise, at one a minute."""
    state = after(policy, *(replace(reading, time_s=reading.time_s + 60.0 * n) for n in range(12)), state=state)
    assert state.rank is not None
    return state.rank


# Strategies. Whatever a sensor or a session may say, sane or not.

fractions = st.floats(0.01, 1.0)
percents = st.floats(0.0, 100.0)
heats = st.floats(0.0, 120.0)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


works = st.builds(
    Work,
    answers=st.lists(
        st.builds(
            Answered,
            rank=st.sampled_from((*LADDER.ranks, 1, 9999)),
            latency_ms=st.floats(allow_nan=True, allow_infinity=True) | st.floats(1.0, 200.0),
        ),
        max_size=4,
    ).map(tuple),
    arrivals_per_s=maybe(st.floats(-1.0, 100.0)),
    waiting=maybe(st.integers(-1, 50)),
)
readings = st.builds(
    Reading,
    time_s=st.floats(-1e6, 1e6),
    battery_pct=maybe(percents),
    on_mains=maybe(st.booleans()),
    temperature_c=maybe(heats),
    temperature_limit_c=maybe(heats),
    throttling=maybe(st.booleans()),
    power_mw=maybe(st.floats(-1e3, 1e5)),
    battery_j=maybe(st.floats(0.0, 1e6)),
    wall_s=maybe(st.floats(-1e300, 1e300) | st.floats(0.0, 2e9)),
    age_s=st.sampled_from((0.0, 1.0, 61.0)),
    work=maybe(works),
)

_steps = st.sampled_from(
    (
        {"battery": (BatteryStep(50.0, 55.0, 0.75), BatteryStep(20.0, 25.0, 0.35))},
        {"temperature": (TemperatureStep(75.0, 70.0, 0.5), TemperatureStep(88.0, 83.0, 0.25))},
        {"throttling": ThrottlingLimit(0.35)},
    )
)
_enters = st.floats(0.0, 20.0)
TABLES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "thresholds": _steps,
    "step_wise": st.builds(
        lambda enter, wide, step_s, settle_s, limit: {
            "step_wise": StepWise(enter, enter + wide, step_s, settle_s, limit)
        },
        _enters,
        st.floats(0.5, 20.0),
        st.sampled_from((0.0, 5.0)),
        st.sampled_from((0.0, 30.0)),
        maybe(st.floats(60.0, 110.0)),
    ),
    "pi": st.builds(
        lambda *settings: {"pi": Pi(*settings)},
        _enters,
        st.floats(0.0, 1.0),
        st.floats(0.05, 0.5),
        st.floats(0.0, 0.1),
        st.floats(0.0, 20.0),
        st.floats(0.0, 0.2),
        maybe(st.floats(60.0, 110.0)),
    ),
    "energy": st.builds(
        lambda promise, reserve, wh, idle: {
            "energy": EnergyBudget(**promise, reserve_pct=reserve, capacity_wh=wh, idle_mw=idle)
        },
        st.sampled_from(({"last_h": 8.0}, {"last_h": 0.01}, {"until": "18:00"}, {"until": "06:30+05:30"})),
        st.sampled_from((0.0, 5.0, 50.0)),
        maybe(st.floats(1.0, 100.0)),
        maybe(st.floats(10.0, 1e4)),
    ),
    "deadline": st.builds(
        lambda *settings: {"deadline": Deadline(*settings)},
        st.floats(1.0, 500.0),
        st.sampled_from((0.5, 0.95, 0.99)),
        st.sampled_from((0.0, 0.1)),
        st.sampled_from((0.0, 1.0, 2.0)),
    ),
}
"""The settings of one limiter each, as keywords of `RungLimits`."""


@st.composite
def policies(draw: st.DrawFn, tables: tuple[str, ...] = tuple(TABLES)) -> RungLimits:
    """One of the tables or several."""
    chosen = draw(st.lists(st.sampled_from(tables), min_size=1, max_size=len(tables), unique=True))
    settings: dict[str, Any] = {}
    for table in chosen:
        settings.update(draw(TABLES[table]))
    return RungLimits(draw(fractions), draw(st.sampled_from((0.0, 5.0, 20.0))), **settings)


@st.composite
def any_costs(draw: st.DrawFn, ladder: RankLadder = LADDER) -> RungCosts:
    """In no order at all: a low rung may be the slowest, the best or the dearest."""
    rungs = []
    for rank in ladder.ranks:
        p50_ms = draw(st.floats(0.1, 200.0))
        rungs.append(
            RungCost(rank, p50_ms, p50_ms * draw(st.floats(1.0, 3.0)), draw(st.floats(0.0, 1e3)), draw(fractions))
        )
    return RungCosts(tuple(rungs), "accuracy")
