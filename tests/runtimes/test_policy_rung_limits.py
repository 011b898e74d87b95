"""Rung limits: what each rule does, and what must hold for every policy, ladder and reading."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsn_edge.errors import PolicyError, RankError
from nsn_edge.ladder import RankLadder, uniform_ladder
from nsn_edge.runtimes.policy import (
    BatteryStep,
    Decision,
    PolicyState,
    RungLimits,
    RungPolicy,
    TemperatureStep,
    ThrottlingLimit,
)
from nsn_edge.runtimes.telemetry import Reading

PLAIN = uniform_ladder([("a", 384, 384, 384)], align=8)
LADDER = PLAIN.with_rungs([PLAIN.rank_for_fraction(part) for part in (0.25, 0.35, 0.5, 0.75)], dense_top=True)
LOWEST, LOW, HALF, HIGH, TOP = LADDER.ranks
LIMITS = RungLimits(
    unknown_max_flops=0.35,
    min_dwell_s=20.0,
    battery=(BatteryStep(50.0, 55.0, 0.75), BatteryStep(20.0, 25.0, 0.35), BatteryStep(10.0, 13.0, 0.25)),
    temperature=(TemperatureStep(75.0, 70.0, 0.5), TemperatureStep(88.0, 83.0, 0.25)),
    throttling=ThrottlingLimit(0.35, enter_margin_c=5.0, leave_margin_c=10.0),
)
POLICY = RungPolicy(LIMITS, LADDER)


def decide(reading: Reading, state: PolicyState | None = None) -> Decision:
    return POLICY.decide(reading, state or PolicyState())


def at(rank: int, **state: object) -> PolicyState:
    """The state of a policy that has run at `rank`."""
    return replace(PolicyState(rank=rank, saw_power=True, saw_temperature=True), **state)


def settle(policy: RungPolicy, reading: Reading, state: PolicyState | None = None, dwell_s: float = 3600.0) -> int:
    """The rank after the same reading was seen long enough for every rise."""
    state = state or PolicyState()
    for step in range(12):
        state = policy.decide(replace(reading, time_s=reading.time_s + step * dwell_s), state).state
    assert state.rank is not None
    return state.rank


@pytest.mark.parametrize(
    ("reading", "rank", "reason"),
    [
        (Reading(0.0, 80.0, False, 40.0), TOP, "no limit applies (battery 80 %, 40 °C)"),
        (Reading(0.0, 50.0, False, 40.0), HIGH, "battery 50 % is at or below 50 %: at most 75 % of FLOPs"),
        (Reading(0.0, 18.0, False, 40.0), LOW, "battery 18 % is at or below 20 %: at most 35 % of FLOPs"),
        (Reading(0.0, 0.0, None, None), LOWEST, "battery 0 % is at or below 10 %: at most 25 % of FLOPs"),
        (Reading(0.0, 5.0, True, 40.0), TOP, "no limit applies (on mains, battery 5 %, 40 °C)"),
        (Reading(0.0, 5.0, True, 80.0), HALF, "temperature 80 °C is at or above 75 °C: at most 50 % of FLOPs"),
        (Reading(0.0, 18.0, False, 90.0), LOWEST, "temperature 90 °C is at or above 88 °C: at most 25 % of FLOPs"),
        (Reading(0.0, 18.0, False, 80.0), LOW, "battery 18 % is at or below 20 %: at most 35 % of FLOPs"),
        (Reading(0.0, 90.0, False, 40.0, throttling=True), LOW, "the device throttles itself: at most 35 % of FLOPs"),
        (
            Reading(0.0, 90.0, False, 60.0, temperature_limit_c=65.0),
            LOW,
            "temperature 60 °C is or was within 5 °C of the device's limit of 65 °C: at most 35 % of FLOPs",
        ),
        (Reading(0.0), LOW, "nothing is known of battery or heat: at most 35 % of FLOPs"),
        (Reading(0.0, power_mw=5000.0), LOW, "nothing is known of battery or heat: at most 35 % of FLOPs"),
        (Reading(0.0, None, False, 40.0), LOW, "the battery's charge is unknown: at most 35 % of FLOPs"),
        (Reading(0.0, None, None, 40.0), TOP, "no limit applies (40 °C)"),
        (Reading(0.0, None, True), TOP, "no limit applies (on mains)"),
        (Reading(0.0, throttling=False), TOP, "no limit applies (no throttling)"),
    ],
)
def test_the_first_decision(reading: Reading, rank: int, reason: str) -> None:
    decision = decide(reading)
    assert (decision.rank, decision.reason) == (rank, reason)
    assert decision.state.rank == rank


def test_a_step_holds_within_its_band_and_says_so() -> None:
    state = decide(Reading(0.0, 20.0, False, 40.0)).state
    held = decide(Reading(1.0, 24.9, False, 40.0), state)
    assert (held.rank, held.reason) == (
        LOW,
        "battery 24.9 % fell to 20 % and is not back at 25 %: at most 35 % of FLOPs",
    )
    assert decide(Reading(2.0, 25.0, False, 40.0), held.state).reason.startswith("battery 25 % is at or below 50 %")
    hot = decide(Reading(0.0, 90.0, False, 88.0)).state
    assert decide(Reading(1.0, 90.0, False, 83.1), hot).reason == (
        "temperature 83.1 °C rose to 88 °C and is not back at 83 °C: at most 25 % of FLOPs"
    )
    assert decide(Reading(1.0, 90.0, False, 83.0), hot).state.heat_depth == 1


def test_the_margin_to_the_devices_own_limit_has_a_band_too() -> None:
    def reading(heat_c: float, limit_c: float | None = 65.0) -> Reading:
        return Reading(0.0, 90.0, False, heat_c, limit_c)

    near = decide(reading(60.0)).state
    assert near.near_limit
    assert decide(reading(55.1), near).state.near_limit
    assert not decide(reading(55.0), near).state.near_limit
    assert not decide(reading(59.9)).state.near_limit
    assert not decide(reading(60.0, None), near).state.near_limit


def test_down_is_immediate_and_skips_rungs() -> None:
    state = at(TOP, calm_since_s=0.0)
    assert decide(Reading(0.0, 9.0, False, 40.0), state).rank == LOWEST


def test_up_is_one_rung_per_dwell() -> None:
    state = at(LOWEST)
    ranks, reasons = [], []
    for time_s in range(0, 101, 5):
        decision = decide(Reading(float(time_s), 90.0, True, 40.0), state)
        state = decision.state
        ranks.append(decision.rank)
        reasons.append(decision.reason)
    rises = [time_s for time_s, (a, b) in zip(range(5, 101, 5), itertools.pairwise(ranks), strict=True) if b > a]
    assert rises == [20, 40, 60, 80]
    assert sorted(set(ranks)) == list(LADDER.ranks)
    assert reasons[0].endswith("; a rise needs room for 20 s")
    assert reasons[4].endswith("; room to rise for 20 s: one rung up")


def test_a_relapse_starts_the_dwell_again() -> None:
    state = decide(Reading(0.0, 90.0, True, 80.0)).state
    for time_s, heat_c, rank in (
        (5, 60, HALF),
        (20, 60, HALF),
        (22, 76, HALF),
        (24, 60, HALF),
        (43, 60, HALF),
        (44, 60, HIGH),
    ):
        decision = decide(Reading(float(time_s), 90.0, True, float(heat_c)), state)
        state = decision.state
        assert decision.rank == rank, time_s


def test_a_loose_plug_does_not_flap() -> None:
    state, changes = PolicyState(), 0
    for time_s in range(600):
        before = state.rank
        state = decide(Reading(float(time_s), 15.0, time_s % 3 == 0, 40.0), state).state
        changes += before is not None and state.rank != before
    assert changes == 1, "down once, and never up: mains never lasted for a dwell"


def test_a_sensor_that_goes_silent_is_not_fine() -> None:
    state = decide(Reading(0.0, 90.0, False, 40.0)).state
    assert decide(Reading(1.0, None, None, 40.0), state).reason.startswith("the battery's charge is unknown")
    lost = decide(Reading(1.0, 90.0, False, None), state)
    assert (lost.rank, lost.reason) == (LOW, "the temperature is unknown: at most 35 % of FLOPs")


def test_a_policy_looks_only_at_what_it_limits() -> None:
    battery_alone = RungPolicy(replace(LIMITS, temperature=(), throttling=None), LADDER)
    assert battery_alone.decide(Reading(0.0, 90.0, False, 150.0, 60.0, True), PolicyState()).rank == TOP
    assert battery_alone.decide(Reading(0.0, None, None, 30.0), PolicyState()).rank == LOW
    assert battery_alone.decide(Reading(0.0, 90.0, False), PolicyState(saw_temperature=True)).rank == TOP
    heat_alone = RungPolicy(replace(LIMITS, battery=(), throttling=None), LADDER)
    assert heat_alone.decide(Reading(0.0, 1.0, False, 30.0), PolicyState()).rank == TOP
    assert heat_alone.decide(Reading(0.0, 1.0, False, None), PolicyState()).rank == LOW


@pytest.mark.parametrize("rank", [LOWEST, HIGH, TOP])
@pytest.mark.parametrize("times", [[5.0] * 50, [5.0, 4.0, 3.0, -1e9, 1e9, 0.0], [0.0, 1e12]])
def test_time_that_stands_or_jumps_is_harmless(rank: int, times: list[float]) -> None:
    state = at(rank)
    for time_s in times:
        before = state.rank
        assert before is not None
        state = decide(Reading(time_s, 90.0, True, 40.0), state).state
        assert state.rank in LADDER.ranks
        assert LADDER.ranks.index(state.rank) - LADDER.ranks.index(before) in (0, 1)
    if len(set(times)) == 1:
        assert state.rank == rank
    assert settle(POLICY, Reading(times[-1], 90.0, True, 40.0), state) == TOP


def test_a_state_of_another_ladder_starts_afresh() -> None:
    assert decide(Reading(0.0, 90.0, True, 40.0), PolicyState(rank=LOW + 1)).rank == TOP


def test_a_ladder_whose_every_rung_is_too_dear_gives_the_lowest() -> None:
    ladder = PLAIN.with_rungs([PLAIN.rank_for_fraction(0.75)], dense_top=True)
    assert RungPolicy(LIMITS, ladder).decide(Reading(0.0, 5.0, False, 40.0), PolicyState()).rank == ladder.ranks[0]


def test_a_ladder_without_rungs_is_refused() -> None:
    with pytest.raises(RankError, match="no rungs"):
        RungPolicy(LIMITS, PLAIN)


def test_a_policy_without_limits_is_refused() -> None:
    with pytest.raises(PolicyError, match="no limits"):
        RungLimits(unknown_max_flops=0.5, min_dwell_s=0.0)


# What must hold for every policy.

quick = settings(max_examples=60)

fractions = st.floats(0.01, 1.0)


@st.composite
def battery_steps(draw: st.DrawFn) -> tuple[BatteryStep, ...]:
    enters = draw(st.lists(st.integers(1, 90), unique=True, max_size=4).map(lambda all_: sorted(all_, reverse=True)))
    leaves: list[int] = []
    for enter in enters:
        leaves.append(min(leaves[-1] if leaves else 100, enter + draw(st.integers(1, 10))))
    flops = sorted((draw(fractions) for _ in enters), reverse=True)
    return tuple(BatteryStep(*step) for step in zip(enters, leaves, flops, strict=True))


@st.composite
def policies(draw: st.DrawFn) -> RungLimits:
    battery = draw(battery_steps())
    heat = tuple(TemperatureStep(110 - s.enter_pct, 110 - s.leave_pct, s.max_flops) for s in draw(battery_steps()))
    throttling = draw(st.none() | st.builds(ThrottlingLimit, fractions))
    if not battery and not heat and throttling is None:
        throttling = ThrottlingLimit(draw(fractions))
    return RungLimits(draw(fractions), draw(st.sampled_from([0.0, 1.0, 20.0])), battery, heat, throttling)


@st.composite
def ladders(draw: st.DrawFn) -> RankLadder:
    ranks = draw(st.lists(st.integers(1, 384), min_size=1, max_size=6))
    return PLAIN.with_rungs(ranks, dense_top=draw(st.booleans()))


def maybe(values: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.none() | values


percents = st.floats(0.0, 100.0)
heats = st.floats(0.0, 120.0)
readings = st.builds(
    Reading,
    time_s=st.floats(-1e6, 1e6),
    battery_pct=maybe(percents),
    on_mains=st.none() | st.booleans(),
    temperature_c=maybe(heats),
    temperature_limit_c=maybe(heats),
    throttling=st.none() | st.booleans(),
    power_mw=maybe(st.floats(0.0, 1e5)),
)


@quick
@given(limits=policies(), ladder=ladders(), trace=st.lists(readings, max_size=30))
def test_the_rank_is_a_rung_within_the_cap_and_the_decision_is_pure(
    limits: RungLimits, ladder: RankLadder, trace: list[Reading]
) -> None:
    policy, state = RungPolicy(limits, ladder), PolicyState()
    for reading in trace:
        decision = policy.decide(reading, state)
        assert decision == policy.decide(reading, state)
        assert decision.rank in ladder.ranks
        assert decision.rank == decision.state.rank
        assert decision.reason
        assert "\n" not in decision.reason
        if state.rank is not None:
            steps = ladder.ranks.index(decision.rank) - ladder.ranks.index(state.rank)
            assert steps <= 1, "up is one rung at a time"
        state = decision.state


@quick
@given(limits=policies(), ladder=ladders(), trace=st.lists(readings, max_size=10), reading=readings)
def test_a_tighter_limit_takes_effect_at_once(
    limits: RungLimits, ladder: RankLadder, trace: list[Reading], reading: Reading
) -> None:
    """Whatever went before, the rank is never above what the reading alone allows."""
    policy, state = RungPolicy(limits, ladder), PolicyState()
    for earlier in trace:
        state = policy.decide(earlier, state).state
    assert policy.decide(reading, state).rank <= policy.decide(reading, PolicyState()).rank


@quick
@given(
    limits=policies(),
    ladder=ladders(),
    reading=readings,
    lower=percents,
    hotter=heats,
    trace=st.lists(readings, max_size=5),
)
def test_less_battery_or_more_heat_never_settles_higher(
    limits: RungLimits, ladder: RankLadder, reading: Reading, lower: float, hotter: float, trace: list[Reading]
) -> None:
    policy, state = RungPolicy(limits, ladder), PolicyState()
    for earlier in trace:
        state = policy.decide(earlier, state).state
    settled = settle(policy, reading, state)
    if reading.battery_pct is not None:
        worse = replace(reading, battery_pct=min(lower, reading.battery_pct))
        assert settle(policy, worse, state) <= settled
    if reading.temperature_c is not None:
        worse = replace(reading, temperature_c=max(hotter, reading.temperature_c))
        assert settle(policy, worse, state) <= settled
    assert settle(policy, replace(reading, throttling=True), state) <= settled


@quick
@given(
    ladder=ladders(),
    pct=percents,
    heat_c=heats,
    noise=st.lists(st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)), min_size=2, max_size=30),
    limits=policies(),
    mains=st.none() | st.just(False),
)
def test_noise_smaller_than_the_band_never_makes_the_rank_rise(
    ladder: RankLadder,
    pct: float,
    heat_c: float,
    noise: list[tuple[float, float]],
    limits: RungLimits,
    mains: bool | None,
) -> None:
    """Bands are 1 wide or more, the noise is less: from the start on the rank may fall to where it belongs."""
    bands = [step.leave_pct - step.enter_pct for step in limits.battery]
    bands += [step.enter_c - step.leave_c for step in limits.temperature]
    assert min(bands, default=1.0) >= 1.0
    policy, state = RungPolicy(limits, ladder), PolicyState()
    ranks = []
    for index, (battery_noise, heat_noise) in enumerate(noise):
        battery_pct = min(max(pct + 0.99 * battery_noise, 0.0), 100.0)
        reading = Reading(index * 1000.0, battery_pct, mains, heat_c + 0.99 * heat_noise)
        state = policy.decide(reading, state).state
        assert state.rank is not None
        ranks.append(state.rank)
    assert all(after <= before for before, after in itertools.pairwise(ranks))


@quick
@given(limits=policies(), ladder=ladders(), trace=st.lists(readings, max_size=40))
def test_a_rise_comes_a_dwell_after_the_last_change(
    limits: RungLimits, ladder: RankLadder, trace: list[Reading]
) -> None:
    policy, state = RungPolicy(limits, ladder), PolicyState()
    changed_s = None
    for reading in sorted(trace, key=lambda reading: reading.time_s):
        before = state.rank
        state = policy.decide(reading, state).state
        assert state.rank is not None
        if before is not None and state.rank > before:
            assert changed_s is not None
            assert reading.time_s - changed_s >= limits.min_dwell_s
        if before != state.rank:
            changed_s = reading.time_s


@quick
@given(limits=policies(), ladder=ladders(), trace=st.lists(readings, max_size=10), time_s=st.floats(-1e6, 1e6))
def test_knowing_nothing_settles_at_the_safe_rung(
    limits: RungLimits, ladder: RankLadder, trace: list[Reading], time_s: float
) -> None:
    policy, state = RungPolicy(limits, ladder), PolicyState()
    safe = ladder.rung_within(limits.unknown_max_flops).rank
    assert policy.decide(Reading(time_s), state).rank == safe
    for reading in trace:
        state = policy.decide(reading, state).state
    assert policy.decide(Reading(time_s), state).rank <= safe
    assert settle(policy, Reading(time_s), state) == safe
