"""Weights on the device once, for the graphs of all rungs: every session is given prefixes of the same tensors.

    weights.bin    | A, all rows           | B, all rows           |        put on the device when first needed
    rank-192       |-----------------------|-----------------------|
    rank-064       |-------|               |-------|                        the same memory, fewer rows

What onnxruntime permits, as found out with 1.31:

* `SessionOptions.add_initializer` makes a session use a tensor in place, on whatever device the initializer was planned
  for (https://github.com/microsoft/onnxruntime/pull/5092); tensors that own their memory are refused, so one fresh from
  `ortvalue_from_numpy(.., "cuda", 0)` is. `add_external_initializers` would copy a device tensor per session before
  https://github.com/microsoft/onnxruntime/pull/29013, and constant folding would read it: it is not used.
* A tensor taken over by DLPack does not own its memory, and keeps alive what does. Its row count may be lowered on the
  way: rows are the slow axis, so the first of them are contiguous.

Verified on the processor's own memory. On a GPU nothing of this has run yet; docs/jetson.md keeps the list.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from nsn_edge.errors import EngineError, ProviderError
from nsn_edge.runtimes.engines.graph_file import ExternalTensor, external_tensors
from nsn_edge.runtimes.engines.onnxruntime_graph import first_line
from nsn_edge.runtimes.engines.onnxruntime_prefix import first_rows
from nsn_edge.runtimes.engines.onnxruntime_providers import START_HINTS, blames_libraries

_Place = tuple[Path, int, str, tuple[int, ...]]
"""File, offset, dtype and the sizes behind the rows: tensors that agree in all of it are prefixes of each other."""


class DeviceWeights:
    """Tensors of weights files on one device. Freed when the last graph that uses them is. Any thread may call."""

    def __init__(self, device: str, device_id: int = 0) -> None:
        """
        Args:
            device: `cuda` or `cpu`, as onnxruntime names it.
            device_id: which one.
        """
        self._device, self._device_id = device, device_id
        self._lock = threading.Lock()
        self._whole: weakref.WeakValueDictionary[_Place, Any] = weakref.WeakValueDictionary()
        self._rows: dict[Path, dict[_Place, int]] = {}

    @property
    def resident_bytes(self) -> int:
        """What lies on the device now."""
        return sum(value.tensor_size_in_bytes() for value in list(self._whole.values()))

    def add_to(self, options: Any, graph_path: Path, ort: Any) -> list[Any]:
        """Make a session use the tensors on the device for its external ones, putting there what is missing.

        Args:
            options: the `SessionOptions` it will be made with.
            graph_path: of its graph; graphs beside it say how many rows a tensor has in all.
            ort: the module `onnxruntime`.

        Returns:
            What must live as long as the session.

        Raises:
            ProviderError: the device did not start.
            EngineError: a file is missing or too short, the device is out of memory, or this onnxruntime cannot hand
                out a part of a tensor.
        """
        if not hasattr(ort.OrtValue, "from_dlpack"):
            raise EngineError(
                f"onnxruntime {ort.__version__} cannot share weights on the device (no OrtValue.from_dlpack)",
                "install a newer onnxruntime-gpu, or leave --share-weights out",
            )
        keep = []
        with self._lock:
            for tensor in external_tensors(graph_path):
                if not tensor.shape:
                    continue
                whole = self._put(tensor, graph_path.parent, ort)
                part = first_rows(ort, whole, tensor.shape[0])
                options.add_initializer(tensor.name, part)
                keep += [whole, part]
        return keep

    def _put(self, tensor: ExternalTensor, folder: Path, ort: Any) -> Any:
        place = _place(tensor)
        whole = self._whole.get(place)
        if whole is None:
            rows = max(self._rows_beside(folder).get(place, 0), tensor.shape[0])
            array = _mapped(tensor, (rows, *tensor.shape[1:]))
            try:
                whole = ort.OrtValue.ortvalue_from_numpy(array, self._device, self._device_id)
            except Exception as error:  # onnxruntime's exceptions share no narrower base
                failed = f"{array.nbytes / 1e6:.0f} MB of {tensor.file.name} do not go onto {self._device}"
                kind, hint = (
                    (ProviderError, START_HINTS[self._device])
                    if blames_libraries(error)
                    else (EngineError, "is there memory left on the device?")
                )
                raise kind(f"{failed}: {first_line(error)}", hint) from error
            self._whole[place] = whole
        return whole

    def _rows_beside(self, folder: Path) -> dict[_Place, int]:
        """The most rows that any graph of a folder uses of each tensor."""
        if folder not in self._rows:
            most: dict[_Place, int] = {}
            for path in sorted(folder.glob("*.onnx")):
                for tensor in external_tensors(path):
                    if tensor.shape:
                        most[_place(tensor)] = max(most.get(_place(tensor), 0), tensor.shape[0])
            self._rows[folder] = most
        return self._rows[folder]


def _place(tensor: ExternalTensor) -> _Place:
    return tensor.file, tensor.offset, tensor.dtype, tensor.shape[1:]


def _mapped(tensor: ExternalTensor, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A read-only view of the file."""
    try:
        return np.memmap(tensor.file, dtype=tensor.dtype, mode="r", offset=tensor.offset, shape=shape)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{tensor.file.name} does not hold the tensor {tensor.name!r}: {error}", "export the bundle again"
        ) from error
