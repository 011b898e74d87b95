"""What a rule does on examples whose answers at every rung are known: no model runs.

logits of every rung + labels --rule--> who answers what: right, spoilt, passed on, FLOPs

An answer is **spoilt** where a lower rung has the last word and is wrong while the top rung is right; without labels,
where it differs from the top rung's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.difficulty.certainty import certainty
from nsn_edge.runtimes.difficulty.rule import DifficultyRule


@dataclass(frozen=True)
class HeldOut:
    """Examples with what every rung says of them; the highest rung is what a loss is measured against."""

    logits: Mapping[int, npt.NDArray[np.floating[Any]]]
    """By rank: `[n, classes]`, two ranks or more."""
    flops: Mapping[int, float]
    """By rank: linear FLOPs of an answer, the dense model's being 1."""
    labels: npt.NDArray[np.int64] | None = None
    """`[n]`: the right classes; None where they are not known."""

    def __post_init__(self) -> None:
        shapes = {array.shape for array in self.logits.values()}
        if len(self.logits) < 2 or len(shapes) != 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
            raise UsageError(f"held-out logits are [n, classes] for two ranks or more, alike, not {sorted(shapes)}")
        if self.labels is not None and self.labels.shape != (self.count,):
            raise UsageError(f"{self.count} examples have as many labels, not {self.labels.shape}")
        if missing := sorted(set(self.logits) - set(self.flops)):
            raise UsageError(f"the FLOPs of rank {missing[0]} are not known")

    @property
    def count(self) -> int:
        """Of the examples."""
        return len(next(iter(self.logits.values())))

    @property
    def top_rank(self) -> int:
        """What a loss is measured against."""
        return max(self.logits)

    def right(self, rank: int) -> npt.NDArray[np.bool_]:
        """bool `[n]`: whether a rank's answer is right; without labels, whether it is the top rung's."""
        wanted = self.logits[self.top_rank].argmax(axis=1) if self.labels is None else self.labels
        found: npt.NDArray[np.bool_] = self.logits[rank].argmax(axis=1) == wanted
        return found

    def spoilt(self, rank: int) -> npt.NDArray[np.bool_]:
        """bool `[n]`: where a rank's answer is wrong and the top rung's right."""
        return self.right(self.top_rank) & ~self.right(rank)


@dataclass(frozen=True)
class Outcome:
    """What a rule does on some examples."""

    examples: int
    """How many."""
    passed_on: float
    """The share that was asked at more than one rung."""
    flops_fraction: float
    """Mean linear FLOPs of an answer, all its runs, against the dense model's."""
    right: float
    """The share of right answers; without labels, of answers that are the top rung's."""
    right_at_top: float
    """The same where everything is asked at the top rung."""
    spoilt: int
    """Answers that the top rung has right and the rule wrong."""

    @property
    def loss_points(self) -> float:
        """Right answers lost against the top rung, in points of a hundred; below 0 where some are gained."""
        return 100 * (self.right_at_top - self.right)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "examples": self.examples,
            "passed_on": self.passed_on,
            "flops_fraction": self.flops_fraction,
            "right": self.right,
            "right_at_top": self.right_at_top,
            "loss_points": self.loss_points,
            "spoilt": self.spoilt,
        }


def costs(rule: DifficultyRule, held_out: HeldOut) -> npt.NDArray[np.float64]:
    """float64 `[n]`: linear FLOPs of every answer, all its runs, the dense model's being 1."""
    spent = np.zeros(held_out.count)
    for rank, asked in _runs(rule, held_out):
        spent[asked] += held_out.flops[rank]
    return spent


def outcome(rule: DifficultyRule, held_out: HeldOut) -> Outcome:
    """What a rule that names its ranks does on examples, from their logits alone."""
    right = np.zeros(held_out.count, np.bool_)
    spoilt = np.zeros(held_out.count, np.bool_)
    shares = []
    for rank, asked in _runs(rule, held_out):
        right[asked] = held_out.right(rank)[asked]
        spoilt[asked] = held_out.spoilt(rank)[asked]
        shares.append(float(asked.mean()))
    return Outcome(
        examples=held_out.count,
        passed_on=shares[1],
        flops_fraction=float(costs(rule, held_out).mean()),
        right=float(right.mean()),
        right_at_top=float(held_out.right(held_out.top_rank).mean()),
        spoilt=int(spoilt.sum()),
    )


def _runs(rule: DifficultyRule, held_out: HeldOut) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Every rung of a rule, and which examples it is asked about."""
    asked = np.ones(held_out.count, np.bool_)
    for at, rank in enumerate(rule.ranks):
        yield rank, asked
        if at < len(rule.thresholds):
            asked = asked & (certainty(held_out.logits[rank], rule.measure) < rule.thresholds[at])


def curve(held_out: HeldOut, ranks: tuple[int, ...], measure: str, points: int = 41) -> list[tuple[float, Outcome]]:
    """A course at several thresholds, the lowest first: from the first rung alone to everything asked again."""
    sure = certainty(held_out.logits[ranks[0]], measure)
    found = np.unique(np.concatenate([[0.0], np.quantile(sure, np.linspace(0, 1, points)), [1.0]]))
    steps = len(ranks) - 1
    return [(float(t), outcome(DifficultyRule((float(t),) * steps, ranks, measure=measure), held_out)) for t in found]
