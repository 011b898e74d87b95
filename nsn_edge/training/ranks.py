"""Which ranks a training step takes: drawn from the seed and the step alone.

    step 0    R          61      8        sandwich: the largest, one at random, the smallest
    step 1    R          233     8
    step 2    R          12      8

Nothing is remembered from one step to the next. So a run that was interrupted draws what it would have drawn, every
process of a distributed run draws the same without being told, and the micro-batches of a step share their ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nsn_edge.errors import RankError, UsageError
from nsn_edge.ladder import RankLadder, check_rank

POOLS = ("continuous", "aligned", "ladder")
PLANS = ("random", "anchor", "sandwich")

LOWEST_FRACTION = 0.1
"""Where no lowest rank is named: that of this share of the dense linear FLOPs."""

_ALIGNMENT = 8


def useful_ranks(ladder: RankLadder, lowest: int | None = None, highest: int | None = None) -> tuple[int, int]:
    """The span of ranks that is worth training.

    Args:
        ladder: of the model.
        lowest: None for the rank of `LOWEST_FRACTION` of the linear FLOPs, or 1 where even that costs more.
        highest: None for the first rank that costs as much as the dense model: past it every rank costs the same.

    Raises:
        RankError: a rank is outside `1..R`, or they are the wrong way round.
    """
    if lowest is None:
        try:
            lowest = ladder.rank_for_fraction(LOWEST_FRACTION)
        except RankError:  # layers so small that rank 1 costs more
            lowest = 1
    if highest is None:
        highest = max(ladder.rank_for_fraction(1.0), lowest)
        while highest > lowest and ladder.macs(highest - 1) == ladder.dense_macs:
            highest -= 1
    for rank in (lowest, highest):
        check_rank(rank, ladder.max_rank)
    if lowest > highest:
        raise RankError(f"the lowest rank to train, {lowest}, is above the highest, {highest}", "swap them")
    return lowest, highest


def rank_pool(
    kind: str, ladder: RankLadder, lowest: int | None = None, highest: int | None = None, rungs: Iterable[int] = ()
) -> tuple[int, ...]:
    """The ranks to draw from, rising.

    Args:
        kind: `continuous` (every rank of the span), `aligned` (its multiples of 8) or `ladder` (the rungs).
        ladder: of the model.
        lowest, highest: see `useful_ranks`.
        rungs: for `ladder`: which; none for the rungs of `ladder` itself.

    Raises:
        UsageError: unknown kind, or nothing to draw from.
        RankError: a rank is outside `1..R`.
    """
    if kind not in POOLS:
        raise UsageError(f"unknown kind of ranks {kind!r}", f"choose one of {', '.join(POOLS)}")
    if kind == "ladder":
        chosen = sorted(set(rungs) or set(ladder.ranks))
        for rank in chosen:
            check_rank(rank, ladder.max_rank)
        if not chosen:
            raise UsageError("there are no rungs to train", "name them, or draw from continuous ranks")
        return tuple(chosen)
    low, high = useful_ranks(ladder, lowest, highest)
    if kind == "continuous":
        return tuple(range(low, high + 1))
    pool = tuple(rank for rank in range(low, high + 1) if rank % _ALIGNMENT == 0)
    if not pool:
        raise UsageError(
            f"no multiple of {_ALIGNMENT} lies in the ranks {low}..{high}", "widen them, or draw from continuous ranks"
        )
    return pool


@dataclass(frozen=True)
class RankSampler:
    """Draws the ranks of each step, the largest first."""

    pool: tuple[int, ...]
    """What is drawn from, rising."""
    top: int
    """The anchor: the model's largest rank, for plans that hold it."""
    plan: str = "random"
    """`random` (`draws` from the pool), `anchor` (the largest rank besides), `sandwich` (the largest and the pool's
    smallest besides)."""
    draws: int = 2
    """How many ranks are drawn at random in each step."""
    widen_steps: int = 0
    """The curriculum: over this many steps the span that is drawn from widens downwards, from the upper end of the pool
    to all of it. 0 for none."""
    seed: int = 0
    """Of the draws."""
    lean: float = 0.0
    """How much more often small ranks are drawn: by `rank ** -lean`. 0 draws all alike, 1 every octave alike."""

    def __post_init__(self) -> None:
        if self.plan not in PLANS:
            raise UsageError(f"unknown plan {self.plan!r}", f"choose one of {', '.join(PLANS)}")
        if not self.pool or list(self.pool) != sorted(set(self.pool)):
            raise UsageError(f"the ranks to draw from must rise, and be one or more: {self.pool}")
        check_rank(self.pool[0], self.top)
        check_rank(self.pool[-1], self.top)
        if self.draws < 1:
            raise UsageError(f"a step draws 1 rank or more, not {self.draws}")
        if self.widen_steps < 0 or self.seed < 0 or not 0 <= self.lean < np.inf:
            raise UsageError("the steps of the curriculum, the seed and the lean to small ranks are 0 or more")

    @property
    def count(self) -> int:
        """How many ranks a step takes."""
        return self.draws + {"random": 0, "anchor": 1, "sandwich": 2}[self.plan]

    def ranks_at(self, step: int) -> tuple[int, ...]:
        """The ranks of a step (counted from 0): the anchor if any, the random ones falling, the smallest if any."""
        pool = self.open_at(step)
        generator = np.random.default_rng([self.seed, step])
        odds = (np.asarray(pool) / pool[0]) ** -self.lean
        chosen = generator.choice(pool, size=self.draws, p=odds / odds.sum())
        drawn = sorted((int(rank) for rank in chosen), reverse=True)
        anchor = () if self.plan == "random" else (self.top,)
        smallest = (pool[0],) if self.plan == "sandwich" else ()
        return (*anchor, *drawn, *smallest)

    def open_at(self, step: int) -> tuple[int, ...]:
        """The part of the pool that the curriculum has opened at a step; at least its largest rank."""
        if step >= self.widen_steps:
            return self.pool
        opened = max(1, round(len(self.pool) * (step + 1) / self.widen_steps))
        return self.pool[-opened:]

    def trained(self, steps: int) -> tuple[int, ...]:
        """Every rank that the first `steps` steps take, rising."""
        return tuple(sorted({rank for step in range(steps) for rank in self.ranks_at(step)}))
