"""The other kind of store: one graph that serves every rank, so that all ranks are in memory at the price of one.

gated, sliced, masked      the rank is an input of the graph
bound                      the factors are: at each rank, prefixes of the mapped weights file
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from nsn_edge.bundle import Bundle, MappedFactors, TensorSpec
from nsn_edge.bundle.manifest import RANK_INPUT
from nsn_edge.errors import EngineError
from nsn_edge.ladder import check_rank
from nsn_edge.runtimes.engines.base import Array, Engine, LoadedGraph
from nsn_edge.runtimes.engines.holding import Held, run_holding
from nsn_edge.runtimes.residency import Lease

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
        make = MappedFactors(bundle).at if form == "bound" else _rank_alone
        self._at: Callable[[int], Mapping[str, Array]] = functools.lru_cache(maxsize=_REMEMBERED_RANKS)(make)

    def at(self, rank: int) -> Mapping[str, Array]:
        """By name; not to be changed.

        Raises:
            RankError: `rank` is outside `1..R`.
        """
        check_rank(rank, self._max_rank)
        return self._at(int(rank))


def _rank_alone(rank: int) -> dict[str, Array]:
    return {RANK_INPUT: np.array(rank, dtype=np.int64)}


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
        artifact = bundle.graph(form=form)
        self._inputs = RankInputs(bundle, form)
        self._bytes = artifact.weight_bytes or 0
        self._max_rank = bundle.manifest.ladder.max_rank
        self._current = self._max_rank
        self._graph: LoadedGraph | None = engine.load(bundle.file(artifact))

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
        graph = self._graph
        if graph is None:
            raise EngineError("the session was closed")
        wanted = self._current if rank is None else rank
        return Lease(wanted, _AtRank(graph, self._inputs.at(wanted)))

    def release(self, lease: Lease) -> None:
        """Nothing is counted: the one graph is freed when the last lease forgets it."""

    def make_current(self, rank: int) -> bool:
        self._current = rank
        return self._graph is not None

    def close(self) -> None:
        # Dropped, not closed: a request may be inside it. Python frees it with the last lease.
        self._graph = None


@dataclass(frozen=True)
class _AtRank:
    """A graph that serves every rank, seen as the graph of one."""

    graph: LoadedGraph
    extra: Mapping[str, Array]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in self.graph.inputs if spec.name not in self.extra)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.graph.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.graph.run({**inputs, **self.extra})

    def run_holding(
        self, inputs: Mapping[str, Array], held: Mapping[str, Held], hold: Collection[str]
    ) -> tuple[dict[str, Array], dict[str, Held]]:
        return run_holding(self.graph, {**inputs, **self.extra}, held, hold)

    def close(self) -> None:
        self.graph.close()
