"""The deadline policy: the slowdown estimate, the share of late answers, and both in a closed loop."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import COSTS, HALF, HIGH, LADDER, LOW, LOWEST, TOP, after, answers, readings

from nsn_edge.errors import PolicyError
from nsn_edge.runtimes.policy import Deadline, PolicyState, RungLimits, RungPolicy
from nsn_edge.runtimes.policy.deadline import DeadlineLimiter
from nsn_edge.runtimes.policy.limiter import Rungs
from nsn_edge.runtimes.policy.slowdown import Slowdown
from nsn_edge.runtimes.telemetry import Reading
from nsn_edge.runtimes.telemetry.base import Answered, Work


def policy(deadline_ms: float, min_dwell_s: float = 20.0, **others: float) -> RungPolicy:
    return RungPolicy(RungLimits(0.25, min_dwell_s, deadline=Deadline(deadline_ms, **others)), LADDER, COSTS)


def busy(time_s: float, work: Work) -> Reading:
    return Reading(time_s, work=work)


# The estimate.


def test_the_estimate_follows_a_change_within_a_few_answers() -> None:
    slowdown = Slowdown()
    for _ in range(20):
        slowdown = slowdown.observed(answers(TOP, 1.0), COSTS)
    assert slowdown.mean == pytest.approx(1.0)
    calm = slowdown.deviation
    assert calm < 0.1
    slowdown = slowdown.observed(answers(LOW, 2.0), COSTS)
    assert slowdown.deviation > calm, "the world moved, so less is sure"
    for _ in range(6):
        slowdown = slowdown.observed(answers(LOW, 2.0), COSTS)
    assert slowdown.mean == pytest.approx(2.0, rel=0.02)


def test_answers_of_every_rung_tell_of_all() -> None:
    mixed = tuple(answer for rank in LADDER.ranks for answer in answers(rank, 1.5))
    assert Slowdown().observed(mixed, COSTS).mean == Slowdown().observed(answers(TOP, 1.5, 5), COSTS).mean


def test_one_late_answer_of_many_is_no_slowdown() -> None:
    once = Slowdown().observed((*answers(TOP, 1.0, 20), *answers(TOP, 10.0)), COSTS)
    assert once.mean == pytest.approx(1.0)


@pytest.mark.parametrize("latency_ms", [float("nan"), float("inf"), -1.0, 0.0, 1e9])
def test_impossible_answers_tell_nothing(latency_ms: float) -> None:
    assert Slowdown().observed((Answered(TOP, latency_ms), Answered(7, 10.0)), COSTS) == Slowdown()
    assert Slowdown().observed((), COSTS) == Slowdown()


@settings(max_examples=50)
@given(ratios=st.lists(st.floats(0.02, 50.0), max_size=30))
def test_the_estimate_stays_between_what_it_saw(ratios: list[float]) -> None:
    slowdown = Slowdown()
    for ratio in ratios:
        slowdown = slowdown.observed(answers(HALF, ratio), COSTS)
        assert slowdown.variance > 0.0
        assert math.isfinite(slowdown.deviation)
    assert min([1.0, *ratios]) * 0.999 <= slowdown.mean <= max([1.0, *ratios]) * 1.001


def test_noise_of_the_profile_itself_leaves_the_estimate_calm() -> None:
    """Latencies as the profile has them: the estimate is 1, give or take a few percent, and says so."""
    draw, slowdown, means = random.Random(0), Slowdown(), []
    cost = COSTS.at(TOP)
    deviation_ms = (cost.p99_ms - cost.p50_ms) / 2.326
    for _ in range(300):
        seen = tuple(Answered(TOP, draw.gauss(cost.p50_ms, deviation_ms)) for _ in range(5))
        slowdown = slowdown.observed(seen, COSTS)
        means.append(slowdown.mean)
    assert statistics.fmean(means) == pytest.approx(1.0, abs=0.02)
    assert statistics.stdev(means[20:]) < 0.1


# The share of late answers.


def late(deadline_ms: float, work: Work, slowdown: float = 1.0, rank: int = TOP, **others: float) -> float:
    limiter = DeadlineLimiter(Deadline(deadline_ms, **others), Rungs(LADDER, COSTS), COSTS)
    return limiter.late(COSTS.at(rank), Slowdown(slowdown, 1e-8, 1e-8), work, deadline_ms)


def test_alone_the_profiles_own_percentiles_are_the_answer() -> None:
    assert late(COSTS.at(TOP).p99_ms, Work()) == pytest.approx(0.01, rel=0.01)
    assert late(COSTS.at(TOP).p50_ms, Work()) == pytest.approx(0.5)
    assert late(2 * COSTS.at(TOP).p99_ms, Work(), slowdown=2.0) == pytest.approx(0.01, rel=0.01)


def test_requests_in_the_queue_are_answered_first() -> None:
    empty, full = Work(waiting=0), Work(waiting=3)
    assert late(60.0, empty) < 0.01
    assert late(60.0, full) > 0.99
    assert late(230.0, full) < 0.01, "four answers of 40 ms"


def test_a_rung_that_cannot_keep_up_is_never_in_time() -> None:
    assert late(1e6, Work(arrivals_per_s=25.0)) == 1.0
    assert late(1e6, Work(arrivals_per_s=24.0)) < 0.01
    assert late(1e6, Work(arrivals_per_s=25.0), rank=HIGH) < 0.01


@pytest.mark.parametrize(("rate", "deadline_ms"), [(5.0, 80.0), (5.0, 120.0), (12.0, 120.0), (18.0, 200.0)])
def test_the_queue_formula_against_a_simulated_queue(rate: float, deadline_ms: float) -> None:
    """Random arrivals, one at a time, a normal service. The formula is an approximation: within 1.5 points, or a
    factor of 1.5."""
    draw = random.Random(1)
    cost = COSTS.at(TOP)
    deviation_ms = (cost.p99_ms - cost.p50_ms) / 2.326
    now_ms = free_ms = 0.0
    missed, count = 0, 40000
    for _ in range(count):
        now_ms += draw.expovariate(rate) * 1000.0
        free_ms = max(now_ms, free_ms) + max(draw.gauss(cost.p50_ms, deviation_ms), 0.0)
        missed += free_ms - now_ms > deadline_ms
    found = late(deadline_ms, Work(arrivals_per_s=rate))
    assert found == pytest.approx(missed / count, abs=0.015, rel=0.5)


def test_the_steady_beat_of_a_camera_does_not_queue() -> None:
    work = Work(arrivals_per_s=20.0)
    assert late(60.0, work, arrivals_cv=0.0) < 0.03 < late(60.0, work)


@settings(max_examples=100)
@given(
    deadline_ms=st.floats(1.0, 1000.0),
    slower=st.floats(1.0, 3.0),
    mean=st.floats(0.1, 5.0),
    rate=st.floats(0.0, 50.0),
    waiting=st.integers(0, 20),
)
def test_late_is_a_share_that_grows_with_slowness_queue_and_haste(
    deadline_ms: float, slower: float, mean: float, rate: float, waiting: int
) -> None:
    limiter = DeadlineLimiter(Deadline(100.0), Rungs(LADDER, COSTS), COSTS)
    slowdown, work = Slowdown(mean), Work(arrivals_per_s=rate, waiting=waiting)
    for cost in COSTS.rungs:
        share = limiter.late(cost, slowdown, work, deadline_ms)
        assert 0.0 <= share <= 1.0 + 1e-12
        slack = 0.02  # the two branches of the exponentially modified Gaussian meet within this
        assert limiter.late(cost, Slowdown(mean * slower), work, deadline_ms) >= share - slack
        assert limiter.late(cost, slowdown, replace(work, waiting=waiting + 1), deadline_ms) >= share - slack
        assert limiter.late(cost, slowdown, work, deadline_ms / slower) >= share - slack


# The policy.


def test_the_best_rung_in_time_runs_and_the_reason_has_the_numbers() -> None:
    found = [policy(deadline_ms).decide(Reading(0.0), PolicyState()) for deadline_ms in (100.0, 50.0, 35.0, 20.0, 5.0)]
    assert [decision.rank for decision in found] == [TOP, HIGH, HALF, LOW, LOWEST]
    assert found[1].reason == "deadline 50 ms, slowdown 1.00 ± 0.10: rank 384 would be late for 8.4 %"
    assert found[4].reason == "deadline 5 ms, slowdown 1.00 ± 0.10: no rung is in time, rank 48 is the fastest"


def test_a_slower_device_takes_a_lower_rung_at_once_and_rises_again_when_it_recovers() -> None:
    limits = policy(66.0)
    state = after(limits, *(busy(float(n), Work(answers(TOP, 1.0, 5))) for n in range(5)))
    assert state.rank == TOP
    slow = limits.decide(busy(5.0, Work(answers(TOP, 2.0, 5))), state)
    assert slow.rank < HIGH
    state = after(limits, *(busy(6.0 + n, Work(answers(HALF, 2.0, 5))) for n in range(60)), state=slow.state)
    assert state.rank == HALF
    state = after(limits, *(busy(70.0 + n, Work(answers(HALF, 1.0, 5))) for n in range(120)), state=state)
    assert state.rank == TOP


def test_load_counts_before_answers_are_late() -> None:
    calm = policy(80.0).decide(busy(0.0, Work(arrivals_per_s=1.0)), PolicyState())
    assert calm.rank == TOP
    loaded = policy(80.0).decide(busy(1.0, Work(arrivals_per_s=20.0, waiting=4)), calm.state)
    assert loaded.rank == LOW
    assert ", 20 requests/s, 4 waiting: rank 384 would be late for" in loaded.reason


def test_noise_about_a_threshold_does_not_make_it_flap() -> None:
    """Slowdown estimates that tremble by less than the band: it falls where it must and never rises."""
    limits, draw = policy(54.0 * 1.06, 0.0), random.Random(0)
    state, ranks = PolicyState(), []
    for second in range(300):
        state = limits.decide(busy(float(second), Work(answers(TOP, 1.0 + draw.uniform(-0.04, 0.04)))), state).state
        ranks.append(state.rank)
    assert ranks[20:] == sorted(ranks[20:], reverse=True)  # type: ignore[type-var]


def test_where_nobody_counts_the_profile_alone_speaks() -> None:
    assert policy(100.0).decide(Reading(0.0), PolicyState()).rank == TOP
    state = after(policy(100.0), *(Reading(float(n)) for n in range(5)))
    assert state.deadline is not None
    assert state.deadline.slowdown == Slowdown()


@settings(max_examples=40)
@given(trace=st.lists(readings, max_size=8), reading=readings, slower=st.floats(1.0, 3.0), more=st.integers(0, 20))
def test_a_slower_answer_or_a_longer_queue_never_gives_a_higher_rung(
    trace: list[Reading], reading: Reading, slower: float, more: int
) -> None:
    limits = policy(60.0)
    state = after(limits, *trace)
    mean = state.deadline.slowdown.mean if state.deadline else 1.0
    one = replace(reading, work=Work(answers(HALF, max(mean, 0.05)), 2.0, 0))
    two = replace(reading, work=Work(answers(HALF, max(mean, 0.05) * slower), 2.0, more))
    assert limits.decide(two, state).rank <= limits.decide(one, state).rank


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"deadline_ms": 0.05}, "deadline_ms is 0.05, outside 0.1..3.6e+06 (seconds? write 50)"),
        ({"deadline_ms": -5.0}, "deadline_ms is -5"),
        ({"deadline_ms": 50.0, "probability": 99.0}, "probability is 99, outside 0.5..0.9999 (per cent? write 0.99)"),
        ({"deadline_ms": 50.0, "probability": 1.0}, "probability is 1, outside"),
        ({"deadline_ms": 50.0, "band": 10.0}, "band is 10, outside 0..0.9 (per cent? write 0.1)"),
        ({"deadline_ms": 50.0, "arrivals_cv": -1.0}, "arrivals_cv is -1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, float], words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Deadline(**settings)
    assert words in str(caught.value)
