"""Which layer gets how much of the budget: rank curves from what each layer's directions are worth.

    damage_l(r)        what the model's output loses when layer l alone is cut to rank r        (falling in r)
    cost_l(r)          r (d_in + d_out), and d_in d_out from the break-even rank on             (MACs per token)

    for every knot k of the curves, lowest first:
        budget(k)      = what uniform ranks cost at k, so that a rank means the same work with either allocation
        floor          : no layer below half of its uniform rank at k
        then, again and again, the step that saves most damage per MAC, until the budget is spent

Steps are only ever taken and never given back, so every layer's rank rises with the model's and the ranks stay nested.
Past its break-even rank a layer costs what the dense one costs, whatever its rank, so the step that reaches it goes all
the way to full rank. This is the greedy solution of the multiple-choice knapsack over convex hulls (Sinha & Zoltners
1979), which is optimal wherever the budget is used up.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nsn_edge.errors import UsageError
from nsn_edge.ladder import NestedLayer, RankCurve, RankLadder, uniform_ladder

FLOOR = 0.5
"""No layer gets less than this share of its uniform rank: damages are measured one layer at a time, and a layer that
looks useless while the others are whole is not while they are cut too."""

MOST_KNOTS = 64
"""Of a curve. Between two knots it is a line, and manifests stay small."""


@dataclass(frozen=True)
class LayerDamage:
    """A layer and what it costs the model's output to cut it."""

    name: str
    """The module's qualified name."""
    d_in: int
    """Input features."""
    d_out: int
    """Output features."""
    damage: npt.NDArray[np.float64]
    """float64 `[full_rank]`: entry `r - 1` is the damage at rank `r`, in any unit that all layers share; never rising,
    finite, 0 or more."""

    def __post_init__(self) -> None:
        damage = self.damage
        if damage.ndim != 1 or not 1 <= damage.size <= min(self.d_in, self.d_out):
            raise UsageError(f"layer {self.name!r} has damages of shape {damage.shape} for {self.d_in} -> {self.d_out}")
        if not np.isfinite(damage).all() or damage.min() < 0 or (np.diff(damage) > 0).any():
            raise UsageError(f"the damages of layer {self.name!r} must be finite, 0 or more, and never rise with rank")


def allocated_ladder(layers: Sequence[LayerDamage], align: int = 8) -> RankLadder:
    """Rank curves that spend the uniform curves' budget where it saves most.

    Args:
        layers: in the order of the model.
        align: layer ranks are multiples of this (see `RankCurve`).

    Returns:
        A ladder without rungs. At every rank it costs at most what `uniform_ladder` costs without alignment, unless
        the floors alone cost more; at full rank every layer is whole.

    Raises:
        UsageError: no layers, or an alignment below 1.
    """
    uniform = uniform_ladder([(layer.name, layer.d_in, layer.d_out, layer.damage.size) for layer in layers], 1)
    choices = [_Choices(layer, nested, align) for layer, nested in zip(layers, uniform.layers, strict=True)]
    top = uniform.max_rank
    at = [0] * len(layers)
    knots: list[list[tuple[int, int]]] = [[(1, choice.ranks[0])] for choice in choices]
    for rank in _knot_ranks(top, align)[1:]:
        if rank == top:
            at = [len(choice.ranks) - 1 for choice in choices]
        else:
            floors = [FLOOR * nested.curve(rank) for nested in uniform.layers]
            at = [max(now, choice.reaching(floor)) for now, choice, floor in zip(at, choices, floors, strict=True)]
            _spend(choices, at, uniform.macs(rank))
        for points, choice, now in zip(knots, choices, at, strict=True):
            points.append((rank, choice.ranks[now]))
    return RankLadder(
        tuple(
            NestedLayer(layer.name, layer.d_in, layer.d_out, RankCurve(_without_idle_knots(points), align))
            for layer, points in zip(layers, knots, strict=True)
        )
    )


class _Choices:
    """The ranks a layer may take, what each costs and damages, and the best step on from each."""

    def __init__(self, layer: LayerDamage, nested: NestedLayer, align: int) -> None:
        full = layer.damage.size
        below = range(align, min(nested.break_even_rank, full), align)
        self.ranks: tuple[int, ...] = tuple(sorted({1, *below, full}))
        self.macs = np.array([nested.macs(rank) for rank in self.ranks], dtype=np.float64)
        self._damage = layer.damage[np.array(self.ranks) - 1]

    def reaching(self, rank: float) -> int:
        """The first choice of `rank` or more."""
        return next(at for at, choice in enumerate(self.ranks) if choice >= rank)

    def best_step(self, at: int) -> tuple[float, int]:
        """Damage saved per MAC by the best step on from a choice, and where it leads; there is one."""
        saved = (self._damage[at] - self._damage[at + 1 :]) / np.maximum(self.macs[at + 1 :] - self.macs[at], 1e-9)
        best = int(np.argmax(saved))
        return float(saved[best]), at + 1 + best


def _spend(choices: Sequence[_Choices], at: list[int], budget: int) -> None:
    """Take steps, best first, until the next does not fit; of that one as much as fits. Another layer's cheaper step,
    taken now, would be in the way of the better one for ever, but part of the way is not lost."""
    left = budget - sum(choice.macs[now] for choice, now in zip(choices, at, strict=True))
    steps: list[tuple[float, int, int]] = []

    def offer(index: int) -> None:
        if at[index] + 1 < len(choices[index].ranks):
            saved, to = choices[index].best_step(at[index])
            heapq.heappush(steps, (-saved, index, to))

    for index in range(len(choices)):
        offer(index)
    while steps:
        _, index, to = heapq.heappop(steps)
        macs, now = choices[index].macs, at[index]
        if macs[to] - macs[now] > left:
            at[index] = max(now, int(np.searchsorted(macs, macs[now] + left, side="right")) - 1)
            return
        left -= macs[to] - macs[now]
        at[index] = to
        offer(index)


def _knot_ranks(top: int, align: int) -> list[int]:
    """1, at most `MOST_KNOTS` evenly spread multiples of the alignment, and `top`. Multiples, because there the uniform
    ladder's ranks are whole too, and a rung at one of them spends its whole budget with either allocation."""
    step = align * -(-top // (align * MOST_KNOTS))
    return sorted({1, *range(step, top, step), top})


def _without_idle_knots(points: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Without the knots that lie on the line between their neighbours."""
    kept = [points[0]]
    for (k1, r1), (k2, r2) in itertools.pairwise(points[1:]):
        k0, r0 = kept[-1]
        if (r1 - r0) * (k2 - k1) != (r2 - r1) * (k1 - k0):
            kept.append((k1, r1))
    return (*kept, *points[1:][-1:])
