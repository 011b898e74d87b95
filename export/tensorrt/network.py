"""A bundle's graph as TensorRT's network, and the means to change it.

The library hands out layers one by one and leads from no tensor to its readers. Names are unique: maps by name do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.errors import EngineError
from nsn_edge.export.tensorrt.library import Library

_LONGEST = 400

Readers = dict[str, list[tuple[Any, int]]]
"""By a tensor's name, the layers that take it and as which input."""


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
        array = np.asarray(array, order="C")  # `ascontiguousarray` would make a list of a scalar
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


def values_of(network: Network, constant: Any) -> npt.NDArray[Any]:
    """The values of a constant layer, in its shape."""
    constant.__class__ = network.library.module.IConstantLayer  # how the library's Python API narrows a layer
    shape = tuple(constant.shape)
    return np.asarray(constant.weights).reshape(shape)


def producers_of(layers: list[Any]) -> dict[str, Any]:
    """By a tensor's name, the layer that gives it."""
    return {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}


def readers_of(layers: list[Any]) -> Readers:
    """By a tensor's name, the layers that take it and as which input."""
    readers: Readers = {}
    for layer in layers:
        for i in range(layer.num_inputs):
            tensor = layer.get_input(i)
            if tensor is not None:
                readers.setdefault(tensor.name, []).append((layer, i))
    return readers


def replace_(readers: Readers, old: Any, new: Any) -> None:
    """Let every layer that reads a tensor read another."""
    for layer, i in readers.get(old.name, ()):
        layer.set_input(i, new)


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
