"""What an ONNX file says of its inputs and its external tensors, read without the `onnx` package or a session.

    ModelProto.graph 7 -> GraphProto.initializer 5 -> TensorProto: dims 1, data_type 2, name 8,
                                                      external_data 13 (location, offset, length), data_location 14
                          GraphProto.input 11 -> ValueInfoProto: name 1, type 2 -> tensor_type 1:
                                                      elem_type 1, shape 2 -> dim 1: dim_value 1, dim_param 2

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3. The wire format is that of protocol buffers:
https://protobuf.dev/programming-guides/encoding/. Graphs inside of `If` and `Loop` are not looked into.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nsn_edge.bundle import TensorSpec
from nsn_edge.errors import EngineError

_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}
"""TensorProto.DataType, as far as numpy knows it; bfloat16 and the packed 4-bit types are left out."""

_EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor of a graph whose bytes are a stretch of another file."""

    name: str
    """As the graph calls it."""
    dtype: str
    """numpy's name."""
    shape: tuple[int, ...]
    """Row-major."""
    file: Path
    """Where the bytes are."""
    offset: int
    """Bytes from the beginning of the file."""

    @property
    def size_bytes(self) -> int:
        """Of its bytes."""
        size = np.dtype(self.dtype).itemsize
        for length in self.shape:
            size *= length
        return size


def external_tensors(graph_path: Path) -> list[ExternalTensor]:
    """The external tensors of a graph, in its order.

    Raises:
        EngineError: the file cannot be read, or is no ONNX graph.
    """
    with _reading(graph_path) as graph:
        tensors = [_tensor(item, graph_path.parent) for item in _messages(graph, 5) if _number(item, 14) == _EXTERNAL]
    return [tensor for tensor in tensors if tensor is not None]


def graph_inputs(graph_path: Path) -> list[TensorSpec]:
    """The inputs of a graph, in its order; inputs that are no tensors are left out.

    Raises:
        EngineError: the file cannot be read, or is no ONNX graph.
    """
    with _reading(graph_path) as graph:
        defaults = {_text(tensor, 8) for tensor in _messages(graph, 5)}  # old graphs list initializers as inputs, too
        specs = [_spec(value) for value in _messages(graph, 11) if _text(value, 1) not in defaults]
    return [spec for spec in specs if spec is not None]


@contextmanager
def _reading(graph_path: Path) -> Iterator[memoryview]:
    """The bytes of the GraphProto."""
    try:
        graphs = _messages(memoryview(graph_path.read_bytes()), 7)
        if not graphs:
            raise ValueError("there is no graph in it")
        yield graphs[0]
    except OSError as error:
        raise EngineError(f"{graph_path.name} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError, KeyError) as error:
        raise EngineError(f"{graph_path.name} is no ONNX graph: {error}", "export the bundle again") from error


def _spec(message: memoryview) -> TensorSpec | None:
    """None for sequences, maps and types that numpy does not know."""
    tensor_types = [tensor for kind in _messages(message, 2) for tensor in _messages(kind, 1)]
    dtype = _DTYPES.get(_number(tensor_types[0], 1)) if tensor_types else None
    if dtype is None:
        return None
    sizes = [size for shape in _messages(tensor_types[0], 2) for size in _messages(shape, 1)]
    return TensorSpec(_text(message, 1), dtype, tuple(_text(size, 2) or _number(size, 1) for size in sizes))


def _tensor(message: memoryview, folder: Path) -> ExternalTensor | None:
    """None for a type that numpy does not know."""
    dtype = _DTYPES.get(_number(message, 2))
    if dtype is None:
        return None
    entries = {_text(entry, 1): _text(entry, 2) for entry in _messages(message, 13)}
    return ExternalTensor(
        name=_text(message, 8),
        dtype=dtype,
        shape=tuple(_numbers(message, 1)),
        file=folder / entries["location"],
        offset=int(entries.get("offset", "0")),
    )


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values: a number, or the bytes of what is longer."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")
        if at + size > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, least significant first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _messages(data: memoryview, wanted: int) -> list[memoryview]:
    return [value for number, value in _fields(data) if number == wanted and isinstance(value, memoryview)]


def _numbers(data: memoryview, wanted: int) -> Iterator[int]:
    """A repeated number, one field each or packed into one."""
    for number, value in _fields(data):
        if number != wanted:
            continue
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            item, at = _varint(value, at)
            yield item


def _number(data: memoryview, wanted: int) -> int:
    return next(_numbers(data, wanted), 0)


def _text(data: memoryview, wanted: int) -> str:
    return bytes(next(iter(_messages(data, wanted)), b"")).decode()
