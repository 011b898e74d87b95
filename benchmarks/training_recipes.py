"""The recipes that `training.py` puts side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PAPER: dict[str, Any] = {
    "objective": "labels",
    "hidden_weight": 0.0,
    "weights": "uncertainty",
    "plan": "anchor",
    "draws": 1,
    "widen": 0.5,
    "lean": 0.0,
    "trained": "all",
}

ALWAYS, ONCE, CHEAP = "always", "once", "cheap"


@dataclass(frozen=True)
class Recipe:
    """A way to train."""

    name: str
    method: str = "whitened"
    """How the dense weights are cut: `svd` or `whitened`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings of `TrainConfig`, on top of its defaults."""
    kind: str = "hierarchy"
    """`hierarchy`, `untrained`, `single` (the anchor alone) or `separate` (a model for each rank)."""
    allocate: str = "sensitivity"
    """Which layer gets how much of a rank: `uniform` or `sensitivity`."""
    where: str = CHEAP
    """`always`, with every seed; `once`: with the first seed, except where a recipe takes seconds; `cheap`: the same,
    and not at all where one takes minutes."""
    rate: float = 1.0
    """Times the data's own learning rate."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "name": self.name,
            "method": self.method,
            "allocate": self.allocate,
            "kind": self.kind,
            "config": self.config,
            "rate": self.rate,
        }


def _paper(name: str, where: str = CHEAP, **changes: Any) -> Recipe:
    method = changes.pop("method", "svd")
    allocate = changes.pop("allocate", "uniform")
    rate = changes.pop("rate", 1.0)
    return Recipe(name, method, {**PAPER, **changes}, allocate=allocate, where=where, rate=rate)


def _default(name: str, where: str = CHEAP, **changes: Any) -> Recipe:
    method = changes.pop("method", "whitened")
    allocate = changes.pop("allocate", "sensitivity")
    return Recipe(name, method, changes, allocate=allocate, where=where)


RECIPES = (
    Recipe("untrained, svd", "svd", kind="untrained", allocate="uniform", where=ONCE),
    Recipe("untrained, whitened", kind="untrained", allocate="uniform", where=ONCE),
    Recipe("untrained, whitened + sensitivity", kind="untrained", where=ONCE),
    Recipe(
        "cross-entropy at full rank",
        "svd",
        {"objective": "labels", "trained": "all"},
        "single",
        allocate="uniform",
    ),
    _paper("paper", ALWAYS),
    _paper("paper, twice the learning rate", rate=2.0),
    _paper("public implementation", widen=0.0, draws=2, lowest=4, highest=10**9, rate=0.2),
    _paper("paper, equal weights", weights="equal"),
    _paper("paper + whitened", ONCE, method="whitened"),
    _paper("paper + sensitivity", allocate="sensitivity"),
    _paper("paper + distillation", objective="mixed"),
    _paper("paper + two random ranks", plan="random", draws=2, widen=0.0),
    _paper("paper + sandwich", plan="sandwich"),
    _paper("paper + small ranks more often", lean=1.0),
    _paper("paper, factors alone", trained="factors"),
    _default("default", ALWAYS),
    _default("default - sensitivity", allocate="uniform"),
    _default("default - whitening", method="svd"),
    _default("default + small ranks more often", lean=1.0),
    _default("default - labels", objective="distill"),
    _default("default - hidden states", ONCE, hidden_weight=0.0),
    _default("default - distillation", objective="labels"),
    _default("default + sandwich", plan="sandwich", draws=1),
    _default("default + every parameter", trained="all"),
    _default("default + uncertainty", weights="uncertainty"),
    _default("default, rungs alone", ranks="ladder"),
    Recipe("a model for each rank", kind="separate", where=CHEAP),
)
"""Each ingredient added to the paper's recipe alone, and each taken from the default or exchanged in it alone."""
