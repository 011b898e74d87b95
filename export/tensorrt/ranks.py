"""The rank as arithmetic on shapes.

The `sliced` graph looks a layer's rank up in a table. TensorRT's builder cannot foresee the result ("was not able to
infer kOPT value(s)") and would choose kernels for rank 1; whole-number operations with the same result it follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from nsn_edge.bundle.manifest import RANK_INPUT
from nsn_edge.export.tensorrt.network import Network, producers_of, readers_of, replace_, values_of
from nsn_edge.ladder import RankCurve


def follow_ranks_(network: Network, curves: Iterable[RankCurve]) -> int:
    """Replace each look-up of a layer's rank by arithmetic with the same result at every rank.

    Args:
        network: of the `sliced` graph.
        curves: of the bundle's layers.

    Returns:
        How many look-ups were replaced.
    """
    trt = network.library.module
    layers = network.layers()
    producers = producers_of(layers)
    readers = readers_of(layers)
    tables = [(curve, curve.table()) for curve in set(curves)]
    ranks = [tensor for tensor in network.inputs if tensor.name == RANK_INPUT]
    replaced = 0
    for layer in layers if ranks else ():
        source = producers.get(layer.get_input(0).name) if layer.type == trt.LayerType.GATHER else None
        if source is None or source.type != trt.LayerType.CONSTANT:
            continue
        table = values_of(network, source)
        curve = next((curve for curve, known in tables if np.array_equal(known, table)), None)
        if curve is not None:
            rank = network.definition.add_shuffle(ranks[0])
            rank.reshape_dims = tuple(layer.get_output(0).shape)  # [1], or a scalar
            layer_rank = curve_arithmetic(_Tensor(network, rank.get_output(0)), curve).tensor
            replace_(readers, layer.get_output(0), layer_rank)
            replaced += 1
    return replaced


def curve_arithmetic(rank: Any, curve: RankCurve) -> Any:
    """`curve(rank)` by operations that TensorRT can follow on shapes.

    Args:
        rank: anything with `+`, `-`, `*`, `//` by whole numbers and with itself, and `least(n)`, `most(n)`, which bound
            it from below and above.
        curve: of a layer.
    """
    value: Any = None
    for (k0, r0), (k1, r1) in zip(curve.knots, curve.knots[1:], strict=False):
        if r1 > r0:
            steps = (rank - k0).least(0).most(k1 - k0)
            risen = steps if r1 - r0 == k1 - k0 else steps * (r1 - r0) // (k1 - k0)
            value = risen if value is None else value + risen
    if value is None:  # a flat curve
        return rank * 0 + curve.full_rank
    value = value + curve.knots[0][1]
    if curve.align == 1:
        return value
    aligned = (value // curve.align * curve.align).least(value.most(curve.align - 1))
    at_full_rank = (value - (curve.full_rank - 1)).least(0).most(1)
    return aligned.least(at_full_rank * curve.full_rank)


class _Tensor:
    """A shape tensor of one number, with arithmetic."""

    def __init__(self, network: Network, tensor: Any) -> None:
        self.network, self.tensor = network, tensor

    def _with(self, operation: str, other: Any) -> _Tensor:
        trt = self.network.library.module
        if isinstance(other, _Tensor):
            right = other.tensor
        else:
            dtype = np.int32 if self.tensor.dtype == trt.DataType.INT32 else np.int64
            right = self.network.constant(np.full(tuple(self.tensor.shape), other, dtype))
        layer = self.network.definition.add_elementwise(
            self.tensor, right, getattr(trt.ElementWiseOperation, operation)
        )
        return _Tensor(self.network, layer.get_output(0))

    def __add__(self, other: Any) -> _Tensor:
        return self._with("SUM", other)

    def __sub__(self, other: Any) -> _Tensor:
        return self._with("SUB", other)

    def __mul__(self, other: Any) -> _Tensor:
        return self._with("PROD", other)

    def __floordiv__(self, other: Any) -> _Tensor:
        return self._with("FLOOR_DIV", other)

    def least(self, bound: Any) -> _Tensor:
        return self._with("MAX", bound)

    def most(self, bound: Any) -> _Tensor:
        return self._with("MIN", bound)
