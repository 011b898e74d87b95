"""One rung at a time by the device's own trip point."""

from __future__ import annotations

import pytest
from policy_cases import HALF, HIGH, LADDER, LOW, LOWEST, TOP, after

from nsn_edge.errors import PolicyError
from nsn_edge.runtimes.policy import Decision, PolicyState, RungLimits, RungPolicy, StepWise
from nsn_edge.runtimes.telemetry import Reading

POLICY = RungPolicy(RungLimits(0.25, 0.0, step_wise=StepWise()), LADDER)


def at(time_s: float, heat_c: float, limit_c: float | None = 100.0, throttling: bool | None = None) -> Reading:
    return Reading(time_s, temperature_c=heat_c, temperature_limit_c=limit_c, throttling=throttling)


def play(heats_c: list[float], policy: RungPolicy = POLICY, step_s: float = 5.0) -> list[Decision]:
    state, found = PolicyState(), []
    for index, heat_c in enumerate(heats_c):
        found.append(policy.decide(at(index * step_s, heat_c), state))
        state = found[-1].state
    return found


def test_stricter_only_where_hot_and_rising() -> None:
    found = play([80, 90, 95.5, 96, 96, 95.5, 95.5, 97], step_s=30.0)
    #                     hot   rising, steady, falling, steady, rising
    assert [decision.rank for decision in found] == [TOP, TOP, HIGH, HALF, HALF, HALF, HALF, LOW]


def test_it_holds_between_the_margins_and_rises_where_cool_and_falling() -> None:
    found = play([95.5, 96.5, 94, 92, 94, 91, 90.5, 89, 80, 70, 70])
    assert [decision.rank for decision in found] == [HIGH, HALF, HALF, HALF, HALF, HALF, HALF, HIGH, TOP, TOP, TOP]
    assert found[1].reason == "temperature 96.5 °C is hot and rising, limit 100 °C: rank 96 at most"
    assert found[3].reason == "temperature 92 °C is between and the cap holds, limit 100 °C: rank 96 at most"
    assert found[7].reason.startswith("temperature 89 °C is cool and falling, limit 100 °C: rank 144 at most")


def test_at_the_limit_the_lowest_rung_at_once() -> None:
    found = play([80, 100])
    assert (found[1].rank, found[1].limiter) == (LOWEST, "step_wise")
    assert found[1].reason == "temperature 100 °C is at or above the limit of 100 °C: rank 48 at most"


def test_steps_are_spaced_so_that_one_can_show_its_effect() -> None:
    ranks = [decision.rank for decision in play([95.0 + 0.3 * n for n in range(11)], step_s=1.0)]
    assert ranks == [HIGH] * 5 + [HALF] * 5 + [LOW]


def test_throttling_is_a_reason_whatever_the_temperature() -> None:
    state = after(POLICY, at(0.0, 50.0))
    decision = POLICY.decide(at(5.0, 50.0, throttling=True), state)
    assert (decision.rank, decision.reason) == (HIGH, "the device throttles itself, limit 100 °C: rank 144 at most")
    assert POLICY.decide(at(10.0, 49.0, throttling=True), decision.state).rank == HALF


def test_a_temperature_that_stands_still_in_the_cool_does_not_hold_for_ever() -> None:
    """A sensor that rounds to whole degrees shows no fall."""
    found = play([96, 97, 98, 99] + [90] * 30, step_s=10.0)
    assert found[3].rank == LOWEST
    rises = [index * 10.0 for index in range(1, 34) if found[index].rank > found[index - 1].rank]
    assert rises[-1] - rises[-2] == 30.0, "the last of them by the clock alone"
    assert found[-1].rank == TOP


def test_it_starts_from_the_rung_that_runs_where_that_is_lower_than_its_own_cap() -> None:
    decision = POLICY.decide(at(0.0, 96.0), PolicyState(rank=LOW))
    assert decision.rank == LOWEST


def test_the_lower_of_the_devices_limit_and_the_files_counts() -> None:
    policy = RungPolicy(RungLimits(0.35, 0.0, step_wise=StepWise(limit_c=80.0)), LADDER)
    assert policy.decide(at(0.0, 81.0), PolicyState()).rank == LOWEST
    assert policy.decide(at(0.0, 70.0, limit_c=None), PolicyState()).rank == TOP
    assert policy.decide(at(0.0, 70.0, limit_c=69.0), PolicyState()).rank == LOWEST


def test_a_loss_of_the_sensor_keeps_what_was_known() -> None:
    state = after(POLICY, at(0.0, 96.0), at(5.0, 97.0))
    blind = POLICY.decide(Reading(10.0), state)
    assert blind.rank == LOWEST
    assert POLICY.decide(at(15.0, 94.0), blind.state).reason.startswith(
        "temperature 94 °C is between and the cap holds"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"leave_margin_c": 5.0}, "leave_margin_c 5 is not above enter_margin_c 5"),
        ({"limit_c": 85000.0}, "limit_c is 85000, outside -60..200 (millidegrees? write 85)"),
        ({"step_s": -1.0}, "step_s is -1"),
        ({"settle_s": float("nan")}, "settle_s is nan"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, float], words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        StepWise(**settings)
    assert words in str(caught.value)
