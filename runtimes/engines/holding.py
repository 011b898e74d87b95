"""Tensors that stay with the engine between calls: what a decoder's cache needs.

    outputs, held = run_holding(graph, inputs, held={}, hold={"present.0.key", ...})       # prefill
    outputs, held = run_holding(other, inputs, held={"past_key_values.0.key": held[...]}, hold=...)   # next token

A loaded graph that offers `run_holding` hands its outputs on without a copy, to itself or to another graph of the same
engine, which is how the rank changes in the middle of a text. Any other graph is served through numpy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nsn_edge.runtimes.engines.base import Array, LoadedGraph


class Held(Protocol):
    """A tensor where the engine computed it. Never written to again, so it may feed any number of calls."""

    def shape(self) -> Sequence[int]:
        """Its sizes."""

    def numpy(self) -> Array:
        """Its values, copied where they are not in the processor's memory."""


@dataclass(frozen=True)
class HeldArray:
    """A tensor held as the numpy array it is."""

    array: Array

    def shape(self) -> Sequence[int]:
        """Its sizes."""
        return self.array.shape

    def numpy(self) -> Array:
        """The array itself."""
        return self.array


@runtime_checkable
class HoldsTensors(Protocol):
    """What a loaded graph may offer besides `LoadedGraph`."""

    def run_holding(
        self, inputs: Mapping[str, Array], held: Mapping[str, Held], hold: Collection[str]
    ) -> tuple[dict[str, Array], dict[str, Held]]:
        """As the function of this name."""


def run_holding(
    graph: LoadedGraph, inputs: Mapping[str, Array], held: Mapping[str, Held], hold: Collection[str]
) -> tuple[dict[str, Array], dict[str, Held]]:
    """Run a graph on arrays and held tensors, and hold some of its outputs.

    Args:
        graph: what runs.
        inputs: arrays by the input's name.
        held: the other inputs: outputs of earlier calls.
        hold: outputs that shall stay with the engine.

    Returns:
        The other outputs as arrays of the caller's, and the held ones, both by name.

    Raises:
        EngineError: as `LoadedGraph.run`.
    """
    if isinstance(graph, HoldsTensors):
        return graph.run_holding(inputs, held, hold)
    outputs = graph.run({**inputs, **{name: tensor.numpy() for name, tensor in held.items()}})
    arrays = {name: array for name, array in outputs.items() if name not in hold}
    return arrays, {name: HeldArray(array) for name, array in outputs.items() if name in hold}
