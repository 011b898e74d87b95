"""What all loaded graphs of an engine share: the GPU, its memory, and the right to run.

One graph runs at a time, under the lock. That is what lets all rungs share scratch memory and the buffers of inputs and
outputs, so that an added rung costs its weights and little else. A GPU that one inference keeps busy loses nothing by
it; two that would fit side by side wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nsn_edge.runtimes.engines.tensorrt.cuda import Cuda
from nsn_edge.runtimes.engines.tensorrt.kernels import KernelCache
from nsn_edge.runtimes.engines.tensorrt.library import Library
from nsn_edge.runtimes.engines.tensorrt.memory import Pool, Scratch, Slot


class Workspace:
    """Held by every graph that is loaded; what it has allocated goes when the last of them is closed."""

    def __init__(self, library: Library, cuda: Cuda) -> None:
        self.library = library
        """TensorRT or TensorRT-RTX."""
        self.cuda = cuda
        """The GPU."""
        self.lock = threading.RLock()
        """Whoever runs a graph or touches the memory holds it. Reentrant: a graph may be freed by Python in the midst
        of the run of another one."""
        self.scratch = Scratch()
        """What layers of all graphs work in."""
        self.pool = Pool(cuda)
        """Blocks of tensors that stay on the GPU."""
        self.kernels = KernelCache()
        """Compiled ones, for a library that compiles when it runs."""
        self.runtime: Any = None
        """The library's, while graphs are loaded."""
        self._slots: dict[str, Slot] = {}
        self._users = 0

    def enter(self, kernels_file: Path | None) -> None:
        """A graph is about to be loaded; where its library may keep kernels that it compiles."""
        with self.lock:
            if not self._users:
                self.kernels.keep_at(kernels_file)
                self.runtime = self.library.runtime()
                self.pool = Pool(self.cuda)
            self._users += 1

    def leave(self) -> None:
        """A graph was closed, contexts and engine destroyed."""
        with self.lock:
            self._users -= 1
            if self._users:
                return
            self.kernels.close()
            self.runtime = None
            slots, self._slots = self._slots, {}
            for slot in slots.values():
                slot.free(self.cuda)
            self.scratch.free(self.cuda)
            self.pool.close()

    def slots(self, sizes: Iterable[tuple[str, int]]) -> dict[str, Slot]:
        """Slots by the tensor's name, each with room for so many bytes. The lock is held."""
        found = {}
        for name, size_bytes in sizes:
            slot = found[name] = self._slots.setdefault(name, Slot())
            slot.make_room(self.cuda, size_bytes)
        return found
