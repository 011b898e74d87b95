"""`static` in int8 or int4: the graph of one rung over quantised weights that all rungs share.

    factored    x -> product(A_r) -> product(B_r) -> + bias       the first rows, or blocks, of the stored integers
    original    x -> product(W)   -> + bias                       the dense rung, and layers past their break-even rank
    kept        x / t -> product ... -> * t -> + bias             t: the largest magnitude of each token

A kept layer is a sensitive one, at a rung that loses little enough to notice. What hurts it is one range for all tokens
of its input (weights in int8 cost a twentieth of that on MiniLM), so it gets one per token: each row is divided by its
largest magnitude first, and the product multiplied by it again, which no operator with a scale per row is needed for.

Past break-even the product of the factors would cost what the original costs, be worse, and be another tensor per
rung: the original stands there instead, where the checkpoint has it. Where it has not, the layer stays factored.

What every engine rebuilds from standard operators (onnxruntime fuses them into its own) is written with those:

    product, int8    DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(scale of x * scales of the weight)
    product, int4    MatMulNBits                                   onnxruntime's; there is no standard one
    table, int8      Gather(integers) -> Cast -> Mul(Gather(scales))

Layers that read the same tensor (query, key and value) share its quantisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from nsn_edge.bundle.quantisation import Quantisation
from nsn_edge.errors import ExportError
from nsn_edge.export.graph import Graph, NestedNode, is_nested_linear, transposed
from nsn_edge.export.lowering.rewrite import Rewriter, add_bias, name_of, tensor_of
from nsn_edge.export.precision.int4 import BLOCK_SIZE, quantise_blocks
from nsn_edge.export.precision.int8 import SMALLEST_ROW, quantise
from nsn_edge.export.precision.outside import is_table, matrix_of_product
from nsn_edge.export.weights import WeightStore, shape_of
from nsn_edge.ladder import Rung

_MICROSOFT = "com.microsoft"
_INT8_ACTIVATIONS = 4
"""`accuracy_level` of `MatMulNBits`: activations may be rounded to int8 per block, which is what makes it fast."""


def lower_quantised(
    graph: Graph, rung: Rung, store: WeightStore, how: Quantisation, *, rows: Mapping[str, int]
) -> ir.Model:
    """The graph of one rung.

    Args:
        graph: traced, in float32, its factors whole: scales are taken over all of their rows.
        rung: which.
        store: holds the weights.
        how: precision, and what is exempt from it.
        rows: by layer, how many rows of its factors the bundle's highest factored rung needs.

    Raises:
        RankError: the rung's rank is outside `1..R`.
        ExportError: the rung is dense and the dense weights were not kept, or a weight is not finite.
    """
    how = how.at_rung(rung.rank)
    rewriter = Rewriter(graph, store)
    eight_bits = _Int8(rewriter, rows)
    products: _Arithmetic = eight_bits if how.precision == "int8" else _Int4(rewriter, rows)
    sizes: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    ranks = {} if rung.dense else graph.ladder.layer_ranks(rung.rank)
    layers = {layer.name: layer for layer in graph.ladder.layers}

    def build(rewriter: Rewriter, tape: Tape, nested: NestedNode) -> ir.Value:
        kept = nested.layer in how.kept
        arithmetic = eight_bits if kept else products
        x = nested.x
        if kept:
            if x not in sizes:
                sizes[x] = _per_token(rewriter, tape, x)
            x, size = sizes[x]
        if rung.dense and nested.weight is None:
            raise ExportError(
                f"the dense rung needs the original weight of {nested.layer!r}, which was not kept",
                "adapt again with the dense weights kept, or export without the dense rung",
            )
        if rung.dense or (
            how.originals and nested.weight is not None and layers[nested.layer].is_merged(ranks[nested.layer])
        ):
            assert nested.weight is not None
            weight = tensor_of(nested.weight)
            product = arithmetic.outputs(tape, x, f"{name_of(nested.weight)}.T", transposed(weight))
        else:
            rank = ranks[nested.layer]
            hidden = arithmetic.first(tape, x, nested.a, rank)
            product = arithmetic.second(tape, hidden, nested.b, rank)
        return add_bias(tape, tape.op("Mul", [product, size]) if kept else product, nested.bias)

    rewriter.replace_all(build)
    _replace_outside(rewriter, how, eight_bits)
    return rewriter.finish("dense" if rung.dense else f"rank-{rung.rank}")


def _per_token(rewriter: Rewriter, tape: Tape, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """`x` with every row divided by its largest magnitude, and those magnitudes `[..., 1]`."""
    last = rewriter.constant("axis.last", ir.Tensor(np.array([-1], dtype=np.int64)))
    smallest = rewriter.constant("smallest", ir.Tensor(np.array(SMALLEST_ROW, dtype=np.float32)))
    largest = tape.op("ReduceMax", [tape.op("Abs", [x]), last], {"keepdims": 1})
    size = tape.op("Add", [largest, smallest])  # not Max, which is twice as slow
    return tape.op("Div", [x, size]), size


def _replace_outside(rewriter: Rewriter, how: Quantisation, eight_bits: _Int8) -> None:
    """Quantise the tables and products that `how` names."""
    for node in [node for node in rewriter.model.graph if not is_nested_linear(node)]:
        tape = Tape()
        if is_table(node) and name_of_first(node) in how.tables:
            output = eight_bits.table(tape, node)
        elif (matrix := matrix_of_product(node)) is not None and name_of(matrix[0]) in how.products:
            x = node.inputs[0]
            assert x is not None
            value, is_transposed = matrix
            if is_transposed:
                output = eight_bits.rows(tape, x, value)
            else:
                output = eight_bits.outputs(tape, x, name_of(value), tensor_of(value))
        else:
            continue
        (old,) = node.outputs
        name, old.name = old.name, None
        output.name, output.shape, output.type = name, old.shape, old.type
        ir.convenience.replace_nodes_and_values(rewriter.model.graph, node, [node], list(tape.nodes), [old], [output])


def name_of_first(node: ir.Node) -> str:
    """The name of a node's first input."""
    value = node.inputs[0]
    assert value is not None
    return name_of(value)


