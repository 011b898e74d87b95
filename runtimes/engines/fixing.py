"""Inputs given once for many calls: the rank, or at a rank the factors of a `bound` graph.

    graph = fix_inputs(loaded, factors.at(96))
    graph.run(inputs)                       # the model's own inputs alone

A loaded graph that offers `fix_inputs` may prepare them; for any other they are passed along in every call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

from nsn_edge.bundle import TensorSpec
from nsn_edge.runtimes.engines.base import Array, LoadedGraph
from nsn_edge.runtimes.engines.holding import Held, run_holding


@runtime_checkable
class FixesInputs(Protocol):
    """What a loaded graph may offer besides `LoadedGraph`."""

    def fix_inputs(self, fixed: Mapping[str, Array]) -> LoadedGraph:
        """As the function of this name."""


def fix_inputs(graph: LoadedGraph, fixed: Mapping[str, Array]) -> LoadedGraph:
    """The graph with some of its inputs given once. It may be called from several threads, as the graph itself.

    Args:
        graph: stays the caller's to close.
        fixed: arrays by the input's name, which must not change afterwards.

    Raises:
        EngineError: one of them does not fit; at the latest when the graph runs.
    """
    return graph.fix_inputs(fixed) if isinstance(graph, FixesInputs) else WithFixedInputs(graph, fixed)


class WithFixedInputs:
    """A graph, and arrays that it is given in every call."""

    def __init__(self, graph: LoadedGraph, fixed: Mapping[str, Array]) -> None:
        """As the function `fix_inputs`."""
        self.graph = graph
        self.fixed = fixed
        self._inputs = tuple(spec for spec in graph.inputs if spec.name not in fixed)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` still takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        return self.graph.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As `LoadedGraph.run`."""
        return self.graph.run({**inputs, **self.fixed})

    def run_holding(
        self, inputs: Mapping[str, Array], held: Mapping[str, Held], hold: Collection[str]
    ) -> tuple[dict[str, Array], dict[str, Held]]:
        """As the function `run_holding`."""
        return run_holding(self.graph, {**inputs, **self.fixed}, held, hold)

    def close(self) -> None:
        """Close the graph."""
        self.graph.close()
