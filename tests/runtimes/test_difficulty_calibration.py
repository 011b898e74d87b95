"""Calibrated thresholds: bounds against scipy, the search against trying every threshold, and the promise itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.runtimes.difficulty import MEASURES, DifficultyRule, certainty
from nsn_edge.runtimes.difficulty.calibration import Goal, calibrate, most_events, upper_bound
from nsn_edge.runtimes.difficulty.outcomes import HeldOut, outcome

FLOPS = {2: 0.2, 5: 0.5, 16: 1.0}
CLASSES = 4


def population(count: int, seed: int, *, labelled: bool = True) -> HeldOut:
    """Questions of unlike difficulty: the lower the rung, the more noise is on its logits."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    clear = np.eye(CLASSES)[labels] * draw.gamma(2.0, 3.0, count)[:, None]
    noises = {2: 1.6, 5: 1.0, 16: 0.5}
    logits = {rank: clear + noise * draw.standard_normal((count, CLASSES)) for rank, noise in noises.items()}
    return HeldOut(logits, FLOPS, labels if labelled else None)


@given(count=st.integers(1, 4000), share=st.floats(0.001, 0.5), risk=st.floats(0.001, 0.5))
def test_most_events_is_the_last_that_the_binomial_allows(count: int, share: float, risk: float) -> None:
    k = most_events(count, share, risk)
    if k is None:
        assert binom.cdf(0, count, share) > risk * (1 - 1e-9)
        return
    assert binom.cdf(k, count, share) <= risk * (1 + 1e-9)
    assert k == count or binom.cdf(k + 1, count, share) > risk * (1 - 1e-9)
    assert upper_bound(k, count, risk) <= share * (1 + 1e-6) or k == count


@given(count=st.integers(1, 4000), part=st.floats(0, 1), risk=st.floats(0.001, 0.5))
def test_the_upper_bound_is_that_of_clopper_and_pearson(count: int, part: float, risk: float) -> None:
    events = round(part * count)
    expected = 1.0 if events == count else beta.ppf(1 - risk, events + 1, count - events)
    assert upper_bound(events, count, risk) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("course", [(2, 16), (5, 16), (2, 5, 16)])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_threshold_is_the_lowest_of_all_that_hold(measure: str, course: tuple[int, ...], labelled: bool) -> None:
    held_out = population(300, seed=3, labelled=labelled)
    goal = Goal(max_loss_points=4.0, confidence=0.9)
    (found,) = calibrate(held_out, goal, [course], [measure])
    allowed = most_events(held_out.count, 0.04, 0.1)
    assert allowed is not None
    assert 0 < found.on_held_out.spoilt <= allowed
    assert found.loss_bound_points <= 4.0
    threshold = found.rule.thresholds[0]
    # Every threshold there is, from 1 down to the first that spoils too much.
    tried = np.unique(np.concatenate([[1.0], *(certainty(held_out.logits[rank], measure) for rank in course[:-1])]))
    holds = [value for value in tried if _spoilt(held_out, course, measure, value) > allowed]
    (first_bad,) = holds[-1:]
    assert first_bad < threshold <= tried[tried > first_bad].min()


def _spoilt(held_out: HeldOut, course: tuple[int, ...], measure: str, threshold: float) -> int:
    return outcome(DifficultyRule((threshold,) * (len(course) - 1), ranks=course, measure=measure), held_out).spoilt


def test_the_promise_is_kept_as_often_as_stated() -> None:
    """Calibrate on samples of a population that is known, and count how often the truth is worse than promised."""
    everyone = population(20_000, seed=0)
    goal = Goal(max_loss_points=2.0, confidence=0.9)
    draw = np.random.default_rng(7)
    broken = 0
    trials = 150
    for _ in range(trials):
        rows = draw.choice(everyone.count, 700, replace=False)
        assert everyone.labels is not None
        sample = HeldOut({rank: array[rows] for rank, array in everyone.logits.items()}, FLOPS, everyone.labels[rows])
        best = calibrate(sample, goal, [(2, 16)])[0]
        truth = outcome(best.rule, everyone)
        broken += truth.spoilt / truth.examples > 0.02
        assert truth.loss_points <= 100 * truth.spoilt / truth.examples
    assert broken / trials <= 0.1
    assert broken > 0, "the bound is not so loose that it says nothing"


@given(seed=st.integers(0, 50), low=st.floats(0, 1), high=st.floats(0, 1))
@settings(max_examples=40)
def test_a_higher_threshold_passes_more_on_and_spoils_less(seed: int, low: float, high: float) -> None:
    held_out = population(200, seed)
    low, high = min(low, high), max(low, high)
    lower, higher = (outcome(DifficultyRule((t,), ranks=(2, 16)), held_out) for t in (low, high))
    assert lower.passed_on <= higher.passed_on
    assert lower.flops_fraction <= higher.flops_fraction
    assert lower.spoilt >= higher.spoilt
    assert higher.flops_fraction == pytest.approx(FLOPS[2] + higher.passed_on * FLOPS[16])


