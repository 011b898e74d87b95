"""Ranks, rungs and the ladder: which prefix of which layer, and what it costs.

    rank 1 ......... 96 ....... 128 ............ 192 ................ R      one number for the whole model
                      |          |                |                  |
    layer 1          r=96       r=128            r=192              R_1      a monotone curve per layer,
    layer 2          r=24       r=32             r=48               R_2      r_l(rank)
                      |          |                |                  |
    rungs            25 %       35 %             50 %              dense     the ranks worth deploying

A factored layer costs `r (d_in + d_out)` multiply-accumulates per token against `d_in d_out` for the dense one.
At and past the **break-even rank** `d_in d_out / (d_in + d_out)` the product `B_r A_r` is cheaper and the layer
runs *merged*: a rung never costs more than the dense model.

Costs here are multiply-accumulates (MACs) of the nested linear layers, for one token; "FLOPs fraction" always means
the fraction of those against the dense model's.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from nsn_edge.errors import NsnEdgeError, RankError, UsageError

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class RankCurve:
    """A layer's rank as a monotone function of the model's rank.

    Piecewise linear through `knots`, rounded down to a multiple of `align` where the value is at least `align`
    (hardware likes multiples of 8), never below 1, exact at the last knot.
    """

    knots: tuple[tuple[int, int], ...]
    """`(rank, layer rank)` pairs, strictly rising in the first, never falling in the second."""
    align: int = 1
    """Layer ranks of at least this are multiples of it, except the layer's full rank."""

    def __post_init__(self) -> None:
        ranks = [k for k, _ in self.knots]
        layer_ranks = [r for _, r in self.knots]
        if not self.knots or ranks[0] != 1 or layer_ranks[0] < 1:
            raise UsageError(f"a rank curve starts at rank 1 with a layer rank of 1 or more, not {self.knots[:1]}")
        if any(b <= a for a, b in itertools.pairwise(ranks)):
            raise UsageError(f"the ranks of a curve's knots must rise: {ranks}")
        if any(b < a for a, b in itertools.pairwise(layer_ranks)):
            raise UsageError(f"a rank curve must never fall: {layer_ranks}")
        if self.align < 1:
            raise UsageError(f"a rank curve's alignment is 1 or more, not {self.align}")

    @property
    def max_rank(self) -> int:
        """The model rank at which the curve ends."""
        return self.knots[-1][0]

    @property
    def full_rank(self) -> int:
        """The layer's rank at the end of the curve."""
        return self.knots[-1][1]

    def __call__(self, rank: int) -> int:
        """The layer's rank at the model's `rank`.

        Raises:
            RankError: `rank` is outside `1..max_rank`.
        """
        check_rank(rank, self.max_rank)
        at = bisect.bisect_right(self.knots, (rank, self.full_rank + 1)) - 1
        k0, r0 = self.knots[at]
        if rank == k0 and at == len(self.knots) - 1:
            return r0
        k1, r1 = self.knots[at + 1]
        value = r0 + (r1 - r0) * (rank - k0) // (k1 - k0)
        if value >= self.full_rank:
            return self.full_rank
        return value - value % self.align if value >= self.align else value

    def table(self) -> np.ndarray:
        """int64 `[max_rank]`: entry `i` is the layer's rank at model rank `i + 1` (for graphs with a rank input)."""
        return np.array([self(rank) for rank in range(1, self.max_rank + 1)], dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"knots": [list(knot) for knot in self.knots], "align": self.align}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RankCurve:
        """The reverse of `to_json`."""
        knots = tuple((_exactly(int, k), _exactly(int, r)) for k, r in data["knots"])
        return cls(knots=knots, align=_exactly(int, data["align"]))


