"""Arithmetic on sizes that need not be done while a graph runs: the cheaper the products, the more of the time it is.

    Reshape(x, Concat(size of x's axis 0, -1, 12, 32))  ->  Reshape(x, [0, -1, 12, 32])     0: as x has it
    Slice(Shape(x), the last)                           ->  [32]          where it is a number, so what follows folds

Sizes are known by onnx's own shape inference, which follows them by name; behind an operator that is onnxruntime's own
(int4) it knows nothing, and nothing is changed. Requires: a lowered graph, its large tensors
external. Ensures: the same outputs for all inputs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass


def tidy(model: ir.Model) -> ir.Model:
    """Simplify a graph in place, and return it."""
    graph = model.graph
    outer = [*graph.inputs, *graph.outputs]
    declared = [(value.shape, value.type) for value in outer]
    ShapeInferencePass()(model)
    for node in list(graph):
        if node.op_type == "Reshape" and node.domain == "":
            _fix_target(graph, node)
        elif node.op_type == "Slice" and node.domain == "":
            _fix_sizes(graph, node)
    RemoveUnusedNodesPass()(model)
    for node in graph:
        for value in node.outputs:
            value.shape = value.type = None
    for value, (shape, kind) in zip(outer, declared, strict=True):
        value.shape, value.type = shape, kind
    return model


def _fix_target(graph: ir.Graph, node: ir.Node) -> None:
    """Name a `Reshape`'s sizes by numbers where at most one is neither a number nor its input's own."""
    x, target = node.inputs
    if x is None or target is None or target.const_value is not None or x.shape is None:
        return
    maker = target.producer()
    zero = node.attributes.get("allowzero")  # then a 0 means none, not as many as the input has
    if maker is None or maker.op_type != "Concat" or node.outputs[0].shape is None or (zero and zero.as_int()):
        return
    before, after = _sizes(x.shape), _sizes(node.outputs[0].shape)
    parts = [_number(part) for part in maker.inputs]
    if len(parts) != len(after):
        return
    numbers = [
        part if part is not None else 0 if axis < len(before) and size is not None and before[axis] == size else -1
        for axis, (part, size) in enumerate(zip(parts, after, strict=True))
    ]
    if numbers.count(-1) <= 1:
        node.replace_input_with(1, _constant(graph, numbers))


def _fix_sizes(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a `Slice` of a tensor's sizes by its outcome where that is all numbers."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    if maker is None or maker.op_type != "Shape" or maker.attributes or maker.inputs[0] is None:
        return
    shape = maker.inputs[0].shape
    limits = [_number(value) for value in node.inputs[1:]]
    if shape is None or len(limits) not in (2, 3) or None in limits or (len(limits) == 3 and limits[2] != 0):
        return
    sizes = _sizes(shape)[limits[0] : limits[1]]
    numbers = [size for size in sizes if isinstance(size, int)]
    if len(numbers) == len(sizes):
        ir.convenience.replace_all_uses_with(node.outputs[0], _constant(graph, numbers))


def _sizes(shape: ir.Shape) -> list[int | str | None]:
    return [size if isinstance(size, int) else size.value for size in shape]


def _number(value: ir.Value | None) -> int | None:
    """Of a constant of one element."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return int(value.const_value.numpy().reshape(-1)[0])


def _constant(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    name = "sizes." + ".".join(map(str, numbers))
    if name not in graph.initializers:
        tensor = ir.Tensor(np.array(numbers, dtype=np.int64), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]