def test_without_labels_the_top_rung_is_right() -> None:
    held_out = population(800, seed=1, labelled=False)
    result = outcome(DifficultyRule((0.5,), ranks=(2, 16)), held_out)
    assert result.right_at_top == 1
    assert result.spoilt == round(800 * (1 - result.right))
    labelled = outcome(DifficultyRule((0.5,), ranks=(2, 16)), population(800, seed=1))
    assert labelled.spoilt <= result.spoilt, "an answer is spoilt only where it differs"
    assert labelled.loss_points <= 100 * result.spoilt / 800 + 1e-9


def test_the_cheapest_comes_first_and_all_share_the_confidence() -> None:
    held_out = population(3000, seed=2)
    goal = Goal(max_loss_points=1.0)
    courses = [(2, 16), (5, 16)]
    found = calibrate(held_out, goal, courses, MEASURES)
    costs = [item.on_held_out.flops_fraction for item in found]
    assert costs == sorted(costs)
    assert len(found) == 6
    (alone,) = calibrate(held_out, goal, [found[0].rule.ranks], [found[0].rule.measure])
    assert alone.rule.thresholds[0] <= found[0].rule.thresholds[0], "one course alone need not share its confidence"
    document = found[0].to_json()
    assert document["ranks"] == list(found[0].rule.ranks)
    assert document["on_held_out"]["loss_points"] == found[0].on_held_out.loss_points


def test_a_low_rung_that_is_good_enough_keeps_everything() -> None:
    held_out = population(1000, seed=4)
    same = HeldOut({2: held_out.logits[16], 16: held_out.logits[16]}, {2: 0.2, 16: 1.0}, held_out.labels)
    (found,) = calibrate(same, Goal(), [(2, 16)])
    assert found.rule.thresholds == (0.0,)
    assert found.on_held_out.flops_fraction == pytest.approx(0.2)


def test_a_low_rung_that_is_certain_of_nonsense_is_left_out() -> None:
    labels = np.zeros(1000, np.int64)
    wrong, right = np.tile([0.0, 2000.0], (1000, 1)), np.tile([2000.0, 0.0], (1000, 1))
    assert calibrate(HeldOut({2: wrong, 16: right}, FLOPS, labels), Goal(), [(2, 16)]) == []


def test_too_few_examples_are_refused_with_how_many_it_takes() -> None:
    assert (Goal().allowed(598), Goal().allowed(3000), Goal().allowed(3000, 4)) == (0, 8, 6)
    with pytest.raises(NsnEdgeError, match=r"597 held-out examples cannot show .* 0.5 points .*give 598 or more"):
        calibrate(population(597, seed=0), Goal(), [(2, 16)])
    assert calibrate(population(598, seed=0), Goal(), [(2, 16)])
    with pytest.raises(NsnEdgeError, match=r"give 736 or more"):
        calibrate(population(598, seed=0), Goal(), [(2, 16), (5, 16)])


@pytest.mark.parametrize("loss", [0, -1, 100, float("nan")])
def test_losses_that_make_no_sense_are_refused(loss: float) -> None:
    with pytest.raises(UsageError, match="a loss is above 0"):
        Goal(loss)


@pytest.mark.parametrize("confidence", [0.4, 1.0, float("nan")])
def test_confidences_that_make_no_sense_are_refused(confidence: float) -> None:
    with pytest.raises(UsageError, match="a confidence is at least"):
        Goal(0.5, confidence)


def test_examples_that_do_not_fit_are_refused() -> None:
    logits = np.zeros((3, 2))
    with pytest.raises(UsageError, match="two ranks or more"):
        HeldOut({2: logits}, FLOPS)
    with pytest.raises(UsageError, match="two ranks or more"):
        HeldOut({2: logits, 16: np.zeros((4, 2))}, FLOPS)
    with pytest.raises(UsageError, match="have as many labels"):
        HeldOut({2: logits, 16: logits}, FLOPS, np.zeros(2, np.int64))
    with pytest.raises(UsageError, match="the FLOPs of rank 7 are not known"):
        HeldOut({2: logits, 7: logits}, FLOPS)
    held_out = population(700, seed=0)
    with pytest.raises(UsageError, match="does not end at the top rung, 16"):
        calibrate(held_out, Goal(), [(2, 5)])
    with pytest.raises(UsageError, match="nothing to calibrate"):
        calibrate(held_out, Goal(), [])
