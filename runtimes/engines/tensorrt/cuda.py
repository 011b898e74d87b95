"""The few calls of the CUDA runtime that engines need, through NVIDIA's own bindings. No torch, no cupy.

Each call of the bindings returns its error code first; here a code other than success is an `EngineError`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from nsn_edge.bundle.engine_record import EngineDevice
from nsn_edge.errors import EngineError, MissingDependencyError, UsageError

_MODULES = ("cuda.bindings.runtime", "cuda.cudart")
"""Of cuda-bindings, and of cuda-python before 12.3."""

_MB = 1e6
_NO_DEVICE, _INSUFFICIENT_DRIVER, _OUT_OF_MEMORY = 100, 35, 2
_ELSEWHERE = "without an NVIDIA GPU use the engine onnxruntime"


@dataclass(frozen=True)
class Cuda:
    """The CUDA runtime and one of its devices."""

    bindings: Any
    """The module."""
    index: int
    """The device's number."""
    device: EngineDevice
    """What engines are built for."""

    @classmethod
    def open(cls, index: int = 0, extra: str = "tensorrt") -> Cuda:
        """Find a device.

        Args:
            index: its number.
            extra: that installs the bindings, for the message.

        Raises:
            MissingDependencyError: the bindings are not installed.
            EngineError: there is no driver, it is too old, or there is no GPU.
            UsageError: no GPU of this number.
        """
        bindings = _import_bindings(extra)
        code, count = bindings.cudaGetDeviceCount()
        if int(code) == _INSUFFICIENT_DRIVER:
            raise _bad_driver(bindings)
        if int(code) == _NO_DEVICE or (int(code) == 0 and count == 0):
            raise EngineError("the CUDA driver finds no GPU", f"check it with: nvidia-smi; {_ELSEWHERE}")
        if int(code):
            raise EngineError(
                f"CUDA does not start: {_text(bindings, code)}", f"check it with: nvidia-smi; {_ELSEWHERE}"
            )
        if not 0 <= index < count:
            raise UsageError(f"there is no GPU {index}", f"there are {count}, numbered from 0")
        code, properties = bindings.cudaGetDeviceProperties(index)
        if int(code):
            raise EngineError(f"GPU {index} cannot be asked what it is: {_text(bindings, code)}")
        name = properties.name
        name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        return cls(
            bindings, index, EngineDevice(name.partition("\0")[0].strip(), f"{properties.major}.{properties.minor}")
        )

    def activate(self) -> None:
        """Make the device the calling thread's. Every thread begins at device 0."""
        self._call("choose the GPU", self.bindings.cudaSetDevice, self.index)

    def allocate(self, size_bytes: int) -> int:
        """Memory of the GPU, aligned to 256 bytes."""
        return int(self._call(f"allocate {size_bytes / _MB:.4g} MB", self.bindings.cudaMalloc, size_bytes))

    def allocate_pinned(self, size_bytes: int) -> int:
        """Memory of the processor that stays in place, so that copies need not wait for each other."""
        what = f"pin {size_bytes / _MB:.4g} MB of memory"
        return int(self._call(what, self.bindings.cudaHostAlloc, size_bytes, 0))

    def free(self, address: int) -> None:
        """Memory of the GPU."""
        self._call("free memory", self.bindings.cudaFree, address)

    def free_pinned(self, address: int) -> None:
        """Memory of the processor."""
        self._call("free pinned memory", self.bindings.cudaFreeHost, address)

    def to_device(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from pinned memory. Neither side may change before the stream is synchronised."""
        kind = self.bindings.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("copy to the GPU", self.bindings.cudaMemcpyAsync, target, source, size_bytes, kind, stream)

    def to_host(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Queue a copy into pinned memory."""
        kind = self.bindings.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("copy from the GPU", self.bindings.cudaMemcpyAsync, target, source, size_bytes, kind, stream)

    def read(self, target: int, source: int, size_bytes: int) -> None:
        """Copy into any memory of the processor, now."""
        kind = self.bindings.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("copy from the GPU", self.bindings.cudaMemcpy, target, source, size_bytes, kind)

    def new_stream(self) -> int:
        """A queue of work that waits for no other queue."""
        flags = self.bindings.cudaStreamNonBlocking
        return int(self._call("make a stream", self.bindings.cudaStreamCreateWithFlags, flags))

    def synchronise(self, stream: int) -> None:
        """Wait until a stream has done its work."""
        self._call("run", self.bindings.cudaStreamSynchronize, stream)

    def free_stream(self, stream: int) -> None:
        """Of `new_stream`."""
        self._call("free a stream", self.bindings.cudaStreamDestroy, stream)

    def begin_capture(self, stream: int) -> None:
        """From here on work queued in the stream is recorded instead of done. Other threads may go on allocating."""
        mode = self.bindings.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("begin a CUDA graph", self.bindings.cudaStreamBeginCapture, stream, mode)

    def end_capture(self, stream: int) -> Any:
        """What was recorded, ready for `launch`."""
        graph = self._call("record a CUDA graph", self.bindings.cudaStreamEndCapture, stream)
        try:
            return self._call("make a CUDA graph", self.bindings.cudaGraphInstantiateWithFlags, graph, 0)
        finally:
            self._call("free a CUDA graph", self.bindings.cudaGraphDestroy, graph)

    def abandon_capture(self, stream: int) -> None:
        """End a recording that went wrong, and forget the error: the next call must not be blamed for it."""
        code, *graph = self.bindings.cudaStreamEndCapture(stream)
        if not int(code) and graph and graph[0] is not None:
            self.bindings.cudaGraphDestroy(graph[0])
        self.bindings.cudaGetLastError()

    def launch(self, executable: Any, stream: int) -> None:
        """Queue everything that was recorded."""
        self._call("launch a CUDA graph", self.bindings.cudaGraphLaunch, executable, stream)

    def free_graph(self, executable: Any) -> None:
        """Of `end_capture`."""
        self._call("free a CUDA graph", self.bindings.cudaGraphExecDestroy, executable)

    def _call(self, what: str, function: Any, *arguments: Any) -> Any:
        """The value that a call returns besides its code."""
        code, *values = function(*arguments)
        if not int(code):
            return values[0] if values else None
        self.bindings.cudaGetLastError()  # or a later call of TensorRT would be blamed for it
        if int(code) == _OUT_OF_MEMORY:
            raise EngineError(f"CUDA cannot {what}: {self._room()}", "keep fewer rungs in memory, or free the GPU")
        raise EngineError(f"CUDA cannot {what}: {_text(self.bindings, code)}")

    def _room(self) -> str:
        code, *sizes = self.bindings.cudaMemGetInfo()
        if int(code):
            return "the GPU's memory is full"
        return f"{sizes[0] / _MB:.4g} MB of the GPU's {sizes[1] / _MB:.4g} MB are free"


def _import_bindings(extra: str) -> Any:
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingDependencyError("cuda-bindings", extra, "running a TensorRT engine")


def _text(bindings: Any, code: Any) -> str:
    """`out of memory (cudaErrorMemoryAllocation)`."""
    words = []
    for ask in (bindings.cudaGetErrorString, bindings.cudaGetErrorName):
        failed, word = ask(code)
        words.append(str(int(code)) if int(failed) else word.decode() if isinstance(word, bytes) else str(word))
    return f"{words[0]} ({words[1]})"


def _bad_driver(bindings: Any) -> EngineError:
    """The driver is absent, or older than the bindings."""
    _, driver = bindings.cudaDriverGetVersion()
    _, wanted = bindings.cudaRuntimeGetVersion()
    if not driver:
        return EngineError("this machine has no NVIDIA driver", f"install it and check with: nvidia-smi; {_ELSEWHERE}")
    major = driver // 1000
    return EngineError(
        f"the NVIDIA driver knows CUDA up to {_version(driver)}, and cuda-bindings are of {_version(wanted)}",
        f"pip install 'cuda-bindings=={major}.*', or update the driver",
    )


def _version(number: int) -> str:
    """13.4 of 13040."""
    return f"{number // 1000}.{number % 1000 // 10}"
