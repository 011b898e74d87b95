"""The prefix store: every tensor once in one file, each rank a shorter length of the same bytes.

    weights.bin   | A of layer 1: R rows of d_in | pad | B of layer 1: R rows of d_out | pad | ...
    rank 96         ^-- offset, length = 96 rows         ^-- offset, length = 96 rows

ONNX's external data names a file, an offset and a length; nothing says that two tensors may not overlap.
`onnx.checker`, onnxruntime and TensorRT accept it. Large tensors start on a page, so that they can be mapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from nsn_edge.errors import ExportError

WEIGHTS_NAME = "weights.bin"
PAGE = 4096
_CACHE_LINE = 64
_INLINE_LIMIT = 128
_INLINE_INDEX_LIMIT = 1 << 16


def belongs_in_store(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor goes to `weights.bin`. Scalars and shapes stay in the graph, and so do index tables of usual
    size: shape inference reads the values of integers, and refuses external data there."""
    limit = _INLINE_INDEX_LIMIT if tensor.dtype == ir.DataType.INT64 else _INLINE_LIMIT
    return tensor.nbytes > limit


def shape_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """A tensor's sizes; data has no symbolic ones."""
    return tuple(size for size in tensor.shape if isinstance(size, int))


class WeightStore:
    """Appends tensors to `weights.bin` and hands out references to them. A context manager: it owns the file.

    Equal tensors (tied embeddings, the initializers that every rung shares) are stored once: they are recognised by
    dtype, shape and SHA-256 of their bytes. A tensor is written from where it lies, so the store holds none in memory.

    Args:
        folder: gets the file.
        on_growth: hears the file's size in bytes after each tensor.
    """

    def __init__(self, folder: Path, on_growth: Callable[[int], None] = lambda size_bytes: None) -> None:
        self.path = folder / WEIGHTS_NAME
        self._on_growth = on_growth
        self._sha256 = hashlib.sha256()
        self._stream: Any = None
        self._offset = 0
        self._by_content: dict[tuple[Any, ...], int] = {}
        self._by_name: dict[str, tuple[int, ir.DataType, tuple[int, ...]]] = {}

    def __enter__(self) -> WeightStore:
        self._stream = self.path.open("wb")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stream.close()

    def add(self, name: str, tensor: ir.TensorProtocol) -> None:
        """Store a tensor under a name; adding a name again is free.

        Raises:
            ExportError: the name was used for a tensor of another shape or type.
        """
        shape = shape_of(tensor)
        known = self._by_name.get(name)
        if known is not None:
            if known[1:] != (tensor.dtype, shape):
                raise ExportError(f"two different tensors are both called {name!r}")
            return
        array = np.ascontiguousarray(tensor.numpy())
        assert array.nbytes == tensor.nbytes
        data = array.reshape(-1).view(np.uint8).data  # no copy; `tobytes` makes one
        key = (tensor.dtype, shape, hashlib.sha256(data).digest())
        offset = self._by_content.get(key)
        if offset is None:
            offset = self._append(data)
            self._by_content[key] = offset
        self._by_name[name] = (offset, tensor.dtype, shape)

    def reference(self, name: str, rows: int | None = None) -> ir.ExternalTensor:
        """External data for a stored tensor, or for its first `rows` rows."""
        offset, dtype, shape = self._by_name[name]
        if rows is not None:
            assert 1 <= rows <= shape[0]
            shape = (rows, *shape[1:])
        length = int(dtype.itemsize)
        for size in shape:
            length *= size
        suffix = "" if rows is None else f"[:{rows}]"
        return ir.ExternalTensor(
            WEIGHTS_NAME, offset, length, dtype, shape=ir.Shape(shape), name=name + suffix, base_dir=self.path.parent
        )

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hexadecimal."""
        return self._sha256.hexdigest()

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def _append(self, data: memoryview) -> int:
        align = PAGE if len(data) >= PAGE else _CACHE_LINE
        padding = b"\0" * (-self._offset % align)
        for part in (padding, data):
            self._stream.write(part)
            self._sha256.update(part)
        offset = self._offset + len(padding)
        self._offset = offset + len(data)
        self._on_growth(self._offset)
        return offset
