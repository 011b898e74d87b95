"""The traced model: an ONNX graph in which every nested layer is still one node.

nsn_edge::NestedLinear(x, A, B, bias?, weight?) -> y        attribute `layer`: the layer's name
  x      [..., d_in]
  A      [R, d_in]      rank-major, so that rank r is its first r rows
  B      [R, d_out]     likewise (the paper's B, transposed)
  bias   [d_out]        or absent
  weight [d_out, d_in]  the original dense weight, or absent
  y      [..., d_out] = x A_r^T B_r + bias
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nsn_edge.bundle import TensorSpec
from nsn_edge.export.weights import shape_of
from nsn_edge.ladder import RankLadder

DOMAIN = "nsn_edge"
NESTED_LINEAR = "NestedLinear"

PRECISIONS = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16"}
"""The weights that can be exported, by the names that the manifest has for them."""


@dataclass(frozen=True)
class Graph:
    """What tracing yields and every lowering starts from."""

    model: ir.Model
    """ONNX with `NestedLinear` nodes; factors are initializers that view the torch parameters, not copies."""
    ladder: RankLadder
    """The layers that the nodes name."""

    @property
    def precision(self) -> str:
        """Of the weights, one of `PRECISIONS`."""
        dtype = nested_nodes(self.model)[0].a.dtype
        assert dtype is not None
        return PRECISIONS[dtype]


def transposed(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A matrix transposed, laid out as such: made anew each time it is read and kept by nobody."""
    shape = ir.Shape(tuple(reversed(shape_of(tensor))))
    return ir.LazyTensor(lambda: ir.Tensor(np.ascontiguousarray(tensor.numpy().T)), dtype=tensor.dtype, shape=shape)


def truncated(graph: Graph, rows: Mapping[str, int]) -> Graph:
    """The graph with each named layer's factors cut to their first rows (views, not copies).

    A bundle that serves its rungs alone has no use for the directions past the highest of them.
    """
    model = graph.model.clone()
    for nested in nested_nodes(model):
        for factor in (nested.a, nested.b):
            tensor = factor.const_value
            assert tensor is not None
            prefix = ir.Tensor(tensor.numpy()[: rows[nested.layer]], name=tensor.name)
            factor.const_value, factor.shape = prefix, ir.Shape(prefix.shape)
    return Graph(model, graph.ladder)


@dataclass(frozen=True)
class NestedNode:
    """A `NestedLinear` node, taken apart."""

    layer: str
    x: ir.Value
    a: ir.Value
    b: ir.Value
    bias: ir.Value | None
    weight: ir.Value | None
    y: ir.Value


def is_nested_linear(node: ir.Node) -> bool:
    """Whether a node is the one that lowerings replace."""
    return node.domain == DOMAIN and node.op_type == NESTED_LINEAR


def nested_nodes(model: ir.Model) -> list[NestedNode]:
    """Every `NestedLinear` node of a graph, in its order."""
    return [take_apart(node) for node in model.graph if is_nested_linear(node)]


def take_apart(node: ir.Node) -> NestedNode:
    """A `NestedLinear` node's parts, as they are now: another replacement may change its `x`."""
    # Inputs that are absent at the end may have been cut off, as ONNX allows: a model without its dense weights.
    x, a, b, bias, weight = (*node.inputs, None, None)[:5]
    assert x is not None
    assert a is not None
    assert b is not None
    return NestedNode(node.attributes["layer"].as_string(), x, a, b, bias, weight, node.outputs[0])


def spec_of(value: ir.Value) -> TensorSpec:
    """A graph's input or output as the manifest describes it."""
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(value.name, str(value.dtype.numpy()), shape)
