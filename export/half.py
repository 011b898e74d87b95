"""What the tracer needs to keep a float16 model in float16.

Its translation of attention writes a boolean mask as float32 numbers. In a float16 model everything after them is
promoted to float32, and the graph is then invalid where a float16 weight meets it. Here the mask is float16:

    mask? 0 : -inf  ->  attention  ->  0 where a row had nothing to attend to (padding), which is NaN otherwise
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.onnx import symbolic_helper

_ATTENTION = "aten::scaled_dot_product_attention"
_SINCE_OPSET = 14


@contextlib.contextmanager
def half_precision_attention() -> Iterator[None]:
    """Let the tracer translate attention by `_attention`."""
    torch.onnx.register_custom_op_symbolic(_ATTENTION, _attention, _SINCE_OPSET)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic(_ATTENTION, _SINCE_OPSET)  # type: ignore[attr-defined]


@symbolic_helper.parse_args("v", "v", "v", "v", "f", "b", "v", "b")
def _attention(g: Any, query: Any, key: Any, value: Any, mask: Any, *settings: Any) -> Any:
    from torch.onnx import symbolic_opset14

    if symbolic_helper._is_none(mask) or mask.type().dtype() != torch.bool:
        return symbolic_opset14.scaled_dot_product_attention(g, query, key, value, mask, *settings)
    kept, left_out = (g.op("Constant", value_t=torch.tensor([x], dtype=torch.float16)) for x in (0.0, -torch.inf))
    numbers = g.op("Where", mask, kept, left_out)
    numbers.setType(mask.type().with_dtype(torch.float16))
    answer = symbolic_opset14.scaled_dot_product_attention(g, query, key, value, numbers, *settings)
    return g.op("Where", g.op("IsNaN", answer), kept, answer)
