"""The timing cache: what TensorRT measured of its kernels, kept so that the next build on the same device is quicker.

It depends on the device and the library's version, as the folder of the engines does, so it lies there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.export.tensorrt.library import Library

FILE_NAME = "timing.cache"


class TimingCache:
    """A cache in a folder; nothing where the library has none or it is switched off."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: where the file is or shall be; None to use none.
        """
        self.file = None if folder is None else folder / FILE_NAME
        self.used = False

    def attach(self, library: Library, config: Any) -> None:
        """Let a build use the cache. One that cannot be read is begun anew: it makes builds quicker, no more."""
        self.used = self.file is not None and library.has_timing_cache
        if not self.used:
            return
        assert self.file is not None
        known = self.file.read_bytes() if self.file.is_file() else b""
        for data in (known, b""):
            cache = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, False):
                return
        self.used = False

    def keep(self, config: Any) -> None:
        """Write what a build added, in one step."""
        cache = config.get_timing_cache() if self.used else None
        if cache is not None and self.file is not None:
            atomic_write_bytes(self.file, bytes(cache.serialize()))
