"""What comes out of a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from nsn_edge.runtimes.engines import Array, Held


@dataclass(frozen=True)
class Answer:
    """The outcome of one request."""

    outputs: dict[str, Array]
    """By the graph's names; the arrays belong to the caller."""
    rank: int
    """That answered."""
    latency_ms: float
    """Of the inference alone; loading a cold rung first is not in it."""
    held: dict[str, Held] = field(default_factory=dict)
    """Outputs that were asked to stay with the engine, by the graph's names."""
    degraded: bool = False
    """Whether the rung that should have answered failed, and this one stood in for it."""
    waited_ms: float = 0.0
    """In a server's queue."""


@dataclass(frozen=True)
class Switch:
    """The outcome of `EdgeSession.switch`."""

    from_rank: int
    """Current before."""
    to_rank: int
    """Asked for."""
    happened: bool
    """False where a later switch overtook this one."""
    cold: bool
    """Whether the rung was not in memory when asked for."""
    duration_ms: float
    """From the asking until the rank was current, loading included."""
