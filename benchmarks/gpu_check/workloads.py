"""What a bundle's graphs are run on, through the public protocol of engines: nothing here knows which engine it is.

layers      x [tokens, width]: the output of one call stays on the device and is the next call's input
encoder     ids of 128 tokens
decoder     prefill reads a prompt into an empty cache; decode gives one token after it, the cache held by the engine
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsn_edge.bundle import Bundle
from nsn_edge.runtimes.engines import Held, LoadedGraph, run_holding
from nsn_edge.runtimes.profiling.inputs import PAST_LENGTH, synthesise_inputs, vocabulary_size

_PAST, _PRESENT = "past_key_values", "present"


@dataclass(frozen=True)
class Workload:
    """Inputs of one kind of call."""

    name: str
    """`tokens`, `encode`, `prefill`, `decode`."""
    batch_size: int
    """Sequences; tokens for a stack of layers."""
    sizes: Mapping[str, int]
    """Of every named dimension."""


def workloads(bundle: Bundle, quick: bool) -> list[Workload]:
    """Those of a bundle's kind."""
    names = {part for spec in bundle.manifest.inputs for size in spec.shape for part in str(size).split(" + ")}
    longest = bundle.manifest.task.max_length or 1024
    if PAST_LENGTH in names:
        n = min(8 if quick else 512, longest // 2)
        batches = (1, 2) if quick else (1, 32)
        # Many prompts are read shorter: a board takes seconds for each call else.
        kinds = [
            *(("decode", b, 1, n) for b in batches),
            *(("prefill", b, n if b == 1 else n // 4, 0) for b in batches),
        ]
        return [
            Workload(name, batch, {"batch_size": batch, "sequence_length": length, PAST_LENGTH: past})
            for name, batch, length, past in kinds
        ]
    if "sequence_length" in names:
        n = min(8 if quick else 128, longest)
        return [Workload("encode", b, {"batch_size": b, "sequence_length": n}) for b in ((1, 2) if quick else (1, 32))]
    return [Workload("tokens", b, {"batch_size": b}) for b in ((1, 4) if quick else (1, 32, 512))]


def inputs_of(bundle: Bundle, work: Workload) -> dict[str, Any]:
    """Made-up inputs; floats are small, so that deep stacks stay in range."""
    made = synthesise_inputs(bundle.manifest.inputs, work.sizes, vocabulary=vocabulary_size(bundle))
    return {name: array * 0.5 if array.dtype.kind == "f" else array for name, array in made.items()}


def call_of(bundle: Bundle, graph: LoadedGraph, work: Workload) -> Callable[[], object]:
    """An inference of a graph that takes the model's inputs and no other."""
    arrays = inputs_of(bundle, work)
    outputs = [spec.name for spec in graph.outputs]
    if work.name == "tokens":  # neither copied to the device nor back: the layers alone are timed
        _, first = run_holding(graph, arrays, {}, outputs)
        chained = {"x": first[outputs[0]]}
        rest = {name: array for name, array in arrays.items() if name != "x"}
        return lambda: run_holding(graph, rest, chained, outputs)
    cache = {name: array for name, array in arrays.items() if name.startswith(_PAST)}
    presents = [name for name in outputs if name.startswith(_PRESENT)]
    if work.name == "decode":
        rest = {name: array for name, array in arrays.items() if name not in cache}
        held = _filled(bundle, graph, work, presents)
        return lambda: run_holding(graph, rest, held, presents)
    return lambda: run_holding(graph, arrays, {}, presents)


def _filled(bundle: Bundle, graph: LoadedGraph, work: Workload, presents: list[str]) -> dict[str, Held]:
    """A cache of `PAST_LENGTH` tokens, where the engine keeps it."""
    sizes = {**work.sizes, "sequence_length": work.sizes[PAST_LENGTH], PAST_LENGTH: 0}
    _, held = run_holding(graph, inputs_of(bundle, Workload("prefill", work.batch_size, sizes)), {}, presents)
    return {name.replace(_PRESENT, _PAST, 1): tensor for name, tensor in held.items()}


def answer(bundle: Bundle, graph: LoadedGraph) -> Any:
    """The first output for a small input, for comparison; float64."""
    names = {part for spec in bundle.manifest.inputs for size in spec.shape for part in str(size).split(" + ")}
    sizes = {
        name: 0 if name == PAST_LENGTH else 3 if name == "batch_size" else 5 for name in names if not name.isdigit()
    }
    arrays, _ = run_holding(graph, inputs_of(bundle, Workload("answer", 3, sizes)), {}, ())
    return np.asarray(arrays[graph.outputs[0].name], dtype=np.float64)