@dataclass(frozen=True)
class NestedLayer:
    """One linear layer kept as two factors: its sizes and its rank curve."""

    name: str
    """The module's qualified name in the torch model."""
    d_in: int
    """Input features."""
    d_out: int
    """Output features."""
    curve: RankCurve
    """The layer's rank at each rank of the model."""

    def __post_init__(self) -> None:
        if self.d_in < 1 or self.d_out < 1:
            raise UsageError(f"layer {self.name!r} has sizes {self.d_in} -> {self.d_out}; both must be positive")
        if self.curve.full_rank > min(self.d_in, self.d_out):
            raise UsageError(
                f"layer {self.name!r} ({self.d_in} -> {self.d_out}) has rank at most "
                f"{min(self.d_in, self.d_out)}, not {self.curve.full_rank}"
            )

    @property
    def dense_macs(self) -> int:
        """MACs of the dense layer for one token; also the number of its weights."""
        return self.d_in * self.d_out

    @property
    def break_even_rank(self) -> int:
        """The smallest rank at which the two factors cost as much as the dense layer, or more."""
        return -(-self.dense_macs // (self.d_in + self.d_out))

    def is_merged(self, layer_rank: int) -> bool:
        """Whether the product `B_r A_r` is the cheaper form at this rank."""
        return layer_rank >= self.break_even_rank

    def macs(self, layer_rank: int) -> int:
        """MACs for one token at a rank of this layer."""
        return self.dense_macs if self.is_merged(layer_rank) else layer_rank * (self.d_in + self.d_out)


@dataclass(frozen=True)
class Rung:
    """A rank worth deploying, with what it costs and how good it was measured to be."""

    rank: int
    """The model's rank, `1..R`."""
    dense: bool = False
    """The original dense weights instead of factors: the top rung, "full power" at the original's quality."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """Measured quality by metric name, for example `{"spearman": 0.97}`; empty until measured."""


@dataclass(frozen=True)
class RankLadder:
    """Every nested layer with its curve, and the rungs, lowest first."""

    layers: tuple[NestedLayer, ...]
    """In the order of the model."""
    rungs: tuple[Rung, ...] = ()
    """Rising in rank; at most the last is dense."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise UsageError("a rank ladder needs at least one nested layer", "adapt a model with linear layers first")
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            raise UsageError("two nested layers have the same name")
        if len({layer.curve.max_rank for layer in self.layers}) != 1:
            raise UsageError("all layers of a ladder must share one range of ranks")
        for rung in self.rungs:
            check_rank(rung.rank, self.max_rank)
            if rung.dense and rung.rank != self.max_rank:
                raise RankError(f"the dense rung is the top rung, rank {self.max_rank}, not {rung.rank}")
        if any(b.rank <= a.rank for a, b in itertools.pairwise(self.rungs)):
            raise RankError(f"rungs must rise in rank: {[rung.rank for rung in self.rungs]}")

    @property
    def max_rank(self) -> int:
        """R: the largest rank of the model."""
        return self.layers[0].curve.max_rank

    @cached_property
    def dense_macs(self) -> int:
        """MACs for one token of all nested layers when dense."""
        return sum(layer.dense_macs for layer in self.layers)

    @cached_property
    def _rung_fractions(self) -> tuple[float, ...]:
        """Of the rungs: a policy asks with every decision, and adding up every layer takes longer than deciding."""
        return tuple(self.flops_fraction(rung.rank) for rung in self.rungs)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the rungs, lowest first."""
        return tuple(rung.rank for rung in self.rungs)

    def layer_ranks(self, rank: int) -> dict[str, int]:
        """Each layer's rank at the model's `rank`.

        Raises:
            RankError: `rank` is outside `1..R`.
        """
        check_rank(rank, self.max_rank)
        return {layer.name: layer.curve(rank) for layer in self.layers}

    def macs(self, rank: int) -> int:
        """MACs for one token of all nested layers at the model's `rank`.

        Raises:
            RankError: `rank` is outside `1..R`.
        """
        check_rank(rank, self.max_rank)
        return sum(layer.macs(layer.curve(rank)) for layer in self.layers)

    def flops_fraction(self, rank: int) -> float:
        """MACs of the nested layers at `rank` against the dense model's, in `(0, 1]`.

        Raises:
            RankError: `rank` is outside `1..R`.
        """
        return self.macs(rank) / self.dense_macs

    def rank_for_fraction(self, fraction: float) -> int:
        """The best rank whose FLOPs fraction does not exceed `fraction`.

        Where alignment makes neighbouring ranks the same model, the first of them.

        Raises:
            RankError: `fraction` is not in `(0, 1]`, or even rank 1 costs more.
        """
        if not 0.0 < fraction <= 1.0:
            raise RankError(f"a FLOPs fraction lies in (0, 1], not {fraction}")
        limit = int(fraction * self.dense_macs * (1 + 1e-9))
        # MACs never fall with the rank, so the ranks within the limit are a prefix: bisect for its end.
        ranks = range(1, self.max_rank + 1)
        fitting = bisect.bisect_right(ranks, limit, key=self.macs)
        if fitting == 0:
            raise RankError(
                f"{fraction:.2%} of the dense FLOPs is below rank 1, which takes {self.flops_fraction(1):.2%}",
                "ask for a larger fraction",
            )
        best = list(self.layer_ranks(fitting).values())
        return ranks[bisect.bisect_left(ranks, best, key=lambda rank: list(self.layer_ranks(rank).values()))]

    def with_rungs(self, ranks: Iterable[int], dense_top: bool) -> RankLadder:
        """This ladder with rungs at `ranks` (any order, repeats dropped) and, if asked, the dense one on top.

        Raises:
            RankError: a rank is outside `1..R`.
        """
        factored = sorted(set(ranks) - ({self.max_rank} if dense_top else set()))
        rungs = [Rung(rank) for rank in factored]
        if dense_top:
            rungs.append(Rung(self.max_rank, dense=True))
        return replace(self, rungs=tuple(rungs))

    def with_quality(self, quality: Mapping[int, Mapping[str, float]]) -> RankLadder:
        """This ladder with measured quality merged into the rungs of the given ranks.

        Raises:
            RankError: a rank has no rung.
        """
        for rank in quality:
            self.rung(rank)
        rungs = tuple(replace(rung, quality={**rung.quality, **quality.get(rung.rank, {})}) for rung in self.rungs)
        return replace(self, rungs=rungs)

    def rung(self, rank: int) -> Rung:
        """The rung at `rank`.

        Raises:
            RankError: `rank` is outside `1..R`, or there is no rung there.
        """
        check_rank(rank, self.max_rank)
        for rung in self.rungs:
            if rung.rank == rank:
                return rung
        raise RankError(f"no rung at rank {rank}", f"the rungs are {', '.join(map(str, self.ranks)) or 'none'}")

    def rung_within(self, fraction: float) -> Rung:
        """The best rung whose FLOPs fraction does not exceed `fraction`; the lowest when none does.

        Raises:
            RankError: the ladder has no rungs.
        """
        if not self.rungs:
            raise RankError("the ladder has no rungs", "export a bundle with rungs first")
        limit = fraction * (1 + 1e-9)
        within = [rung for rung, part in zip(self.rungs, self._rung_fractions, strict=True) if part <= limit]
        return within[-1] if within else self.rungs[0]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types. What is derived (`flops_fraction`, `layer_ranks`) is written for people and other
        programs, and recomputed on reading."""
        return {
            "max_rank": self.max_rank,
            "dense_macs": self.dense_macs,
            "layers": [
                {"name": layer.name, "d_in": layer.d_in, "d_out": layer.d_out, "curve": layer.curve.to_json()}
                for layer in self.layers
            ],
            "rungs": [
                {
                    "rank": rung.rank,
                    "dense": rung.dense,
                    "macs": self.macs(rung.rank),
                    "flops_fraction": self.flops_fraction(rung.rank),
                    "layer_ranks": self.layer_ranks(rung.rank),
                    "quality": dict(rung.quality),
                }
                for rung in self.rungs
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RankLadder:
        """The reverse of `to_json`, checked.

        Raises:
            NsnEdgeError: a key is missing or a value has the wrong type.
            UsageError: the values contradict each other.
        """
        try:
            layers = tuple(
                NestedLayer(
                    name=_exactly(str, item["name"]),
                    d_in=_exactly(int, item["d_in"]),
                    d_out=_exactly(int, item["d_out"]),
                    curve=RankCurve.from_json(item["curve"]),
                )
                for item in data["layers"]
            )
            rungs = tuple(
                Rung(
                    rank=_exactly(int, item["rank"]),
                    dense=_exactly(bool, item["dense"]),
                    quality={name: _finite(value) for name, value in item["quality"].items()},
                )
                for item in data["rungs"]
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise NsnEdgeError(f"the ladder is not readable: {error!r}") from error
        return cls(layers=layers, rungs=rungs)


def _exactly(kind: type[_Value], value: Any) -> _Value:
    """A value of an exact JSON type: `bool("false")` is True and `int(1.9)` is 1, so nothing is converted."""
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)


def check_rank(rank: int, max_rank: int) -> None:
    """Refuse a rank outside `1..max_rank`.

    Raises:
        RankError: it is outside, or not a whole number.
    """
    if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
        raise RankError(f"a rank is a whole number, not {rank!r}")
    if not 1 <= rank <= max_rank:
        raise RankError(f"rank {rank} is outside 1..{max_rank}", f"choose a rank from 1 to {max_rank}")


def uniform_ladder(sizes: Sequence[tuple[str, int, int, int]], align: int = 8) -> RankLadder:
    """The plain allocation: every layer at the same share of its own full rank.

    Args:
        sizes: `(name, d_in, d_out, full_rank)` per layer.
        align: layer ranks become multiples of this (see `RankCurve`).

    Raises:
        UsageError: no layers.
    """
    top = max((full for *_, full in sizes), default=1)
    return RankLadder(
        tuple(NestedLayer(name, d_in, d_out, RankCurve(_line(top, full), align)) for name, d_in, d_out, full in sizes)
    )


def _line(top: int, full: int) -> tuple[tuple[int, int], ...]:
    return ((1, 1), (top, full)) if top > 1 else ((1, full),)
