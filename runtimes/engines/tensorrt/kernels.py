"""Kernels that TensorRT-RTX compiled for this GPU, kept for the next context and the next start.

Its engines hold no machine code: kernels are compiled when a context is created and when shapes come up, which takes
seconds. One cache serves all contexts of a workspace, and lies beside the engines between runs. TensorRT compiles when
it builds and has no such thing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.errors import NsnEdgeError

_log = logging.getLogger("nsn_edge.tensorrt")


class KernelCache:
    """One `IRuntimeCache`, made when the first context asks for it. Called under the workspace's lock."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._cache: Any = None
        self._saved = b""

    def keep_at(self, file: Path | None) -> None:
        """Where it lies between runs; the first answer stands. None: nowhere."""
        if self._cache is None:
            self._file = file

    def attach(self, config: Any) -> None:
        """Give it to the `IRuntimeConfig` of a context that is about to be made."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        if self._cache is not None:
            config.set_runtime_cache(self._cache)

    def close(self) -> None:
        """Write down what is new, and forget the rest. Every context must be gone."""
        cache, self._cache = self._cache, None
        if cache is None or self._file is None:
            return
        blob = cache.serialize()
        data = b"" if blob is None else bytes(memoryview(blob))
        if data and data != self._saved:
            try:
                atomic_write_bytes(self._file, data)
            except NsnEdgeError as error:  # a bundle on a medium that cannot be written to works as well, only slower
                _log.info("compiled kernels are not kept: %s", error.message)
        self._saved = b""

    def _load(self) -> None:
        if self._cache is None or self._file is None:
            return
        try:
            data = self._file.read_bytes()
        except OSError:
            return
        if data and self._cache.deserialize(data):  # it checks GPU, driver and version, and takes nothing foreign
            self._saved = data
