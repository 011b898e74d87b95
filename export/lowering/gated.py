"""`gated`: every rung's graph in one file, behind an int64 scalar `rank` input.

    rank, checked
      '------ == 64 ? -- yes --> the graph of rung 64         each branch is the whole model as `static` writes it,
                |  no                                         and refers to the same rows of weights.bin
              == 96 ? -- yes --> the graph of rung 96
                |  no
               ...  no ---------> the graph `sliced`          any rank between the rungs; fails outside `1..R`

So a rung costs what its own graph costs, plus one comparison per rung, and every rank in between is served too. Gating
each layer by itself (nested increments behind an `If` each) was measured to be slower: an `If` runs its branch as a
session of its own, and the runtime can neither fuse nor plan memory across it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from nsn_edge.bundle.manifest import RANK_INPUT
from nsn_edge.export.graph import Graph
from nsn_edge.export.lowering.dynamic import lower_sliced
from nsn_edge.export.lowering.rewrite import name_of
from nsn_edge.export.lowering.static import lower_static
from nsn_edge.export.weights import WeightStore
from nsn_edge.ladder import RankLadder


@dataclass(frozen=True)
class _Nodes:
    """Nodes and the constants that they read."""

    nodes: list[ir.Node]
    initializers: list[ir.Value]


def lower_gated(graph: Graph, ladder: RankLadder, store: WeightStore, *, merge: bool = True) -> ir.Model:
    """One graph that holds those of all rungs of a ladder.

    Args:
        graph: traced.
        ladder: the rungs; a dense one answers with the original weights, as its `static` graph does.
        store: holds the weights.
        merge: see `lower_static`.

    Raises:
        ExportError: a rung is dense and the dense weights were not kept.
    """
    model = lower_sliced(graph, store)
    inputs = list(model.graph.inputs)
    outputs = list(model.graph.outputs)
    signature = [(name_of(value), value.shape, value.type) for value in outputs]
    outer = {
        name_of(value): ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=None)
        for value in inputs
    }
    rest = _as_branch(model.graph, outer, "any")
    checked, check = _checked(outer[RANK_INPUT], ladder.max_rank)
    for rung in reversed(ladder.rungs):
        name = f"rank-{rung.rank}"
        branch = _as_branch(lower_static(graph, rung, store, merge=merge).graph, outer, name)
        rest = _choice(rung.rank, branch, rest, checked, signature)
    for value, (name, *_) in zip(rest.outputs, signature, strict=True):
        value.name = name
    for constant in check.initializers:
        rest.register_initializer(constant)
    rest.insert_before(rest.node(0), check.nodes)
    rest.inputs.extend(outer.values())
    rest.name = "gated"
    gated = ir.Model(rest, ir_version=model.ir_version, producer_name=model.producer_name)
    gated.opset_imports.update(model.opset_imports)
    return gated


def _as_branch(graph: ir.Graph, outer: Mapping[str, ir.Value], name: str) -> ir.Graph:
    """A lowered graph as the branch of an `If`: it reads the outer graph's inputs, and no name of it repeats one
    outside, which ONNX forbids."""
    for value in list(graph.inputs):
        ir.convenience.replace_all_uses_with(value, outer[name_of(value)])
    graph.inputs.clear()
    graph.name = name
    for value in list(graph.initializers.values()):
        value.name = f"{name}/{value.name}"
    for number, node in enumerate(graph):
        # Short: an engine holds such a graph once more at every level of nesting, and much of it is names.
        node.name = f"{name}/{number}"
        for index, value in enumerate(node.outputs):
            if value.name:
                value.name = f"{name}/{number}.{index}"
    return graph


def _checked(rank: ir.Value, max_rank: int) -> tuple[ir.Value, _Nodes]:
    """The rank itself, by way of a `Gather` that fails outside `1..R`: a failure inside branches would be reported once
    per branch. An index below 0 would count from the end, so it is sent past the end."""
    numbers = {"one": 1, "past-end": max_rank, "all": range(1, max_rank + 1)}
    constants = {name: _constant(f"rank/{name}", np.array(numbers[name], dtype=np.int64)) for name in numbers}
    tape = Tape()
    too_low = tape.op("Less", [rank, constants["one"]])
    row = tape.op("Where", [too_low, constants["past-end"], tape.op("Sub", [rank, constants["one"]])])
    checked = tape.op("Gather", [constants["all"], row], {"axis": 0})
    nodes = list(tape.nodes)
    nodes[-1].name = f"rank_outside_1..{max_rank}"
    for number, node in enumerate(nodes):
        node.outputs[0].name = f"rank/{number}"
    return checked, _Nodes(nodes, list(constants.values()))


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def _choice(
    rung_rank: int,
    then: ir.Graph,
    otherwise: ir.Graph,
    rank: ir.Value,
    signature: Sequence[tuple[str, ir.Shape | None, ir.TypeProtocol | None]],
) -> ir.Graph:
    """A graph without inputs: `then` at one rank, else `otherwise`."""
    label = f"at-{rung_rank}"
    wanted = _constant(f"{label}/rank", np.array(rung_rank, dtype=np.int64))
    equal = ir.Node("", "Equal", [rank, wanted], name=f"{label}/equal")
    equal.outputs[0].name = f"{label}/chosen"
    branches = [ir.AttrGraph("then_branch", then), ir.AttrGraph("else_branch", otherwise)]
    choice = ir.Node("", "If", equal.outputs, attributes=branches, num_outputs=len(signature), name=f"{label}/if")
    for value, (name, shape, kind) in zip(choice.outputs, signature, strict=True):
        value.name, value.shape, value.type = f"{label}/{name}", shape, kind
    return ir.Graph([], choice.outputs, nodes=[equal, choice], initializers=[wanted], name=label)
