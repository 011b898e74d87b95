"""What a session asks of whatever keeps its graphs: leases of graphs, by rank.

RungStore         a graph per rung, within a memory budget (`residency.py`)
RankInputStore    one graph for every rank (`dynamic.py`)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines.base import LoadedGraph

MB = 1e6
"""Bytes in the megabyte of all options and messages."""


@dataclass(eq=False)
class Lease:
    """A graph that stays in memory until it is released."""

    rank: int
    graph: LoadedGraph
    users: int = 0
    last_used: int = 0
    dropped: bool = False
    """Whether it is no longer, or not yet, the graph of its rank, so that whoever releases it last frees it."""
    load_ms: float = 0.0
    """What loading it took."""


class NotInMemoryError(EngineError):
    """The current rung was dropped and is not loaded again yet."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"rank {rank} is not in memory", "it is loaded again in the background")
        self.rank = rank


class GraphStore(Protocol):
    """Hands out the graph of a rank. Every method may be called from any thread."""

    @property
    def current(self) -> int:
        """The rank of requests that name none."""

    @property
    def resident_ranks(self) -> tuple[int, ...]:
        """Ranks that answer without loading, lowest first."""

    @property
    def resident_bytes(self) -> int:
        """Weights of the loaded graphs."""

    @property
    def top_rank(self) -> int:
        """The highest rank that `check` accepts."""

    def serves(self, rung_rank: int) -> bool:
        """Whether the rung at a rank fits the memory budget."""

    def check(self, rank: int) -> int:
        """Refuse a rank that this store can never serve.

        Raises:
            RankError: outside `1..R`, or no rung there.
            UsageError: it does not fit the memory budget even alone.
        """

    def lease(self, rank: int | None) -> Lease:
        """The graph of a rank, loading it if need be; of the current one, never loading, for None.

        Raises:
            NotInMemoryError: None was given, and the current rung was dropped.
            EngineError: loading failed, or the store is closed.
        """

    def lease_resident(self, rank: int) -> Lease | None:
        """The graph of a rank if it is in memory."""

    def substitutes(self, rank: int) -> tuple[int, ...]:
        """The other rungs that could answer in place of a rank: the lower ones, nearest first, then the higher ones."""

    def drop(self, lease: Lease) -> bool:
        """Forget a graph that failed; it is freed when nobody uses it. False if it was forgotten already."""

    def fresh(self, rank: int) -> Lease | None:
        """Another graph of a rank, loaded beside the one in memory: freed when released, unless adopted. None where
        there can be no other.

        Raises:
            EngineError: loading failed, or the store is closed.
        """

    def adopt(self, lease: Lease) -> None:
        """Make a fresh graph the one of its rank."""

    def make_room(self, rank: int, keep: Collection[int]) -> bool:
        """Whether a rung may be loaded ahead of time: it is cold, and there is room beside the current rung, those to
        keep and those in use. They become the last to be evicted."""

    def release(self, lease: Lease) -> None:
        """Give a lease back."""

    def make_current(self, rank: int) -> bool:
        """Make a rank the current one; False, and nothing changes, if it is not in memory."""

    def close(self) -> None:
        """Free every graph; those in use when their request ends."""
