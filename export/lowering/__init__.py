"""Lowerings: from the one traced graph to a graph that a runtime can execute.

| form | rank | what it is for |
|---|---|---|
| `static` | fixed, one graph per rung | what the runtime uses by default; past break-even a layer is merged |
| `static`, quantised | likewise | int8 and int4 weights, scales the same at every rank |
| `sliced` | int64 input, any of `1..R` | one graph that does less work at lower ranks; the form that TensorRT takes |
| `gated` | int64 input, any of `1..R` | one graph that holds those of the rungs: full savings there |
| `bound` | none: factors are inputs, at a dense rung weights | zero copy of the mapped weights at any rank |
| `masked` | int64 input, any of `1..R` | one graph that saves nothing; the oracle that the others are checked against |

Each takes a `Graph` and the `WeightStore`, and returns a model whose large tensors all point into the store.
Requires: every `NestedLinear` names a layer of the ladder. Ensures: no `NestedLinear` is left; inputs, outputs and
their names are those of the traced graph, plus `rank` for the dynamic forms and the factors for `bound`.
"""

from nsn_edge.export.lowering.bound import lower_bound, lower_bound_dense
from nsn_edge.export.lowering.dynamic import lower_masked, lower_sliced
from nsn_edge.export.lowering.gated import lower_gated
from nsn_edge.export.lowering.quantised import lower_quantised
from nsn_edge.export.lowering.static import lower_static

__all__ = [
    "lower_bound",
    "lower_bound_dense",
    "lower_gated",
    "lower_masked",
    "lower_quantised",
    "lower_sliced",
    "lower_static",
]
