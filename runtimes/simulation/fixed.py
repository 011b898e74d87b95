"""Policies to compare others with: one rung for ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nsn_edge.runtimes.policy.base import Decision, PolicyState
from nsn_edge.runtimes.telemetry.base import Reading


class FixedRung:
    """The same rung whatever happens: what a device without policies does."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def decide(self, reading: Reading, state: PolicyState) -> Decision:
        """Its rung."""
        return Decision(self._rank, "the rung is fixed", replace(state, rank=self._rank))

    def to_json(self) -> Mapping[str, Any]:
        """Its name and rank."""
        return {"name": f"fixed at rank {self._rank}", "rank": self._rank}
