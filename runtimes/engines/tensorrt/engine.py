"""TensorRT and TensorRT-RTX: engines that `nsn-edge build` made for this device, found by their records.

    bundle/rank-064.onnx --its form and rank--> bundle/engines/<library, version, device>/rank-064-fp16.engine

Nothing is built here, and nothing is given to the library before its record says that it is of this bundle, library
version and device, and its bytes are those that were built.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsn_edge.bundle.engine_record import BACKENDS, PRECISIONS
from nsn_edge.bundle.engines import ENGINES_FOLDER, StoredEngine
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.runtimes.engines.base import LoadedGraph
from nsn_edge.runtimes.engines.tensorrt.cuda import Cuda
from nsn_edge.runtimes.engines.tensorrt.finding import Wanted
from nsn_edge.runtimes.engines.tensorrt.graph import TensorRtGraph
from nsn_edge.runtimes.engines.tensorrt.library import Library
from nsn_edge.runtimes.engines.tensorrt.workspace import Workspace

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""What pip installs besides the library itself."""


@dataclass(eq=False)
class TensorRtEngine:
    """Loads the engines that were built from a bundle's graphs. Graphs of one `TensorRtEngine` share memory, and run
    one at a time."""

    library: str = "tensorrt"
    """`tensorrt` or `tensorrt-rtx`."""
    precision: str | None = None
    """One of `PRECISIONS`; None: the first of these that was built."""
    device_index: int = 0
    """Which GPU."""
    cuda_graphs: bool = True
    """Record inferences of a shape that comes again, and replay them."""
    engines: Path | None = None
    """The folder of the devices' folders; None: `engines` in the bundle."""
    check_hashes: bool = True
    """Compare an engine's SHA-256 with its record when it is loaded for the first time."""
    keep_kernels: bool = True
    """TensorRT-RTX: keep the kernels it compiles beside the engines, for the next start."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _workspace: Workspace | None = field(default=None, init=False, repr=False)
    _loaded: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)
    _verified: set[tuple[Path, int, int]] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.library not in BACKENDS:
            raise UsageError(f"unknown TensorRT {self.library!r}", f"choose {' or '.join(BACKENDS)}")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}", f"choose {', '.join(PRECISIONS)}")
        if isinstance(self.device_index, bool) or not isinstance(self.device_index, int) or self.device_index < 0:
            raise UsageError(f"a GPU's number is 0 or more, not {self.device_index!r}")

    @property
    def name(self) -> str:
        """`tensorrt` or `tensorrt-rtx`."""
        return self.library

    @property
    def owns_threads(self) -> bool:
        """False: the caller's thread queues the work and waits for the GPU."""
        return False

    def load(self, graph_path: Path) -> LoadedGraph:
        """Load the engine that was built from a graph of a bundle.

        Args:
            graph_path: the graph in its bundle, as for every engine; it is not read.

        Raises:
            MissingDependencyError: the library or CUDA's bindings are not installed.
            StaleEngineError: no such engine was built for this device and library version, or not from this bundle, or
                the file was altered. The message names the command that builds it.
            EngineError: no driver, no GPU, no memory, or the library refuses the engine.
            UsageError: no GPU of this number, or a form of which no engines are built.
        """
        workspace = self._opened()
        library = workspace.library
        wanted = Wanted.of(graph_path, library.name, library.version, workspace.cuda.device)
        stored = wanted.find(self.engines or graph_path.parent / ENGINES_FOLDER, self.precision)
        self._check(stored, wanted)
        workspace.enter(self._kernels_beside(stored, workspace))
        engine: Any = None
        try:
            workspace.cuda.activate()
            mend = f"build it again: {wanted.build_command}"
            with _mapped(stored.path) as data:
                engine = library.deserialised(workspace.runtime, data, stored.path.name, mend)
            name, record = stored.path.name, stored.record
            graph = TensorRtGraph(name, workspace, engine, record, wanted.signature, cuda_graphs=self.cuda_graphs)
        except BaseException as error:
            # Whoever keeps the error keeps the frames it came through, and they the engine in the GPU's memory.
            engine = None
            traceback.clear_frames(error.__traceback__)
            workspace.leave()
            raise
        self._loaded[graph_path.name] = {
            "engine": name,
            "precision": record.precision,
            "size_bytes": record.size_bytes,
            "built_for": record.device.key,
        }
        return graph

    def describe(self) -> dict[str, Any]:
        """Library, version, device, settings, and by graph the engines that were loaded."""
        workspace = self._opened()
        device = workspace.cuda.device
        return {
            "engine": self.name,
            "version": workspace.library.version,
            "device": device.name,
            "compute_capability": device.compute_capability,
            "engine_precision": self.precision,
            "cuda_graphs": self.cuda_graphs,
            "loaded": dict(self._loaded),
        }

    def _opened(self) -> Workspace:
        with self._lock:
            if self._workspace is None:
                self._workspace = Workspace(
                    Library.of(self.library), Cuda.open(self.device_index, _EXTRAS[self.library])
                )
            return self._workspace

    def _kernels_beside(self, stored: StoredEngine, workspace: Workspace) -> Path | None:
        if not self.keep_kernels:
            return None
        return stored.path.with_name(f"kernels-{workspace.cuda.device.key}.cache")

    def _check(self, stored: StoredEngine, wanted: Wanted) -> None:
        """Hashing a large engine takes a second, and rungs come and go: each file is hashed once, until it changes."""
        state = stored.path.stat()
        seen = (stored.path, state.st_size, state.st_mtime_ns)
        check_hash = self.check_hashes and seen not in self._verified
        wanted.check(stored, check_hash=check_hash)
        if check_hash:
            self._verified.add(seen)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    """A file's bytes without a copy of them: an engine may be as large as the memory that is left."""
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("rb"))
            data = opened.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise EngineError(f"{path.name} cannot be read: {error}", "build it again") from error
        yield data
