"""A bundle's graph as TensorRT's network, and the two changes that it needs there.

* `follow_ranks_`: the `sliced` graph looks a layer's rank up in a table, whose result the builder cannot foresee ("was
  not able to infer kOPT"): it would choose kernels for rank 1. Written as arithmetic, it can.
* `lower_precision_`: for libraries without precision flags. Linear layers alone are lowered, weights and all;
  attention, normalisation and whatever else was float32 stay that. (Around attention's products the casts break its
  fusion, and with TensorRT-RTX 1.7 the build.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.bundle.manifest import RANK_INPUT
from nsn_edge.errors import EngineError
from nsn_edge.export.tensorrt.library import Library
from nsn_edge.ladder import RankCurve

_LONGEST = 400


@dataclass
class Network:
    """A parsed network, and what has to live as long."""

    library: Library
    builder: Any
    definition: Any
    parser: Any
    arrays: list[npt.NDArray[Any]] = field(default_factory=list)
    """Weights that the library reads where they are."""

    @property
    def inputs(self) -> list[Any]:
        """The network's input tensors."""
        return [self.definition.get_input(i) for i in range(self.definition.num_inputs)]

    def layers(self) -> list[Any]:
        """Every layer, in order."""
        return [self.definition.get_layer(i) for i in range(self.definition.num_layers)]

    def constant(self, array: npt.NDArray[Any], dtype: Any = None) -> Any:
        """A tensor of these values; with `dtype` the array's bits are read as that type."""
        array = np.ascontiguousarray(array)
        self.arrays.append(array)
        trt = self.library.module
        weights = trt.Weights(array) if dtype is None else trt.Weights(dtype, array.ctypes.data, array.size)
        return self.definition.add_constant(array.shape, weights).get_output(0)


