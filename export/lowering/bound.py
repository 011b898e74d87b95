"""`bound`: the factors are inputs of the graph, for a runtime that binds prefixes of the mapped weights file.

    weights.bin, mapped   | A of layer 1 .......... | B of layer 1 ......... | ...
    at the rank of the call  '- [r_1, d_in] -> input   '- [r_1, d_out] -> input      pointer and shape: no copy

Any rank of `1..R`, and one copy of the factors in memory for all of them: the page cache's. The manifest's
`bound_tensors` say where each input lies. The graph knows no rank, so the runtime refuses one outside `1..R`.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from nsn_edge.bundle.manifest import BoundTensor
from nsn_edge.export.graph import Graph, NestedNode
from nsn_edge.export.lowering.rewrite import Rewriter, add_bias, name_of, tensor_of
from nsn_edge.export.weights import WeightStore, shape_of


def lower_bound(graph: Graph, store: WeightStore) -> tuple[ir.Model, tuple[BoundTensor, ...]]:
    """One graph with the factors as inputs after the model's own, and where in the store each of them begins."""
    rewriter = Rewriter(graph, store)
    inputs: dict[str, ir.Value] = {}
    tensors: list[BoundTensor] = []

    def bind(layer: str, factor: ir.Value) -> ir.Value:
        name, tensor = name_of(factor), tensor_of(factor)
        if name not in inputs:
            store.add(name, tensor)
            offset = store.reference(name).offset
            assert offset is not None
            rows, features = shape_of(tensor)
            tensors.append(BoundTensor(name, layer, offset, str(tensor.dtype.numpy()), (rows, features)))
            inputs[name] = ir.Value(
                name=name, shape=ir.Shape([f"{layer}.rank", features]), type=ir.TensorType(tensor.dtype)
            )
        return inputs[name]

    def build(rewriter: Rewriter, tape: Tape, nested: NestedNode) -> ir.Value:
        a, b = bind(nested.layer, nested.a), bind(nested.layer, nested.b)
        # onnxruntime fuses the transposition into the product, which then reads the mapped rows in place.
        a_t = tape.op("Transpose", [a], {"perm": [1, 0]})
        return add_bias(tape, tape.op("MatMul", [tape.op("MatMul", [nested.x, a_t]), b]), nested.bias)

    rewriter.replace_all(build)
    # An input and an initializer may not share a name.
    for name in inputs:
        rewriter.model.graph.initializers.pop(name, None)
    rewriter.model.graph.inputs.extend(inputs.values())
    return rewriter.finish("bound"), tuple(tensors)
