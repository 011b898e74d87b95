# ruff: noqa: N801, N802, N815 - the names are CUDA's
"""The CUDA runtime's bindings without a GPU: real bytes behind made-up addresses, and work that waits.

What is queued in a stream happens when the stream is synchronised and not a moment earlier: a copy reads its source
then, whatever has become of it. New memory holds rubbish, addresses never come back, and whoever reaches outside of
what is allocated gets the error that a GPU gives, which, as there, every later call repeats. A test holds every name
against the real module's (`test_engine_tensorrt_fake.py`).
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RUBBISH = 0xFF  # as float: NaN


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorIllegalState = 401


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class IllegalAddressError(Exception):
    """Somebody reached where nothing is allocated."""


class Handle:
    """What the bindings give for streams and graphs: no integer, but one can be had."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __int__(self) -> int:
        return self._number


@dataclass
class Stream:
    pending: list[Callable[[], None]] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None
    recorder: int = 0
    mode: int = 0
    invalid: bool = False


class FakeCuda(types.ModuleType):
    """The module `cuda.bindings.runtime`."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1

    def __init__(self, devices: tuple[tuple[str, int, int], ...] = (("Orin", 8, 7),), memory_bytes: int = 1 << 30):
        super().__init__("cuda.bindings.runtime")
        self.devices = devices
        self.memory_bytes = memory_bytes
        self.driver = 12060
        self.start_error = cudaError_t.cudaSuccess
        self.failures: dict[str, cudaError_t] = {}
        """By the call's name: what its next call returns."""
        self.calls: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}
        self.broken: cudaError_t | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._ids = itertools.count(1)
        self._addresses = itertools.count(0x7F00_0000_0000, 1 << 32)
        self._thread = threading.local()
        self._buried: list[Any] = []

    # --- for tests and for the fake library ---

    @property
    def used_bytes(self) -> int:
        return sum(block.nbytes for block in self.memory.values())

    @property
    def last_error(self) -> cudaError_t:
        """Of the calling thread, until it asks: whoever asks after a launch is told of what went wrong before it."""
        return getattr(self._thread, "last", cudaError_t.cudaSuccess)

    @property
    def current_device(self) -> int:
        """The calling thread's."""
        return getattr(self._thread, "device", 0)

    def forget_device(self) -> None:
        """The calling thread's device is the first again, as if another library had chosen it."""
        self._thread.device = 0

    @property
    def is_clean(self) -> bool:
        """Whether everything that was made was given back."""
        return not (self.memory or self.pinned or self.streams or self.executables or self._graphs)

    def view(self, address: int, size_bytes: int) -> np.ndarray:
        """The bytes at an address of the GPU."""
        for start, block in self.memory.items():
            if start <= address and address + size_bytes <= start + block.nbytes:
                return block[address - start : address - start + size_bytes]
        raise IllegalAddressError(hex(address))

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        target = self.streams[int(stream)]
        (target.pending if target.recording is None else target.recording).append(work)

    def is_recording(self, stream: int) -> bool:
        return self.streams[int(stream)].recording is not None

    def invalidate(self, stream: int) -> None:
        self.streams[int(stream)].invalid = True

    # --- devices ---

    def cudaGetDeviceCount(self) -> tuple:
        return (self.start_error, None) if self.start_error else (cudaError_t.cudaSuccess, len(self.devices))

    def cudaDriverGetVersion(self) -> tuple:
        return cudaError_t.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> tuple:
        return cudaError_t.cudaSuccess, 12060

    def cudaGetDeviceProperties(self, device: int) -> tuple:
        name, major, minor = self.devices[device]
        return cudaError_t.cudaSuccess, types.SimpleNamespace(
            name=name.encode().ljust(256, b"\0"), major=major, minor=minor
        )

    def cudaSetDevice(self, device: int) -> tuple:
        self._thread.device = device
        return (self._code("cudaSetDevice", unsafe=False),)

    def cudaGetErrorString(self, error: int) -> tuple:
        return cudaError_t.cudaSuccess, f"the words for {int(error)}".encode()

    def cudaGetErrorName(self, error: int) -> tuple:
        return cudaError_t.cudaSuccess, cudaError_t(int(error)).name.encode()

    def cudaGetLastError(self) -> tuple:
        self.calls.append("cudaGetLastError")
        last, self._thread.last = self.last_error, cudaError_t.cudaSuccess
        return (self.broken or last,)

    def cudaMemGetInfo(self) -> tuple:
        return cudaError_t.cudaSuccess, self.memory_bytes - self.used_bytes, self.memory_bytes

    # --- memory ---

    def cudaMalloc(self, size: int) -> tuple:
        code = self._code("cudaMalloc")
        if not code and self.used_bytes + size > self.memory_bytes:
            code = cudaError_t.cudaErrorMemoryAllocation
        if code:
            return code, None
        address = next(self._addresses)
        self.memory[address] = np.full(size, RUBBISH, np.uint8)
        return code, address

    def cudaFree(self, devPtr: int) -> tuple:
        code = self._code("cudaFree")
        if not code and self.memory.pop(int(devPtr), None) is None:
            code = cudaError_t.cudaErrorInvalidValue
        return (code,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple:
        code = self._code("cudaHostAlloc")
        if code:
            return code, None
        block = (ctypes.c_uint8 * size)(*[RUBBISH] * size)
        address = ctypes.addressof(block)
        self.pinned[address] = block
        return code, address

    def cudaFreeHost(self, ptr: int) -> tuple:
        code = self._code("cudaFreeHost")
        block = self.pinned.pop(int(ptr), None)
        if not code and block is None:
            code = cudaError_t.cudaErrorInvalidValue
        if block is not None:
            ctypes.memset(block, RUBBISH, len(block))
            self._buried.append(block)  # so that a late reader sees rubbish instead of dying
        return (code,)

    def cudaMemcpy(self, dst: int, src: int, count: int, kind: int) -> tuple:
        code = self._code("cudaMemcpy")
        if not code:
            assert kind == cudaMemcpyKind.cudaMemcpyDeviceToHost
            code = self._do(lambda: ctypes.memmove(dst, self.view(src, count).tobytes(), count))
        return (code,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> tuple:
        code = self._code("cudaMemcpyAsync", unsafe=False)
        to_device = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        host, device = (src, dst) if to_device else (dst, src)
        if not code and not any(a <= host and host + count <= a + len(b) for a, b in self.pinned.items()):
            code = cudaError_t.cudaErrorInvalidValue  # stricter than CUDA, which would wait for such a copy
        if code:
            return (code,)

        def copy() -> None:
            there = self.view(device, count)
            if to_device:
                there[:] = np.frombuffer(ctypes.string_at(host, count), np.uint8)
            else:
                ctypes.memmove(host, there.tobytes(), count)

        self.enqueue(stream, copy)
        return (code,)

    # --- streams ---

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple:
        code = self._code("cudaStreamCreateWithFlags")
        if code:
            return code, None
        number = next(self._ids)
        self.streams[number] = Stream()
        return code, Handle(number)

    def cudaStreamDestroy(self, stream: int) -> tuple:
        code = self._code("cudaStreamDestroy")
        self.streams.pop(int(stream), None)
        return (code,)

    def cudaStreamSynchronize(self, stream: int) -> tuple:
        code = self._code("cudaStreamSynchronize")
        if int(stream) not in self.streams:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        pending = self.streams[int(stream)].pending
        while pending and not code:
            code = self._do(pending.pop(0))
        return (code,)

    # --- CUDA graphs ---

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple:
        code = self._code("cudaStreamBeginCapture")
        target = self.streams[int(stream)]
        assert not target.pending, "what came before would be lost sight of"
        if not code:
            target.recording, target.recorder, target.mode, target.invalid = [], threading.get_ident(), mode, False
        return (code,)

    def cudaStreamEndCapture(self, stream: int) -> tuple:
        code = self._code("cudaStreamEndCapture", unsafe=False)
        target = self.streams[int(stream)]
        if target.recording is None:
            return cudaError_t.cudaErrorIllegalState, None
        recorded, target.recording = target.recording, None
        if code or target.invalid:
            return code or cudaError_t.cudaErrorStreamCaptureInvalidated, None
        number = next(self._ids)
        self._graphs[number] = recorded
        return code, Handle(number)

    def cudaGraphInstantiateWithFlags(self, graph: Any, flags: int) -> tuple:
        code = self._code("cudaGraphInstantiateWithFlags")
        if code:
            return code, None
        number = next(self._ids)
        self.executables[number] = list(self._graphs[int(graph)])
        return code, Handle(number)

    def cudaGraphDestroy(self, graph: Any) -> tuple:
        del self._graphs[int(graph)]
        return (self._code("cudaGraphDestroy", unsafe=False),)

    def cudaGraphLaunch(self, graphExec: Any, stream: int) -> tuple:
        code = self._code("cudaGraphLaunch", unsafe=False)
        if not code:
            for work in self.executables[int(graphExec)]:
                self.enqueue(stream, work)
        return (code,)

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple:
        del self.executables[int(graphExec)]
        return (self._code("cudaGraphExecDestroy", unsafe=False),)

    # --- inside ---

    def _code(self, name: str, *, unsafe: bool = True) -> cudaError_t:
        code = self._verdict(name, unsafe)
        if code:
            self._thread.last = code
        return code

    def _verdict(self, name: str, unsafe: bool) -> cudaError_t:
        """What a call returns before it does anything. Whoever records may not make calls that wait."""
        self.calls.append(name)
        if self.broken:
            return self.broken
        if name in self.failures:
            return self.failures.pop(name)
        for stream in self.streams.values():
            mine = stream.recorder == threading.get_ident() or stream.mode == 0  # `Global` forbids it to every thread
            if unsafe and stream.recording is not None and mine:
                stream.invalid = True
                return cudaError_t.cudaErrorStreamCaptureUnsupported
        if name != "cudaSetDevice" and self.current_device >= len(self.devices):
            return cudaError_t.cudaErrorInvalidDevice
        return cudaError_t.cudaSuccess

    def _do(self, work: Callable[[], None]) -> cudaError_t:
        try:
            work()
        except IllegalAddressError:
            self.broken = cudaError_t.cudaErrorIllegalAddress
            return self.broken
        return cudaError_t.cudaSuccess
