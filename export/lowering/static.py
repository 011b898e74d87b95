"""`static`: the graph of one rung. Plain ONNX; a rung is an ordinary model.

    factored    x -> MatMul(A_r^T) -> MatMul(B_r) -> + bias
    merged      x -> MatMul(A_r^T B_r) -> + bias        at and past the layer's break-even rank, unless `merge=False`
    dense       x -> MatMul(W^T) -> + bias              the original weights

`A_r^T` and the merged product are written as nodes over constants, not as tensors: the runtime folds them when
it loads the graph, so neither costs a byte of disk, and the factors stay shared by all rungs.

A merged product exists in memory once per rung. Where rungs shall share one mapped copy of the weights (an engine with
`share_weights`), nothing may be folded, so layers stay factored with `merge=False`.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from nsn_edge.export.graph import Graph, NestedNode
from nsn_edge.export.lowering.rewrite import Rewriter, add_bias, name_of, original_weight, tensor_of
from nsn_edge.export.weights import WeightStore
from nsn_edge.ladder import Rung


def lower_static(graph: Graph, rung: Rung, store: WeightStore, *, merge: bool = True) -> ir.Model:
    """The graph of one rung.

    Args:
        graph: traced.
        rung: which.
        store: holds the weights.
        merge: multiply the factors of layers at and past their break-even rank.

    Raises:
        RankError: the rung's rank is outside `1..R`.
        ExportError: the rung is dense and the dense weights were not kept.
    """
    rewriter = Rewriter(graph, store)
    if rung.dense:
        rewriter.replace_all(_dense)
        return rewriter.finish("dense")
    ranks = graph.ladder.layer_ranks(rung.rank)
    layers = {layer.name: layer for layer in graph.ladder.layers}

    def build(rewriter: Rewriter, tape: Tape, nested: NestedNode) -> ir.Value:
        rank = ranks[nested.layer]
        a = rewriter.stored(name_of(nested.a), tensor_of(nested.a), rows=rank)
        b = rewriter.stored(name_of(nested.b), tensor_of(nested.b), rows=rank)
        a_t = tape.op("Transpose", [a], {"perm": [1, 0]})
        if merge and layers[nested.layer].is_merged(rank):
            product = tape.op("MatMul", [nested.x, tape.op("MatMul", [a_t, b])])
        else:
            product = tape.op("MatMul", [tape.op("MatMul", [nested.x, a_t]), b])
        return add_bias(tape, product, nested.bias)

    rewriter.replace_all(build)
    return rewriter.finish(f"rank-{rung.rank}")


def _dense(rewriter: Rewriter, tape: Tape, nested: NestedNode) -> ir.Value:
    weight = rewriter.stored(*original_weight(nested))
    return add_bias(tape, tape.op("MatMul", [nested.x, weight]), nested.bias)
