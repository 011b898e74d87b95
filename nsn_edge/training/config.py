"""How a run trains: every setting, valid by construction, and the two recipes that set several at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nsn_edge.errors import UsageError
from nsn_edge.ladder import RankLadder
from nsn_edge.training.objectives import WEIGHTINGS
from nsn_edge.training.ranks import PLANS, POOLS, RankSampler, rank_pool

OBJECTIVES = ("labels", "distill", "mixed")
PRECISIONS = ("fp32", "bf16", "fp16")
ALLOCATIONS = ("keep", "sensitivity")
TRAINED = ("factors", "all")
"""What is trained: the factors alone, so that everything else still fits the dense original, or every parameter."""

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {
        "objective": "labels",
        "weights": "uncertainty",
        "plan": "anchor",
        "draws": 1,
        "widen": 0.5,
        "allocate": "keep",
        "trained": "all",
    },
}
"""`paper` is the objective of arXiv 2509.17874: an anchor at full rank and a sampled variant, weighed by learned
uncertainty, from ranks that widen downwards. (Its factors are plain SVD: `nsn-edge adapt --method svd`.)"""

_CHOICES = {
    "objective": OBJECTIVES,
    "weights": WEIGHTINGS,
    "plan": PLANS,
    "ranks": POOLS,
    "precision": PRECISIONS,
    "allocate": ALLOCATIONS,
    "trained": TRAINED,
}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run."""

    objective: str = "mixed"
    """The loss of a rank: `labels`, `distill` (from the dense model) or `mixed`."""
    distill_weight: float = 0.5
    """The share of distillation in `mixed`, in `(0, 1)`."""
    temperature: float = 2.0
    """Of distilled logits."""
    hidden_weight: float = 1.0
    """With distillation, the weight of the hidden states of every block beside the logits; 0 for none. (Feature
    extraction is distilled by its hidden states anyway.)"""
    weights: str = "equal"
    """How the ranks of a step are weighed: `equal` or `uncertainty`."""
    plan: str = "random"
    """Which ranks a step takes: `random`, `anchor` (the largest besides) or `sandwich` (the smallest as well)."""
    ranks: str = "continuous"
    """What is drawn from: `continuous`, `aligned` or `ladder`."""
    rungs: tuple[int, ...] = ()
    """For `ladder`: its ranks."""
    lowest: int | None = None
    """The smallest rank to train; None for that of a tenth of the linear FLOPs."""
    highest: int | None = None
    """The largest rank to draw; None for the first that costs as much as the dense model."""
    draws: int = 2
    """How many ranks a step draws."""
    lean: float = 0.0
    """How much more often small ranks are drawn: by `rank ** -lean`. 0 draws all alike, 1 every octave alike."""
    widen: float = 0.0
    """The curriculum: over this share of the steps the span of ranks widens downwards."""
    allocate: str = "sensitivity"
    """Which layer gets how much of a rank where the trained dense model is cut anew: `sensitivity`, or `keep` for the
    checkpoint's own curves."""
    trained: str = "factors"
    """`factors` alone, so that the dense original stays the top rung, or `all`, which gives the original up."""
    steps: int | None = None
    """Optimiser steps; None to count by `epochs`."""
    epochs: float = 1.0
    """Passes over the data."""
    dense_epochs: float | None = None
    """Passes that train the dense model first, before it is cut again; None for as many as `epochs` (or `steps`) where
    the head is new, and none where the model was made for the task."""
    batch_size: int = 32
    """Examples of a step, over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches of a step: less memory, the same result."""
    learning_rate: float = 5e-4
    """The highest, of the factors."""
    dense_learning_rate: float = 1e-4
    """The highest, of the dense model."""
    warmup: float = 0.06
    """The share of steps over which the learning rate rises; it falls to zero afterwards."""
    weight_decay: float = 0.01
    """AdamW's; not of biases, norms and the objective's own parameters."""
    max_length: int | None = None
    """Tokens of an example; None for the model's limit, at most 256."""
    precision: str = "fp32"
    """`fp32`, or mixed precision in `bf16` or `fp16`."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory for more time."""
    save_every: int = 200
    """Steps between saved states."""
    seed: int = 0
    """Of the order of the data, dropout, the ranks and a new head."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}", f"choose one of {', '.join(choices)}")
        for name in ("draws", "batch_size", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is 1 or more, not {getattr(self, name)}")
        for name in ("epochs", "learning_rate", "dense_learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is above 0, not {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps is 1 or more, not {self.steps}")
        if self.dense_epochs is not None and self.dense_epochs < 0:
            raise UsageError(f"dense_epochs is 0 or more, not {self.dense_epochs}")
        if not 0 < self.distill_weight < 1:
            raise UsageError(f"distill_weight lies between 0 and 1, not {self.distill_weight}")
        for name in ("widen", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a share of the steps, 0 to 1, not {getattr(self, name)}")
        if self.max_length is not None and self.max_length < 2:
            raise UsageError(f"max_length is 2 tokens or more, not {self.max_length}")
        if not 0 <= self.hidden_weight < math.inf:
            raise UsageError(f"hidden_weight is 0 or more, not {self.hidden_weight}")
        if self.seed < 0 or self.weight_decay < 0 or not 0 <= self.lean < math.inf:
            raise UsageError("the seed, the weight decay and the lean are 0 or more")
        if self.batch_size % self.accumulate:
            raise UsageError(f"a batch of {self.batch_size} does not divide into {self.accumulate} micro-batches")
        if self.rungs and self.ranks != "ladder":
            raise UsageError(f"rungs are named, and ranks are {self.ranks}", "draw from the ladder: --ranks ladder")

    @classmethod
    def of_recipe(cls, recipe: str = "default", **settings: Any) -> TrainConfig:
        """A recipe's settings, with others on top; settings that are None leave the recipe's.

        Raises:
            UsageError: an unknown recipe or value.
        """
        if recipe not in RECIPES:
            raise UsageError(f"unknown recipe {recipe!r}", f"choose one of {', '.join(RECIPES)}")
        chosen = {**RECIPES[recipe], **{name: value for name, value in settings.items() if value is not None}}
        return cls(**chosen)

    def sampler(self, ladder: RankLadder, total_steps: int) -> RankSampler:
        """What draws the ranks of a run.

        Raises:
            RankError: a rank is outside `1..R`.
            UsageError: nothing to draw from.
        """
        return RankSampler(
            pool=rank_pool(self.ranks, ladder, self.lowest, self.highest, self.rungs),
            top=ladder.max_rank,
            plan=self.plan,
            draws=self.draws,
            widen_steps=round(self.widen * total_steps),
            seed=self.seed,
            lean=self.lean,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "rungs": list(self.rungs)}

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """`name: theirs, now ours` for every setting that another run's `to_json` has otherwise."""
        mine = self.to_json()
        names = [field.name for field in fields(self)]
        return [f"{name}: {other.get(name)!r}, now {mine[name]!r}" for name in names if other.get(name) != mine[name]]
