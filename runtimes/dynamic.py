"""The other kind of store: one graph that serves every rank, so that all ranks are in memory at the price of one.

gated, sliced, masked      the rank is an input of the graph
bound                      the factors are: at each rank, prefixes of the mapped weights file (and at a dense rung,
                           where a second graph takes over, the original weights)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping

import numpy as np

from nsn_edge.bundle import Bundle, MappedFactors
from nsn_edge.bundle.manifest import RANK_INPUT
from nsn_edge.errors import ClosedError
from nsn_edge.ladder import check_rank
from nsn_edge.runtimes.engines.base import Array, Engine, LoadedGraph
from nsn_edge.runtimes.engines.fixing import fix_inputs
from nsn_edge.runtimes.graph_store import Lease

_REMEMBERED_RANKS = 32
"""For how many ranks the prefixes are kept: a few kilobytes of views each."""


class RankInputs:
    """What a graph takes besides the model's inputs, by rank. Called from any thread."""

    def __init__(self, bundle: Bundle, form: str) -> None:
        """
        Args:
            bundle: holds the graph.
            form: `gated`, `bound`, `sliced` or `masked`.

        Raises:
            BundleError: the weights cannot be mapped.
        """
        self._max_rank = bundle.manifest.ladder.max_rank
        self._factors = MappedFactors(bundle) if form == "bound" else None
        make = _bound_inputs(bundle, self._factors) if self._factors else _rank_alone
        self._at: Callable[[int], Mapping[str, Array]] = functools.lru_cache(maxsize=_REMEMBERED_RANKS)(make)

    def at(self, rank: int) -> Mapping[str, Array]:
        """By name, for `bundle.graph(rank, form)`; not to be changed.

        Raises:
            RankError: `rank` is outside `1..R`.
        """
        check_rank(rank, self._max_rank)
        return self._at(int(rank))

    def factors(self) -> Mapping[str, Array]:
        """Of the form `bound`: every factor whole, by name; nothing for other forms."""
        return self._factors.at(self._max_rank) if self._factors else {}


def _rank_alone(rank: int) -> dict[str, Array]:
    return {RANK_INPUT: np.array(rank, dtype=np.int64)}


def _bound_inputs(bundle: Bundle, factors: MappedFactors) -> Callable[[int], Mapping[str, Array]]:
    def at(rank: int) -> Mapping[str, Array]:
        return factors.at(rank) if bundle.graph(rank, "bound").rank is None else factors.originals()

    return at


class RankInputStore:
    """The graph of a form other than `static`, as the graphs of all ranks `1..R`."""

    def __init__(self, bundle: Bundle, engine: Engine, form: str) -> None:
        """
        Args:
            bundle: holds the graph.
            engine: loads it.
            form: `gated`, `bound`, `sliced` or `masked`.

        Raises:
            UsageError: the bundle was exported without that form.
            BundleError: the weights cannot be mapped.
            EngineError: the graph cannot be loaded.
        """
        inputs = RankInputs(bundle, form)
        self._max_rank = bundle.manifest.ladder.max_rank
        self._current = self._max_rank
        every_rank = bundle.graph(None, form)
        graphs: dict[int | None, LoadedGraph] = {None: engine.load(bundle.file(every_rank))}
        dense = bundle.graph(self._max_rank, form)
        if dense.rank is not None:
            graphs[dense.rank] = engine.load(bundle.file(dense))
        originals = sum(tensor.end - tensor.offset for tensor in bundle.manifest.bound_tensors if tensor.original)
        self._bytes = (every_rank.weight_bytes or 0) + (originals if form == "bound" else 0)

        def at(rank: int) -> LoadedGraph:
            return fix_inputs(graphs.get(rank) or graphs[None], inputs.at(rank))

        if form == "bound":
            fix_inputs(
                graphs[None], inputs.factors()
            )  # an engine that puts them on a GPU shall do it once for all ranks
        self._at: Callable[[int], LoadedGraph] | None = functools.lru_cache(maxsize=_REMEMBERED_RANKS)(at)

    @property
    def current(self) -> int:
        return self._current

    @property
    def resident_ranks(self) -> tuple[int, ...]:
        return tuple(range(1, self._max_rank + 1))

    @property
    def resident_bytes(self) -> int:
        return self._bytes

    @property
    def top_rank(self) -> int:
        return self._max_rank

    def serves(self, rung_rank: int) -> bool:
        return True

    def check(self, rank: int) -> int:
        check_rank(rank, self._max_rank)
        return int(rank)

    def lease(self, rank: int | None) -> Lease:
        at = self._at
        if at is None:
            raise ClosedError("the session was closed")
        wanted = self._current if rank is None else rank
        return Lease(wanted, at(wanted))

    def lease_resident(self, rank: int) -> Lease | None:
        return None

    def substitutes(self, rank: int) -> tuple[int, ...]:
        return ()  # another rank would be the same graph

    def drop(self, lease: Lease) -> bool:
        return False

    def fresh(self, rank: int) -> Lease | None:
        return None

    def adopt(self, lease: Lease) -> None:
        """There is never a fresh one."""

    def make_room(self, rank: int, keep: Collection[int]) -> bool:
        return False

    def release(self, lease: Lease) -> None:
        """Nothing is counted: a graph is freed when the last lease forgets it."""

    def make_current(self, rank: int) -> bool:
        self._current = rank
        return self._at is not None

    def close(self) -> None:
        # Dropped, not closed: a request may be inside it. Python frees it with the last lease.
        self._at = None
