"""The threshold of a rule, from held-out examples and a stated loss.

    held-out examples --every rung--> logits --> which answers a lower rung would spoil, and how certain it was of them
                                                     |
    threshold: the lowest at which the spoilt answers, with confidence, are no more than the stated loss

Answers that a lower rung gets right and the top rung wrong are not set against those that it spoils (`outcomes.py`),
so the loss of accuracy is never more than the share of spoilt answers, with or without labels.

From the highest threshold down, a threshold is accepted while the exact binomial upper bound of the spoilt share is
within the loss, and the search ends at the first that is not: fixed-sequence testing (Angelopoulos et al., Learn then
Test, arXiv 2110.01052), so that trying many thresholds costs no confidence. Where several courses are tried (where to
begin, by which measure), each is held to its part of what the confidence leaves, and the cheapest is taken.

The bound holds for questions drawn like the held-out ones, and it needs enough of them: with not a single spoilt answer
among 597, more than 0.5 % may still be, at 95 % confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.runtimes.difficulty.certainty import certainty
from nsn_edge.runtimes.difficulty.outcomes import HeldOut, Outcome, outcome
from nsn_edge.runtimes.difficulty.rule import DifficultyRule


@dataclass(frozen=True)
class Goal:
    """What a rule has to keep."""

    max_loss_points: float = 0.5
    """At most this many answers of a hundred may be spoilt; above 0, below 100."""
    confidence: float = 0.95
    """That this holds beyond the held-out examples; from 0.5 to below 1."""

    def __post_init__(self) -> None:
        if not 0 < self.max_loss_points < 100:
            raise UsageError(f"a loss is above 0 and below 100 points, not {self.max_loss_points:g}", "0.5 is usual")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"a confidence is at least 0.5 and below 1, not {self.confidence:g}", "0.95 is usual")

    def allowed(self, examples: int, courses: int = 1) -> int:
        """How many answers may be spoilt among so many examples, where so many courses are tried.

        Raises:
            NsnEdgeError: with so few examples not even 0 would show the loss.
        """
        share, risk = self.max_loss_points / 100, (1 - self.confidence) / courses
        most = most_events(examples, share, risk)
        if most is None:
            needed = math.ceil(math.log(risk) / math.log1p(-share))
            raise NsnEdgeError(
                f"{examples} held-out examples cannot show a loss of at most {self.max_loss_points:g} points at "
                f"{self.confidence:.0%} confidence",
                f"give {needed} or more, allow a larger loss, or ask for less confidence",
            )
        return most


@dataclass(frozen=True)
class Calibrated:
    """A course of rungs with the threshold found for it."""

    rule: DifficultyRule
    """That keeps the goal."""
    on_held_out: Outcome
    """What it does on the examples that it was found on."""
    loss_bound_points: float
    """Upper bound, at the goal's confidence, on answers of a hundred that are spoilt."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            **self.rule.to_json(),
            "on_held_out": self.on_held_out.to_json(),
            "loss_bound_points": self.loss_bound_points,
        }


def calibrate(
    held_out: HeldOut,
    goal: Goal,
    courses: Sequence[tuple[int, ...]],
    measures: Sequence[str] = ("margin",),
) -> list[Calibrated]:
    """Find the threshold of every course by every measure.

    Args:
        held_out: examples that neither the model was trained on nor the result will be judged on.
        goal: what to keep. All of the result keep it together, so any of them may be chosen.
        courses: ranks to ask, lowest first; the last is the top rung of `held_out`. One threshold serves every step.
        measures: of certainty.

    Returns:
        What keeps the goal, the cheapest first; courses that cannot are left out.

    Raises:
        UsageError: a course that does not end at the top rung, or nothing to try.
        NsnEdgeError: too few examples to show the loss, whatever the answers.
    """
    if not courses or not measures:
        raise UsageError("nothing to calibrate: name a course of rungs and a measure")
    if strays := [course for course in courses if course[-1] != held_out.top_rank]:
        raise UsageError(f"the course {strays[0]} does not end at the top rung, {held_out.top_rank}")
    tried = len(courses) * len(measures)
    allowed = goal.allowed(held_out.count, tried)
    found = []
    for measure in measures:
        for course in courses:
            threshold = _lowest_threshold(held_out, course, measure, allowed)
            if threshold is None:
                continue
            rule = DifficultyRule((threshold,) * (len(course) - 1), ranks=course, measure=measure)
            result = outcome(rule, held_out)
            bound = 100 * upper_bound(result.spoilt, held_out.count, (1 - goal.confidence) / tried)
            found.append(Calibrated(rule, result, bound))
    return sorted(found, key=lambda item: item.on_held_out.flops_fraction)


def _lowest_threshold(held_out: HeldOut, course: tuple[int, ...], measure: str, allowed: int) -> float | None:
    """From 1 down, as long as no more answers are spoilt than allowed; None where 1 itself spoils more.

    Lowered, a threshold spoils more answers only where it passes the certainty of one that its rung would spoil, so the
    others need no look.
    """
    sure = [certainty(held_out.logits[rank], measure) for rank in course[:-1]]
    spoilt = [held_out.spoilt(rank) for rank in course[:-1]]
    accepted: float | None = None
    for value in np.unique(np.concatenate([[1.0], *(c[s] for c, s in zip(sure, spoilt, strict=True))]))[::-1]:
        if _spoilt_at(value, sure, spoilt) > allowed:
            return accepted if accepted is None else float(np.nextafter(value, 1.0))
        accepted = float(value)
    return 0.0


def _spoilt_at(
    threshold: float, sure: Sequence[npt.NDArray[np.float64]], spoilt: Sequence[npt.NDArray[np.bool_]]
) -> int:
    """How many answers a common threshold spoils."""
    count, open_rows = 0, np.ones(len(sure[0]), np.bool_)
    for certain, wrong in zip(sure, spoilt, strict=True):
        stays = open_rows & (certain >= threshold)
        count += int((stays & wrong).sum())
        open_rows &= ~stays
    return count


def most_events(count: int, share: float, risk: float) -> int | None:
    """The most events among `count` that still show a share of at most `share`: the largest `k` with
    `P(at most k events) <= risk` where every one happens with probability `share`; None where not even 0 does."""
    log_odds = math.log(share) - math.log1p(-share)
    log_chance = count * math.log1p(-share)  # of 0 events
    below, most = 0.0, None
    for k in range(count + 1):
        below += math.exp(log_chance)
        if below > risk:
            break
        most = k
        log_chance += log_odds + math.log(count - k) - math.log(k + 1) if k < count else 0.0
    return most


def upper_bound(events: int, count: int, risk: float) -> float:
    """The exact upper confidence bound of a share (Clopper and Pearson): the probability at which `events` or fewer
    among `count` have the chance `risk`."""
    if events >= count:
        return 1.0
    k = np.arange(events + 1)
    ways = np.array([math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in k])
    low, high = events / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        chance = np.exp(ways + k * math.log(middle) + (count - k) * math.log1p(-middle)).sum() if middle < 1 else 0.0
        low, high = (middle, high) if chance > risk else (low, middle)
    return high
