"""`sliced` and `masked`: one graph with the rank as an int64 scalar input, any rank of `1..R`.

    r_l = table_l[rank - 1]                    each layer's own curve, as a table; layers with one curve share it

    sliced   x -> MatMul(A[:r_l]^T) -> MatMul(B[:r_l]) -> + bias       less work at lower ranks
    masked   x -> MatMul(A^T) -> * (arange(R_l) < r_l) -> MatMul(B)    full work at every rank: the oracle

A rank outside `1..R` must fail, not clamp: `Gather` refuses an index past the table, and a rank below 1 is sent past
the table too (a negative index would silently count from its end).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from nsn_edge.bundle.manifest import RANK_INPUT
from nsn_edge.export.graph import Graph, NestedNode
from nsn_edge.export.lowering.rewrite import Rewriter, add_bias, name_of, tensor_of
from nsn_edge.export.weights import WeightStore
from nsn_edge.ladder import RankCurve


def lower_sliced(graph: Graph, store: WeightStore) -> ir.Model:
    """One graph that slices the factors to the rank of the call."""
    ranks = _RankInput(Rewriter(graph, store))

    def build(rewriter: Rewriter, tape: Tape, nested: NestedNode) -> ir.Value:
        rank = ranks.of_layer(nested.layer)
        a, b = (_slice_rows(rewriter, tape, factor, rank) for factor in (nested.a, nested.b))
        a_t = tape.op("Transpose", [a], {"perm": [1, 0]})
        return add_bias(tape, tape.op("MatMul", [tape.op("MatMul", [nested.x, a_t]), b]), nested.bias)

    return ranks.finish(build, "sliced")


def lower_masked(graph: Graph, store: WeightStore) -> ir.Model:
    """One graph that computes with all directions and zeroes those past the rank of the call."""
    ranks = _RankInput(Rewriter(graph, store))
    masks: dict[RankCurve, ir.Value] = {}

    def build(rewriter: Rewriter, tape: Tape, nested: NestedNode) -> ir.Value:
        curve = ranks.curves[nested.layer]
        if curve not in masks:
            directions = rewriter.constant(
                f"directions.{curve.full_rank}", ir.Tensor(np.arange(curve.full_rank, dtype=np.int64))
            )
            keep = ranks.tape.op("Less", [directions, ranks.of_layer(nested.layer)])
            masks[curve] = ranks.tape.op("Cast", [keep], {"to": int(tensor_of(nested.a).dtype)})
        a = rewriter.stored(name_of(nested.a), tensor_of(nested.a))
        b = rewriter.stored(name_of(nested.b), tensor_of(nested.b))
        hidden = tape.op("MatMul", [nested.x, tape.op("Transpose", [a], {"perm": [1, 0]})])
        return add_bias(tape, tape.op("MatMul", [tape.op("Mul", [hidden, masks[curve]]), b]), nested.bias)

    return ranks.finish(build, "masked")


class _RankInput:
    """The `rank` input and, per distinct curve, the layer rank computed from it (int64 `[1]`)."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self.curves = {layer.name: layer.curve for layer in rewriter.graph.ladder.layers}
        self.tape = Tape()
        self.rank = ir.Value(name=RANK_INPUT, shape=ir.Shape(()), type=ir.TensorType(ir.DataType.INT64))
        self._by_curve: dict[RankCurve, ir.Value] = {}
        top = rewriter.graph.ladder.max_rank
        self.rank_check = f"rank_outside_1..{top}"
        one = rewriter.constant("rank.one", ir.Tensor(np.array(1, dtype=np.int64)))
        past_end = rewriter.constant("rank.past_end", ir.Tensor(np.array([top], dtype=np.int64)))
        too_low = self.tape.op("Less", [self.rank, one])
        row = self.tape.op("Sub", [self.rank, one])
        self._index = self.tape.op("Where", [too_low, past_end, row])

    def of_layer(self, layer: str) -> ir.Value:
        """The layer's rank at the rank of the call."""
        curve = self.curves[layer]
        if curve not in self._by_curve:
            table = self.rewriter.constant(f"rank.table.{len(self._by_curve)}", ir.Tensor(curve.table()))
            self._by_curve[curve] = self.tape.op("Gather", [table, self._index], {"axis": 0})
            # Named for the error that an engine reports.
            self.tape.nodes[-1].name = f"{self.rank_check}.{len(self._by_curve)}"
        return self._by_curve[curve]

    def finish(self, build: Callable[[Rewriter, Tape, NestedNode], ir.Value], name: str) -> ir.Model:
        """Replace every layer, then put the input and the rank arithmetic in front of the graph."""
        self.rewriter.replace_all(build)
        graph = self.rewriter.model.graph
        first = graph.node(0)
        graph.inputs.append(self.rank)
        graph.insert_before(first, list(self.tape.nodes))
        return self.rewriter.finish(name)


def _slice_rows(rewriter: Rewriter, tape: Tape, factor: ir.Value, rank: ir.Value) -> ir.Value:
    zero = rewriter.constant("rank.zero", ir.Tensor(np.array([0], dtype=np.int64)))
    whole = rewriter.stored(name_of(factor), tensor_of(factor))
    # Rows, axis 0, from row 0. TensorRT's parser wants the axes spelled out.
    return tape.op("Slice", [whole, zero, rank, zero])
