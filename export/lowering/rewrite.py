"""What the lowerings share: copy the traced graph, replace every `NestedLinear`, point the tensors into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    ShapeInferencePass,
)
from onnx_ir.tape import Tape

from nsn_edge.errors import ExportError
from nsn_edge.export.graph import Graph, NestedNode, is_nested_linear, take_apart, transposed
from nsn_edge.export.weights import WeightStore, belongs_in_store, shape_of

_IR_VERSION = 8
"""Old enough for the onnxruntime and TensorRT of JetPack 5; nothing here needs a newer one."""

_SCALAR_ELEMENTS = 16
"""Constant nodes of fewer elements are left as they are."""


class Rewriter:
    """A copy of a traced graph under rewriting. Values it adds are initializers of that copy."""

    def __init__(self, graph: Graph, store: WeightStore) -> None:
        self.graph = graph
        self.store = store
        self.model = graph.model.clone()

    def stored(self, name: str, tensor: ir.TensorProtocol, rows: int | None = None) -> ir.Value:
        """An initializer that refers to a tensor of the store (adding it on first use), or to its first rows."""
        self.store.add(name, tensor)
        return self._register(self.store.reference(name, rows))

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """An initializer that this lowering made up: in the graph when small, else in the store."""
        if belongs_in_store(tensor):
            return self.stored(name, tensor)
        tensor.name = name
        return self._register(tensor)

    def replace_all(self, build: Callable[[Rewriter, Tape, NestedNode], ir.Value]) -> None:
        """Replace each `NestedLinear` by the nodes that `build` puts on the tape; it returns their output."""
        for node in [node for node in self.model.graph if is_nested_linear(node)]:
            nested = take_apart(node)
            tape = Tape()
            y = build(self, tape, nested)
            old = nested.y
            y.shape, y.type = old.shape, old.type
            name, old.name = old.name, None
            y.name = name
            ir.convenience.replace_nodes_and_values(self.model.graph, node, [node], list(tape.nodes), [old], [y])

    def finish(self, name: str) -> ir.Model:
        """Drop what is unused, move the remaining large tensors into the store, and check the promises.

        Raises:
            ExportError: a `NestedLinear` is left.
        """
        graph = self.model.graph
        graph.name = name
        RemoveUnusedNodesPass()(self.model)
        LiftConstantsToInitializersPass(size_limit=_SCALAR_ELEMENTS)(self.model)
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            assert tensor is not None
            if not isinstance(tensor, ir.ExternalTensor) and belongs_in_store(tensor):
                assert value.name is not None
                self.store.add(value.name, tensor)
                value.const_value = self.store.reference(value.name)
        if any(is_nested_linear(node) for node in graph):
            raise ExportError(f"the lowering {name!r} left a nested layer behind")
        RemoveUnusedOpsetsPass()(self.model)
        _settle_shapes(self.model)
        # What was inferred holds for every lowering of this trace: the next one need not infer again.
        for traced, lowered in zip(self.graph.model.graph.outputs, graph.outputs, strict=True):
            traced.shape = lowered.shape
        self.model.ir_version = _IR_VERSION
        self.model.producer_name = "nsn-edge"
        return self.model

    def _register(self, tensor: ir.TensorProtocol) -> ir.Value:
        initializers = self.model.graph.initializers
        assert tensor.name is not None
        if tensor.name not in initializers:
            self.model.graph.register_initializer(
                ir.Value(
                    name=tensor.name,
                    shape=ir.Shape(shape_of(tensor)),
                    type=ir.TensorType(tensor.dtype),
                    const_value=tensor,
                )
            )
        return initializers[tensor.name]


def _settle_shapes(model: ir.Model) -> None:
    """Replace the sizes of outputs that the tracer could not know (it invents names for them) by inferred numbers, and
    drop what it wrote of the tensors between: every engine infers those itself."""
    outputs = list(model.graph.outputs)
    between = [value for node in model.graph for value in node.outputs if value not in outputs]
    declared = [list(value.shape or ()) for value in outputs]
    for value in between:
        value.shape = None
    if not _sizes(outputs) <= _sizes(model.graph.inputs):
        for value in outputs:
            value.shape = None
        ShapeInferencePass()(model)
        for value, before in zip(outputs, declared, strict=True):
            after = before if value.shape is None else list(value.shape)
            merged = [new if isinstance(new, int) else old for old, new in zip(before, after, strict=True)]
            value.shape = ir.Shape(merged)
    for value in between:
        value.shape = value.type = None


def _sizes(values: Iterable[ir.Value]) -> set[str | None]:
    """The names of the sizes that vary."""
    return {size.value for value in values for size in value.shape or () if isinstance(size, ir.SymbolicDim)}


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """The data of an initializer."""
    assert value.const_value is not None
    return value.const_value


def name_of(value: ir.Value) -> str:
    """The name of a value that has one."""
    assert value.name is not None
    return value.name


def original_weight(nested: NestedNode) -> tuple[str, ir.TensorProtocol]:
    """The name and the data of a layer's dense weight as the store has it: `[d_in, d_out]`, as `MatMul` reads it. It
    has no prefix to keep, so nothing is left for the runtime to fold.

    Raises:
        ExportError: the dense weights were not kept.
    """
    if nested.weight is None:
        raise ExportError(
            f"the dense rung needs the original weight of {nested.layer!r}, which was not kept",
            "adapt again with the dense weights kept, or export without the dense rung",
        )
    return f"{name_of(nested.weight)}.T", transposed(tensor_of(nested.weight))


def add_bias(tape: Tape, product: ir.Value, bias: ir.Value | None) -> ir.Value:
    """`product + bias`, or `product` where the layer has none."""
    return product if bias is None else tape.op("Add", [product, bias])