class _Arithmetic(Protocol):
    """How the products of a layer are computed."""

    def first(self, tape: Tape, x: ir.Value, a: ir.Value, rank: int) -> ir.Value:
        """`x A_r^T`."""

    def second(self, tape: Tape, hidden: ir.Value, b: ir.Value, rank: int) -> ir.Value:
        """`hidden B_r`."""

    def outputs(self, tape: Tape, x: ir.Value, name: str, matrix: ir.TensorProtocol) -> ir.Value:
        """`x` times `matrix [inputs, outputs]`, which is stored under the name."""


class _Int8:
    """Products of dynamically quantised activations with int8 weights, see `nsn_edge.export.precision.int8`."""

    def __init__(self, rewriter: Rewriter, rows: Mapping[str, int]) -> None:
        self._rewriter = rewriter
        self._rows = _by_tensor(rewriter, rows)
        self._quantised: dict[ir.Value, tuple[ir.Value, ...]] = {}

    def first(self, tape: Tape, x: ir.Value, a: ir.Value, rank: int) -> ir.Value:
        integers, scales = self._stored(name_of(a), tensor_of(a), axis=1, rows=self._rows[name_of(a)], rank=rank)
        return self._product(tape, x, tape.op("Transpose", [integers], {"perm": [1, 0]}), scales)

    def second(self, tape: Tape, hidden: ir.Value, b: ir.Value, rank: int) -> ir.Value:
        return self._product(
            tape, hidden, *self._stored(name_of(b), tensor_of(b), axis=0, rows=self._rows[name_of(b)], rank=rank)
        )

    def outputs(self, tape: Tape, x: ir.Value, name: str, matrix: ir.TensorProtocol) -> ir.Value:
        """`x` times `matrix [inputs, outputs]`."""
        return self._product(tape, x, *self._stored(name, matrix, axis=0))

    def rows(self, tape: Tape, x: ir.Value, matrix: ir.Value) -> ir.Value:
        """`x` times the transpose of `matrix [outputs, inputs]`, which may be a table as well."""
        integers, scales = self._stored(name_of(matrix), tensor_of(matrix), axis=1)
        return self._product(tape, x, tape.op("Transpose", [integers], {"perm": [1, 0]}), scales)

    def table(self, tape: Tape, node: ir.Node) -> ir.Value:
        """What replaces a `Gather` of rows."""
        matrix, indices = node.inputs
        assert matrix is not None
        integers, scales = self._stored(name_of(matrix), tensor_of(matrix), axis=1)
        found = tape.op("Cast", [tape.op("Gather", [integers, indices], {"axis": 0})], {"to": ir.DataType.FLOAT})
        scale = tape.op("Gather", [scales, indices], {"axis": 0})
        last = self._rewriter.constant("axis.last", ir.Tensor(np.array([-1], dtype=np.int64)))
        return tape.op("Mul", [found, tape.op("Unsqueeze", [scale, last])])

    def _stored(
        self, name: str, matrix: ir.TensorProtocol, *, axis: int, rows: int | None = None, rank: int | None = None
    ) -> tuple[ir.Value, ir.Value]:
        """Integers and scales in the store, the first `rows` rows of them, referred to by the first `rank`. Whether
        those are in the store already is known by name: then nothing is computed."""
        count, columns = rows or shape_of(matrix)[0], shape_of(matrix)[1]
        size = columns if axis == 0 else count

        def part(index: int, length: int) -> np.ndarray:
            return np.asarray(quantise(name, matrix.numpy(), axis=axis)[index][:length])

        integers = _lazy(partial(part, 0, count), ir.DataType.INT8, (count, columns))
        scales = _lazy(partial(part, 1, size), ir.DataType.FLOAT, (size,))
        return (
            self._rewriter.stored(f"{name}.int8", integers, rank),
            self._rewriter.stored(f"{name}.scale", scales, rank if axis == 1 else None),
        )

    def _product(self, tape: Tape, x: ir.Value, integers: ir.Value, scales: ir.Value) -> ir.Value:
        if x not in self._quantised:
            self._quantised[x] = tuple(tape.op_multi_out("DynamicQuantizeLinear", [x], num_outputs=3))
        steps, scale, zero_point = self._quantised[x]
        sums = tape.op("MatMulInteger", [steps, integers, zero_point])
        return tape.op("Mul", [tape.op("Cast", [sums], {"to": ir.DataType.FLOAT}), tape.op("Mul", [scale, scales])])


