"""A checkpoint in another float, and what the tracer needs to keep a float16 model in float16.

Its translation of attention writes a boolean mask as float32 numbers. In a float16 model everything after them is
promoted to float32, and the graph is then invalid where a float16 weight meets it. Here the mask is float16:

    mask? 0 : -inf  ->  attention  ->  0 where a row had nothing to attend to (padding), which is NaN otherwise
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.onnx import symbolic_helper

from nsn_edge.checkpoint import Checkpoint
from nsn_edge.errors import UsageError

_ATTENTION = "aten::scaled_dot_product_attention"
_SINCE_OPSET = 14


_LARGEST_HALF = torch.finfo(torch.float16).max


def with_weights_as(checkpoint: Checkpoint, precision: str | None) -> Checkpoint:
    """A checkpoint whose weights are float16 (`fp16`) or float32 (all other precisions start from that).

    The given one stays as it is. Nothing is copied that need not be: where the weights are so already it is returned
    itself, else each of them is converted once. What is computed when a model is made and not stored (rotary
    frequencies) keeps its precision, as it does when a float16 checkpoint is loaded.

    Args:
        checkpoint: its weights all of one float type, else it is returned as it is, for the tracer to refuse.
        precision: None to leave it as it is.

    Raises:
        UsageError: a weight is too large for float16.
    """
    wanted = torch.float16 if precision == "fp16" else torch.float32
    stored = {id(tensor): (name, tensor) for name, tensor in checkpoint.model.state_dict(keep_vars=True).items()}
    floats = {key: pair for key, pair in stored.items() if pair[1].is_floating_point()}
    if precision is None or {tensor.dtype for _, tensor in floats.values()} - {torch.float16, torch.float32}:
        return checkpoint
    if all(tensor.dtype == wanted for _, tensor in floats.values()):
        return checkpoint
    # `deepcopy` takes what the memo holds in place of a copy, so a weight shared by two modules stays shared.
    memo: dict[int, Any] = {}
    for key, (name, tensor) in floats.items():
        if wanted == torch.float16 and tensor.numel() and not tensor.detach().abs().max() <= _LARGEST_HALF:
            raise UsageError(f"{name} holds values past float16's largest, 65504", "export it as fp32")
        converted = tensor.detach().to(wanted)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[key] = torch.nn.Parameter(converted, requires_grad=False) if is_parameter else converted
    return replace(checkpoint, model=copy.deepcopy(checkpoint.model, memo))


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
