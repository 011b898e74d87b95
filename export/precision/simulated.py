"""The torch model computing as a quantised bundle does: what `verify` holds such a bundle to.

Each layer that the bundle quantised gets a `forward` of the same arithmetic in floats: the weights that the integers
and scales stand for (made by the same functions as the export's), and activations rounded to 255 steps of their range.
A graph must agree with this closely, whatever the quantisation costs; what it costs is the distance between this and
the model as it was.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from nsn_edge.bundle.quantisation import Quantisation
from nsn_edge.export.precision.int4 import quantise_blocks, unpack
from nsn_edge.export.precision.int8 import SMALLEST_ROW, quantise
from nsn_edge.layers import NSNLinear, ladder_of, nsn_layers


@contextlib.contextmanager
def as_quantised(model: nn.Module, how: Quantisation, only: Collection[str] | None = None) -> Iterator[None]:
    """Let a float32 model compute as the bundle does, at whatever rank its layers are set to inside.

    Args:
        model: the checkpoint's; as before on leaving.
        how: as the bundle's manifest has it, at the rung.
        only: nested layers to change; None for all.
    """
    shadowed: list[nn.Module] = []
    break_even = {layer.name: layer.break_even_rank for layer in ladder_of(model).layers}
    try:
        for name, layer in nsn_layers(model).items():
            if only is not None and name not in only:
                continue
            kept = name in how.kept
            original_from = break_even[name] if how.originals and layer.weight is not None else None
            layer.forward = functools.partial(  # type: ignore[method-assign]
                _nested, layer, _Weights(name, layer, "int8" if kept else how.precision), original_from, kept
            )
            shadowed.append(layer)
        for module, forward in _outside(model, how):
            module.forward = forward
            shadowed.append(module)
        yield
    finally:
        for module in shadowed:
            module.__dict__.pop("forward", None)


class _Weights:
    """A nested layer's weights as the bundle has them, each computed when it is first needed."""

    def __init__(self, name: str, layer: NSNLinear, precision: str) -> None:
        self._name = name
        self._layer = layer
        self.precision = precision

    @functools.cached_property
    def a(self) -> Tensor:
        """`[R, d_in]`."""
        if self.precision == "int4":
            return _four_bits(f"{self._name}.A", self._layer.A.t()).t()
        return _eight_bits(f"{self._name}.A", self._layer.A, 1)

    @functools.cached_property
    def b(self) -> Tensor:
        """`[R, d_out]`."""
        if self.precision == "int4":
            return _four_bits(f"{self._name}.B", self._layer.B)
        return _eight_bits(f"{self._name}.B", self._layer.B, 0)

    @functools.cached_property
    def dense(self) -> Tensor:
        """`[d_in, d_out]`."""
        assert self._layer.weight is not None
        weight = self._layer.weight.t()
        if self.precision == "int4":
            return _four_bits(f"{self._name}.weight", weight)
        return _eight_bits(f"{self._name}.weight", weight, 0)


def _nested(layer: NSNLinear, weights: _Weights, original_from: int | None, kept: bool, x: Tensor) -> Tensor:
    """A nested layer's `forward`."""
    rounded = rounded_activations if weights.precision == "int8" else _as_it_is
    size = x.abs().amax(dim=-1, keepdim=True) + SMALLEST_ROW if kept else None
    x = x if size is None else x / size
    if layer.dense or (original_from is not None and layer.rank >= original_from):
        product = rounded(x) @ weights.dense
    else:
        hidden = rounded(x) @ weights.a[: layer.rank].t()
        product = rounded(hidden) @ weights.b[: layer.rank]
    product = product if size is None else product * size
    return product if layer.bias is None else product + layer.bias


def rounded_activations(x: Tensor) -> Tensor:
    """A tensor rounded as `DynamicQuantizeLinear` does: 255 steps over its range, which is made to include zero."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    if high == low:
        return x
    scale = (high - low) / 255
    zero_point = torch.round((-low / scale).clamp(0, 255))
    steps = (torch.round(x / scale) + zero_point).clamp(0, 255)
    return (steps - zero_point) * scale


def _outside(model: nn.Module, how: Quantisation) -> Iterator[tuple[nn.Module, Any]]:
    """Modules besides the nested layers whose weights are quantised, with their `forward`. A weight that several
    modules share (a tied head) is known in the graph by the name of one of them."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tables = {id(parameters[name]): name for name in how.tables if name in parameters}
    products = {
        id(parameters[plain]): name for name in how.products if (plain := name.removesuffix(".T")) in parameters
    }
    for module in model.modules():
        key = id(getattr(module, "weight", None))
        if isinstance(module, nn.Embedding) and key in tables:
            yield module, functools.partial(_look_up, _eight_bits(tables[key], module.weight, 1))
        elif isinstance(module, nn.Linear) and key in products:
            weight = _eight_bits(products[key], module.weight, 1)
            yield module, functools.partial(_multiply, weight, module.bias)


def _look_up(table: Tensor, ids: Tensor) -> Tensor:
    return embedding(ids, table)


def _multiply(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return linear(rounded_activations(x), weight, bias)


def _eight_bits(name: str, matrix: Tensor, axis: int) -> Tensor:
    integers, scales = quantise(name, matrix.detach().numpy(), axis=axis)
    return torch.from_numpy(integers * (scales[:, None] if axis == 1 else scales))


def _four_bits(name: str, matrix: Tensor) -> Tensor:
    """`matrix [inputs, outputs]`."""
    packed, scales = quantise_blocks(name, np.ascontiguousarray(matrix.detach().numpy()))
    return torch.from_numpy(unpack(packed, scales, len(matrix)))


def _as_it_is(x: Tensor) -> Tensor:
    return x
