"""What a policy is: a pure function from a reading and a state to a rank, a reason and the next state.

No I/O and no clock: time comes in the reading. So a decision can be replayed, simulated and explained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nsn_edge.runtimes.telemetry.base import Reading

if TYPE_CHECKING:  # each limiter's memory stands with the limiter
    from nsn_edge.runtimes.policy.deadline import DeadlineMemory
    from nsn_edge.runtimes.policy.energy import EnergyMemory
    from nsn_edge.runtimes.policy.pi import PiMemory
    from nsn_edge.runtimes.policy.step_wise import StepWiseMemory


@dataclass(frozen=True)
class PolicyState:
    """What a policy remembers from one decision to the next. The default is that of a policy that just started."""

    rank: int | None = None
    """The rank decided last; None before the first decision."""
    calm_since_s: float | None = None
    """Since when a higher rung has been allowed without interruption; None while none is."""
    battery_depth: int = 0
    """How many battery steps hold."""
    heat_depth: int = 0
    """How many temperature steps hold."""
    near_limit: bool = False
    """Whether the temperature came too near to the device's own limit and has not left it yet."""
    saw_power: bool = False
    """Whether battery or mains were ever known."""
    saw_temperature: bool = False
    """Whether the temperature was ever known."""
    step_wise: StepWiseMemory | None = None
    """What the limiter of that name remembers; None before it was asked."""
    pi: PiMemory | None = None
    """The same."""
    energy: EnergyMemory | None = None
    """The same."""
    deadline: DeadlineMemory | None = None
    """The same."""


@dataclass(frozen=True)
class Decision:
    """A rank, why, and what to pass to the next decision."""

    rank: int
    """Always a rung of the ladder."""
    reason: str
    """One sentence for people: the strictest limit now, and what moved or holds the rank."""
    state: PolicyState
    limiter: str = ""
    """Which limiter was the strictest, by its table in the policy file; empty where none limits, or none is known."""


class RankPolicy(Protocol):
    """Something that decides at which rung to run."""

    def decide(self, reading: Reading, state: PolicyState) -> Decision:
        """The rung for this moment. Pure: the same arguments give the same decision."""
        ...

    def to_json(self) -> Mapping[str, Any]:
        """The settings as plain JSON types, for reports."""
        ...
