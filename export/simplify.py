"""Take out of a trace what a tracer writes and no engine needs: constants node by node, arithmetic on them, repeats.

Of MiniLM's 558 traced nodes half are left. An engine would fold most of that when it loads a graph, unless it shares
its weights with others (folding makes copies, so there it is off) or holds one graph inside another (`gated`).

What is arithmetic on sizes, `sizes` tells beforehand where their names prove it.

Requires: nothing of the graph's shapes. Ensures: the same function; inputs, outputs and weights keep their names.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from nsn_edge.export.sizes import settle_sizes_

_SMALL = 1024
"""Bytes of input, and elements of output, up to which a node is computed: sizes and indices, never weights."""


def simplify_(model: ir.Model) -> None:
    """Fold, merge and clean a traced model in place."""
    # A tracer may note the example's sizes where they vary. Only what is inferred from the inputs may be folded.
    outputs = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape = None
    _fold(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    settle_sizes_(model)
    _fold(model)
    IdentityEliminationPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    DeduplicateInitializersPass(size_limit=_SMALL)(model)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)


def _fold(model: ir.Model) -> None:
    from onnxscript.optimizer import fold_constants

    fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=_SMALL,
        output_size_limit=_SMALL,
        should_fold=lambda node: None if _reads_little(node) else False,
    )


def _reads_little(node: ir.Node) -> bool:
    """The folder's own limit does not hold for every operator: it transposes weights of any size."""
    tensors = (value.const_value for value in node.inputs if value is not None)
    return all(tensor is None or tensor.nbytes <= _SMALL for tensor in tensors)
