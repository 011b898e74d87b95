"""Weights in fewer bits, so that rungs multiply with low precision instead of competing with it.

| precision | weights | activations | forms |
|---|---|---|---|
| `fp32` | float32 | float32 | all |
| `fp16` | float16 | float16 | all |
| `int8` | int8, a scale per row of A and per output of B | uint8, range taken at run time | `static` |
| `int4` | int4, a scale per block of 32 | float32 or int8, as the engine has it | `static` |

The dynamic forms slice, bind or mask float factors; in integers they would need a kernel that engines do not have (a
quantised product whose weights are not constants is repacked in every inference).
"""

from nsn_edge.export.precision.scheme import FORMS, chosen_forms, quantisation_of

__all__ = ["FORMS", "chosen_forms", "quantisation_of"]
