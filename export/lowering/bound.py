"""`bound`: the factors are inputs of the graph, for a runtime that binds prefixes of the mapped weights file.

    weights.bin, mapped   | A of layer 1 .......... | B of layer 1 ......... | ...
    at the rank of the call  '- [r_1, d_in] -> input   '- [r_1, d_out] -> input      pointer and shape: no copy

Any rank of `1..R`, and one copy of the factors in memory for all of them: the page cache's. The manifest's
`bound_tensors` say where each input lies. The graph knows no rank, so the runtime refuses one outside `1..R`.

At full rank the factors are up to twice the work of the weight that they came from, so a dense rung has a second graph,
whose inputs are the original weights.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.tape import Tape

from nsn_edge.bundle.manifest import BoundTensor
from nsn_edge.export.graph import Graph, NestedNode
from nsn_edge.export.lowering.rewrite import Rewriter, add_bias, name_of, original_weight, tensor_of
from nsn_edge.export.weights import WeightStore, shape_of


def lower_bound(graph: Graph, store: WeightStore) -> tuple[ir.Model, tuple[BoundTensor, ...]]:
    """One graph with the factors as inputs after the model's own, and where in the store each of them begins."""
    inputs = _Inputs(Rewriter(graph, store))

    def build(rewriter: Rewriter, tape: Tape, nested: NestedNode) -> ir.Value:
        a, b = (inputs.factor(nested.layer, factor) for factor in (nested.a, nested.b))
        # onnxruntime fuses the transposition into the product, which then reads the mapped rows in place.
        a_t = tape.op("Transpose", [a], {"perm": [1, 0]})
        return add_bias(tape, tape.op("MatMul", [tape.op("MatMul", [nested.x, a_t]), b]), nested.bias)

    return inputs.finish(build, "bound")


def lower_bound_dense(graph: Graph, store: WeightStore) -> tuple[ir.Model, tuple[BoundTensor, ...]]:
    """The same for the dense rung, with the original weights as inputs.

    Raises:
        ExportError: the dense weights were not kept.
    """
    inputs = _Inputs(Rewriter(graph, store))

    def build(rewriter: Rewriter, tape: Tape, nested: NestedNode) -> ir.Value:
        return add_bias(tape, tape.op("MatMul", [nested.x, inputs.original(nested)]), nested.bias)

    return inputs.finish(build, "bound-dense")


class _Inputs:
    """The inputs of a graph under rewriting that come from the store."""

    def __init__(self, rewriter: Rewriter) -> None:
        self._rewriter = rewriter
        self._values: dict[str, ir.Value] = {}
        self._tensors: list[BoundTensor] = []

    def factor(self, layer: str, factor: ir.Value) -> ir.Value:
        """The first rows of a factor."""
        tensor = tensor_of(factor)
        return self._bound(name_of(factor), layer, tensor, [f"{layer}.rank", shape_of(tensor)[1]], original=False)

    def original(self, nested: NestedNode) -> ir.Value:
        """A layer's original weight, `[d_in, d_out]`."""
        name, tensor = original_weight(nested)
        return self._bound(name, nested.layer, tensor, list(shape_of(tensor)), original=True)

    def finish(
        self, build: Callable[[Rewriter, Tape, NestedNode], ir.Value], name: str
    ) -> tuple[ir.Model, tuple[BoundTensor, ...]]:
        """Rewrite every nested layer, and declare what was bound meanwhile."""
        self._rewriter.replace_all(build)
        graph = self._rewriter.model.graph
        # An input and an initializer may not share a name.
        for bound in self._values:
            graph.initializers.pop(bound, None)
        graph.inputs.extend(self._values.values())
        return self._rewriter.finish(name), tuple(self._tensors)

    def _bound(
        self, name: str, layer: str, tensor: ir.TensorProtocol, shape: list[int | str], *, original: bool
    ) -> ir.Value:
        if name not in self._values:
            store = self._rewriter.store
            store.add(name, tensor)
            offset = store.reference(name).offset
            assert offset is not None
            rows, features = shape_of(tensor)
            dtype = str(tensor.dtype.numpy())
            self._tensors.append(BoundTensor(name, layer, offset, dtype, (rows, features), original))
            self._values[name] = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype))
        return self._values[name]