def parse(library: Library, graph_path: Path) -> Network:
    """Read an ONNX file, its external weights included.

    Raises:
        EngineError: the parser refuses it; with the node and the parser's own words.
    """
    trt = library.module
    library.logger.forget()
    builder = trt.Builder(library.logger)
    # Before version 10 a network had to be told that its batch dimension is explicit; since then there is no other.
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    flags = 1 << int(explicit) if explicit is not None and _major(library) < 10 else 0
    definition = builder.create_network(flags)
    parser = trt.OnnxParser(definition, library.logger)
    if not parser.parse_from_file(str(graph_path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise EngineError(
            f"{library.title} refuses {graph_path.name}{_complaint(errors)}",
            "engines are built from graphs of the forms static and sliced",
        )
    return Network(library, builder, definition, parser)


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
    producers = _producers(layers)
    readers = _readers(layers)
    tables = [(curve, curve.table()) for curve in set(curves)]
    ranks = [tensor for tensor in network.inputs if tensor.name == RANK_INPUT]
    replaced = 0
    for layer in layers if ranks else ():
        source = producers.get(layer.get_input(0).name) if layer.type == trt.LayerType.GATHER else None
        if source is None or source.type != trt.LayerType.CONSTANT:
            continue
        table = _values(network, source)
        curve = next((curve for curve, known in tables if np.array_equal(known, table)), None)
        if curve is not None:
            rank = network.definition.add_shuffle(ranks[0])
            rank.reshape_dims = (1,)
            layer_rank = curve_arithmetic(_Tensor(network, rank.get_output(0)), curve).tensor
            _replace(readers, layer.get_output(0), layer_rank)
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
    """A shape tensor `[1]` with arithmetic."""

    def __init__(self, network: Network, tensor: Any) -> None:
        self.network, self.tensor = network, tensor

    def _with(self, operation: str, other: Any) -> _Tensor:
        trt = self.network.library.module
        if isinstance(other, _Tensor):
            right = other.tensor
        else:
            dtype = np.int32 if self.tensor.dtype == trt.DataType.INT32 else np.int64
            right = self.network.constant(np.array([other], dtype))
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


def lower_precision_(network: Network, precision: str) -> int:
    """Let every linear layer compute in `fp16` or `bf16`: cast its input, store its weights so, cast its output back.

    Returns:
        How many products were lowered.
    """
    trt = network.library.module
    kinds = trt.LayerType
    dtype, wide = (trt.DataType.HALF if precision == "fp16" else trt.DataType.BF16), trt.DataType.FLOAT
    layers = network.layers()
    producers, readers = _producers(layers), _readers(layers)
    moved = (kinds.SHUFFLE, kinds.SLICE)
    lowered: dict[str, Any] = {}

    def is_weight(tensor: Any) -> bool:
        """Whether a tensor is a float32 constant, moved or multiplied with another."""
        layer = producers.get(tensor.name)
        if layer is None:
            return False
        if layer.type == kinds.MATRIX_MULTIPLY:
            return all(is_weight(layer.get_input(i)) for i in range(2))
        if layer.type in moved:
            return is_weight(layer.get_input(0))
        return bool(layer.type == kinds.CONSTANT and tensor.dtype == wide)

    def low(tensor: Any) -> Any:
        if tensor.name not in lowered:
            lowered[tensor.name] = make_low(tensor)
        return lowered[tensor.name]

    def make_low(tensor: Any) -> Any:
        layer = producers.get(tensor.name)
        if layer is not None and layer.type == kinds.CONSTANT:
            return network.constant(*_rounded(_values(network, layer), precision, dtype))
        if layer is not None and layer.type in moved and is_weight(tensor) and len(readers[tensor.name]) == 1:
            layer.set_input(0, low(layer.get_input(0)))  # so that the engine stores the small weights, not the large
            return tensor
        return network.definition.add_cast(tensor, dtype).get_output(0)

    products = [layer for layer in layers if layer.type == kinds.MATRIX_MULTIPLY]
    chosen = [layer for layer in products if any(is_weight(layer.get_input(i)) for i in range(2))]
    inner = {layer.get_output(0).name for layer in chosen if is_weight(layer.get_output(0))}
    for layer in chosen:
        if layer.get_output(0).name in inner:  # factors multiplied out before anything runs: exactly, so in float32
            continue
        for i in range(2):
            layer.set_input(i, low(layer.get_input(i)))
        out = layer.get_output(0)
        restored = network.definition.add_cast(out, wide).get_output(0)
        _replace(readers, out, restored)
        _replace_output(network, out, restored)
    return len(chosen) - len(inner)


def _rounded(values: npt.NDArray[Any], precision: str, dtype: Any) -> tuple[npt.NDArray[Any], Any]:
    """Half precision as numpy knows it; bfloat16, which it does not, as the upper half of float32's bits, rounded to
    nearest, ties to even."""
    if precision == "fp16":
        return values.astype(np.float16), None
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), dtype


def _values(network: Network, constant: Any) -> npt.NDArray[Any]:
    constant.__class__ = network.library.module.IConstantLayer  # how the library's Python API narrows a layer
    shape = tuple(constant.shape)
    return np.asarray(constant.weights).reshape(shape)


def _producers(layers: list[Any]) -> dict[str, Any]:
    return {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}


def _readers(layers: list[Any]) -> dict[str, list[tuple[Any, int]]]:
    """By a tensor's name, the layers that take it and as which input."""
    readers: dict[str, list[tuple[Any, int]]] = {}
    for layer in layers:
        for i in range(layer.num_inputs):
            tensor = layer.get_input(i)
            if tensor is not None:
                readers.setdefault(tensor.name, []).append((layer, i))
    return readers


def _replace(readers: dict[str, list[tuple[Any, int]]], old: Any, new: Any) -> None:
    for layer, i in readers.get(old.name, ()):
        layer.set_input(i, new)


def _replace_output(network: Network, old: Any, new: Any) -> None:
    """If a tensor is an output of the network, let another be it, by the same name."""
    definition, name = network.definition, old.name
    if any(definition.get_output(i).name == name for i in range(definition.num_outputs)):
        definition.unmark_output(old)
        old.name = f"{name}.low"
        new.name = name
        definition.mark_output(new)


def _major(library: Library) -> int:
    return int(library.version.split(".")[0])


def _complaint(errors: list[Any]) -> str:
    """Node, operator and words of the first error, where the parser tells them."""
    if not errors:
        return ", and does not say why"

    def said(name: str) -> str:
        method: Callable[[], Any] | None = getattr(errors[0], name, None)
        return "" if method is None else " ".join(str(method()).split())

    node, operator = said("node_name"), said("node_operator")
    where = f" at node {node or said('node')!r}" + (f" ({operator})" if operator else "")
    return f"{where}: {said('desc')[:_LONGEST]}"
