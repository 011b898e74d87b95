"""What is quantised besides the nested layers: embeddings that are looked up, and heads.

table     Gather(matrix [rows, features], ids)            int8, a scale per row
product   MatMul(x, matrix [inputs, outputs])             int8, a scale per output
          MatMul(x, Transpose(matrix [outputs, inputs]))  a tied head: the same integers as the table's
"""

from __future__ import annotations

import onnx_ir as ir

from nsn_edge.export.graph import Graph
from nsn_edge.export.weights import shape_of

_FEWEST_ELEMENTS = 1024
"""Smaller ones are left as they are: nothing is saved."""


def is_table(node: ir.Node) -> bool:
    """Whether a node looks up rows of a matrix of weights."""
    axis = node.attributes.get("axis")
    return (
        node.op_type == "Gather"
        and node.domain == ""
        and _is_matrix(node.inputs[0])
        and (axis is None or axis.as_int() == 0)
    )


def matrix_of_product(node: ir.Node) -> tuple[ir.Value, bool] | None:
    """The matrix of weights that a node multiplies by, and whether it is transposed first; None for other nodes."""
    if node.op_type != "MatMul" or node.domain != "":
        return None
    matrix = node.inputs[1]
    if matrix is None:
        return None
    if _is_matrix(matrix):
        return matrix, False
    maker = matrix.producer()
    if maker is not None and maker.op_type == "Transpose" and _is_matrix(maker.inputs[0]):
        source = maker.inputs[0]
        perm = maker.attributes.get("perm")
        assert source is not None
        return (source, True) if perm is None or perm.as_ints() == (1, 0) else None
    return None


def tables_of(graph: Graph) -> tuple[str, ...]:
    """Names of the matrices that are looked up, in the order of the graph."""
    return tuple(dict.fromkeys(str(node.inputs[0].name) for node in graph.model.graph if is_table(node)))  # type: ignore[union-attr]


def products_of(graph: Graph) -> tuple[str, ...]:
    """Names of the matrices that are multiplied by, in the order of the graph."""
    found = (matrix_of_product(node) for node in graph.model.graph)
    return tuple(dict.fromkeys(str(matrix[0].name) for matrix in found if matrix is not None))


def _is_matrix(value: ir.Value | None) -> bool:
    if value is None or value.const_value is None:
        return False
    tensor = value.const_value
    shape = shape_of(tensor)
    return tensor.dtype.is_floating_point() and len(shape) == 2 and shape[0] * shape[1] >= _FEWEST_ELEMENTS
