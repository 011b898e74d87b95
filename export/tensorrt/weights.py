"""What a builder does not do to weights by itself: products of constants, and lower precision where it has no flag.

* `multiply_out_`: past its break-even rank a layer stands in the graph as the product of its factors, which onnxruntime
  multiplies out when it loads the graph. TensorRT-RTX 1.7 does not: it would do so in every inference.
* `lower_precision_`: linear layers alone, weights and all; attention, normalisation and whatever else was float32 stay
  that. (Around attention's products the casts break its fusion, and with TensorRT-RTX 1.7 the build.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.export.tensorrt.network import Network, producers_of, readers_of, replace_, values_of


def multiply_out_(network: Network) -> int:
    """Replace each product of constants by a constant.

    Returns:
        How many products were replaced.
    """
    kinds = network.library.module.LayerType
    layers = network.layers()
    producers, readers = producers_of(layers), readers_of(layers)

    def is_constant(tensor: Any) -> bool:
        layer = producers.get(tensor.name)
        if layer is None:
            return False
        if layer.type == kinds.MATRIX_MULTIPLY:
            return all(is_constant(layer.get_input(i)) for i in range(2))
        if layer.type == kinds.SHUFFLE:
            return layer.num_inputs == 1 and is_constant(layer.get_input(0))
        return bool(layer.type == kinds.CONSTANT)

    def value(tensor: Any) -> npt.NDArray[Any]:
        layer = producers[tensor.name]
        if layer.type == kinds.CONSTANT:
            return values_of(network, layer)
        if layer.type == kinds.SHUFFLE:
            return _shuffled(network, layer, value(layer.get_input(0)))
        return _product(network, layer, value(layer.get_input(0)), value(layer.get_input(1)))

    products = [layer.get_output(0) for layer in layers if layer.type == kinds.MATRIX_MULTIPLY]
    constant = [out for out in products if is_constant(out)]
    for out in constant:
        replace_(readers, out, network.constant(value(out)))
    return len(constant)


def lower_precision_(network: Network, precision: str) -> int:
    """Let every linear layer compute in `fp16` or `bf16`: cast its input, store its weights so, cast its output back.

    Returns:
        How many products were lowered.
    """
    trt = network.library.module
    kinds = trt.LayerType
    dtype, wide = (trt.DataType.HALF if precision == "fp16" else trt.DataType.BF16), trt.DataType.FLOAT
    layers = network.layers()
    producers, readers = producers_of(layers), readers_of(layers)
    moved = (kinds.SHUFFLE, kinds.SLICE)
    lowered: dict[str, Any] = {}

    def is_weight(tensor: Any) -> bool:
        """Whether a tensor is a float32 constant, or one that was moved."""
        layer = producers.get(tensor.name)
        if layer is None:
            return False
        if layer.type in moved:
            return is_weight(layer.get_input(0))
        return bool(layer.type == kinds.CONSTANT and tensor.dtype == wide)

    def value_readers(tensor: Any) -> int:
        """How many read a tensor for more than its shape."""
        return sum(layer.type != kinds.SHAPE for layer, _ in readers[tensor.name])

    def low(tensor: Any) -> Any:
        if tensor.name not in lowered:
            lowered[tensor.name] = make_low(tensor)
        return lowered[tensor.name]

    def make_low(tensor: Any) -> Any:
        layer = producers.get(tensor.name)
        if layer is not None and layer.type == kinds.CONSTANT:
            return network.constant(*_rounded(values_of(network, layer), precision, dtype))
        if layer is not None and layer.type in moved and is_weight(tensor) and value_readers(tensor) == 1:
            layer.set_input(0, low(layer.get_input(0)))  # so that the engine stores the small weights, not the large
            return tensor
        return network.definition.add_cast(tensor, dtype).get_output(0)

    products = [layer for layer in layers if layer.type == kinds.MATRIX_MULTIPLY]
    chosen = [layer for layer in products if any(is_weight(layer.get_input(i)) for i in range(2))]
    for layer in chosen:
        for i in range(2):
            layer.set_input(i, low(layer.get_input(i)))
        out = layer.get_output(0)
        restored = network.definition.add_cast(out, wide).get_output(0)
        replace_(readers, out, restored)
        _replace_output(network, out, restored)
    return len(chosen)


def _replace_output(network: Network, old: Any, new: Any) -> None:
    """If a tensor is an output of the network, let another be it, by the same name."""
    definition, name = network.definition, old.name
    if any(definition.get_output(i).name == name for i in range(definition.num_outputs)):
        definition.unmark_output(old)
        old.name = f"{name}.low"
        new.name = name
        definition.mark_output(new)


def _rounded(values: npt.NDArray[Any], precision: str, dtype: Any) -> tuple[npt.NDArray[Any], Any]:
    """Half precision as numpy knows it; bfloat16, which it does not, as the upper half of float32's bits, rounded to
    nearest, ties to even."""
    if precision == "fp16":
        return values.astype(np.float16), None
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), dtype


def _shuffled(network: Network, layer: Any, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    layer.__class__ = network.library.module.IShuffleLayer
    shape = tuple(layer.get_output(0).shape)
    first, second = list(layer.first_transpose)[: values.ndim], list(layer.second_transpose)[: len(shape)]
    between = [shape[second.index(axis)] for axis in range(len(shape))]  # what the reshape gives, the turn after it
    shuffled: npt.NDArray[Any] = values.transpose(first).reshape(between).transpose(second)
    return shuffled


def _product(network: Network, layer: Any, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    trt = network.library.module
    layer.__class__ = trt.IMatrixMultiplyLayer
    turned = trt.MatrixOperation.TRANSPOSE
    left, right = (
        values.swapaxes(-1, -2) if operation == turned else values
        for values, operation in ((left, layer.op0), (right, layer.op1))
    )
    # Half precision would add up in half precision.
    product: npt.NDArray[Any] = left.astype(np.float32) @ right.astype(np.float32)
    return product.astype(left.dtype)