class _Int4:
    """Products with int4 weights, see `nsn_edge.export.precision.int4`."""

    def __init__(self, rewriter: Rewriter, rows: Mapping[str, int]) -> None:
        self._rewriter = rewriter
        self._rows = _by_tensor(rewriter, rows)

    def first(self, tape: Tape, x: ir.Value, a: ir.Value, rank: int) -> ir.Value:
        tensor = tensor_of(a)
        d_in = shape_of(tensor)[1]
        matrix = transposed(tensor)
        packed, scales = self._stored(name_of(a), matrix, self._rows[name_of(a)], rank, blocks_first=False)
        return self._product(tape, x, packed, scales, (d_in, rank))

    def second(self, tape: Tape, hidden: ir.Value, b: ir.Value, rank: int) -> ir.Value:
        tensor = tensor_of(b)
        rows = -(-self._rows[name_of(b)] // BLOCK_SIZE)
        blocks = -(-rank // BLOCK_SIZE)
        packed, scales = self._stored(name_of(b), tensor, rows, blocks, blocks_first=True)
        by_output = tape.op("Transpose", [packed], {"perm": [1, 0, 2]})
        return self._product(
            tape, hidden, by_output, tape.op("Transpose", [scales], {"perm": [1, 0]}), (rank, shape_of(tensor)[1])
        )

    def outputs(self, tape: Tape, x: ir.Value, name: str, matrix: ir.TensorProtocol) -> ir.Value:
        """`x` times `matrix [inputs, outputs]`."""
        sizes = shape_of(matrix)
        return self._product(tape, x, *self._stored(name, matrix, sizes[1], None, blocks_first=False), sizes)

    def _stored(
        self, name: str, matrix: ir.TensorProtocol, rows: int, prefix: int | None, *, blocks_first: bool
    ) -> tuple[ir.Value, ir.Value]:
        """Packed blocks and scales in the store, `rows` of their slow axis, referred to by the first `prefix`."""
        inputs, outputs = shape_of(matrix)
        blocks = -(-inputs // BLOCK_SIZE)
        slow_and_next = (rows, outputs) if blocks_first else (rows, blocks)

        def part(index: int) -> np.ndarray:
            found = quantise_blocks(name, matrix.numpy())[index]
            return np.ascontiguousarray((found.swapaxes(0, 1) if blocks_first else found)[:rows])

        packed = _lazy(partial(part, 0), ir.DataType.UINT8, (*slow_and_next, BLOCK_SIZE // 2))
        scales = _lazy(partial(part, 1), ir.DataType.FLOAT, slow_and_next)
        return (
            self._rewriter.stored(f"{name}.int4", packed, prefix),
            self._rewriter.stored(f"{name}.int4.scale", scales, prefix),
        )

    def _product(self, tape: Tape, x: ir.Value, packed: ir.Value, scales: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
        flat = self._rewriter.constant("shape.flat", ir.Tensor(np.array([-1], dtype=np.int64)))
        settings = {"K": sizes[0], "N": sizes[1], "bits": 4, "block_size": BLOCK_SIZE}
        return tape.op(
            "MatMulNBits",
            [x, packed, tape.op("Reshape", [scales, flat])],
            {**settings, "accuracy_level": _INT8_ACTIVATIONS},
            domain=_MICROSOFT,
            version=1,
        )


def _by_tensor(rewriter: Rewriter, rows: Mapping[str, int]) -> dict[str, int]:
    """Rows by the names of the factors instead of the layers'."""
    return {f"{layer}.{factor}": count for layer, count in rows.items() for factor in "AB"}


def _lazy(make: Callable[[], np.ndarray], dtype: ir.DataType, shape: tuple[int, ...]) -> ir.TensorProtocol:
    return ir.LazyTensor(lambda: ir.Tensor(np.ascontiguousarray(make())), dtype=dtype, shape=ir.Shape(shape))
