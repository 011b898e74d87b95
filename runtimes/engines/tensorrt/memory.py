"""Memory of the GPU and of the processor, kept for the next run instead of freed.

slots      by the tensor's name: pinned host memory and device memory, grown, at addresses that stay; all rungs use
           the same, as no two run at once
scratch    what layers work in: as large as the hungriest rung wants, the same for all
pool       blocks for tensors that stay on the GPU between calls, a decoder's cache
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines.base import Array
from nsn_edge.runtimes.engines.tensorrt.cuda import Cuda

_LEAST_BYTES = 256
_STEPS_BITS = 3


def block_bytes(size_bytes: int) -> int:
    """The next larger block: an eighth of a power of two more, so that at most an eighth is wasted and a cache that
    grows by a token at a time finds its blocks again."""
    step = max(_LEAST_BYTES, 1 << max(0, (size_bytes - 1).bit_length() - _STEPS_BITS - 1))
    return max(1, -(-size_bytes // step)) * step


@dataclass(eq=False)
class Slot:
    """Where one tensor passes between processor and GPU."""

    device: int = 0
    """Address on the GPU."""
    host: int = 0
    """Address of pinned memory."""
    capacity: int = 0
    """Bytes of either."""
    _bytes: Array = field(default_factory=lambda: np.empty(0, np.uint8))

    def make_room(self, cuda: Cuda, size_bytes: int) -> None:
        """Both sides hold at least so much afterwards. Growing loses what was there, and moves it."""
        if self.capacity and size_bytes <= self.capacity:
            return
        self.free(cuda)
        capacity = block_bytes(size_bytes)
        self.device = cuda.allocate(capacity)
        try:
            self.host = cuda.allocate_pinned(capacity)
        except BaseException:
            self.free(cuda)
            raise
        self.capacity = capacity
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * capacity).from_address(self.host))

    def array(self, dtype: np.dtype[np.generic], shape: Sequence[int]) -> Array:
        """The pinned memory as an array: a view."""
        size_bytes = dtype.itemsize * math.prod(shape)
        return self._bytes[:size_bytes].view(dtype).reshape(shape)

    def free(self, cuda: Cuda) -> None:
        """Give both sides back."""
        self._bytes = np.empty(0, np.uint8)
        device, host, self.device, self.host, self.capacity = self.device, self.host, 0, 0, 0
        if device:
            cuda.free(device)
        if host:
            cuda.free_pinned(host)


@dataclass(eq=False)
class Scratch:
    """What layers work in."""

    address: int = 0
    """On the GPU."""
    size_bytes: int = 0
    """Of it."""

    def make_room(self, cuda: Cuda, size_bytes: int) -> None:
        """At least so much afterwards; it may lie elsewhere then, and contexts must be told."""
        if self.address and size_bytes <= self.size_bytes:
            return
        self.free(cuda)
        size_bytes = max(_LEAST_BYTES, size_bytes)
        self.address = cuda.allocate(size_bytes)
        self.size_bytes = size_bytes

    def free(self, cuda: Cuda) -> None:
        """Give it back."""
        address, self.address, self.size_bytes = self.address, 0, 0
        if address:
            cuda.free(address)


class Pool:
    """Blocks on the GPU that are used again. `take` and `close` are called under the workspace's lock.

    A decoder's cache outgrows one size after the other and needs none of them again: so before another block is
    allocated, those that lie idle are freed, the longest unused sizes first, until no more is idle than in use.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._idle: OrderedDict[int, list[int]] = OrderedDict()
        self._idle_bytes = self._used_bytes = 0
        self._returned: deque[tuple[int, int]] = deque()
        self._closed = False

    def take(self, size_bytes: int) -> tuple[int, int]:
        """An address, and the size of the block."""
        size_bytes = block_bytes(size_bytes)
        self._sort_in()
        blocks = self._idle.get(size_bytes)
        if blocks:
            address = blocks.pop()
            self._idle_bytes -= size_bytes
            self._idle.move_to_end(size_bytes)
        else:
            self._trim(self._used_bytes)
            try:
                address = self._cuda.allocate(size_bytes)
            except EngineError:
                if not self._idle_bytes:
                    raise
                self._trim(0)
                address = self._cuda.allocate(size_bytes)
        self._used_bytes += size_bytes
        return address, size_bytes

    def give_back(self, address: int, size_bytes: int) -> None:
        """Of `take`. Runs where the last reference to a tensor goes, so in any thread and in the midst of anything,
        a recording of a CUDA graph included: it must not call CUDA while the pool is open."""
        self._returned.append((address, size_bytes))
        if self._closed:
            self._free_returned()

    def close(self) -> None:
        """Free what is not in use, now, and the rest as it comes back."""
        self._closed = True
        self._free_returned()
        while self._idle:
            _, blocks = self._idle.popitem()
            while blocks:
                self._cuda.free(blocks.pop())

    def _sort_in(self) -> None:
        while self._returned:
            address, size_bytes = self._returned.popleft()
            self._idle.setdefault(size_bytes, []).append(address)
            self._idle_bytes += size_bytes
            self._used_bytes -= size_bytes

    def _trim(self, most_bytes: int) -> None:
        """Free idle blocks until no more than this is left."""
        while self._idle_bytes > most_bytes:
            size_bytes, blocks = next(iter(self._idle.items()))
            if blocks:
                self._cuda.free(blocks.pop())
                self._idle_bytes -= size_bytes
            else:
                del self._idle[size_bytes]

    def _free_returned(self) -> None:
        with contextlib.suppress(EngineError):  # nobody is there to hear of it
            self._cuda.activate()
            with contextlib.suppress(IndexError):  # until another thread or we have taken the last
                while True:
                    self._cuda.free(self._returned.popleft()[0])


class DeviceTensor:
    """A tensor where the GPU computed it (the protocol `Held`). Its block goes back when nothing refers to it."""

    def __init__(self, pool: Pool, cuda: Cuda, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        """
        Args:
            pool: gives the block.
            cuda: reads it.
            dtype: as the engine writes it.
            shape: of the whole tensor.
        """
        self._cuda = cuda
        self._shape = shape
        self.dtype = dtype
        """numpy's."""
        self._pool = pool
        self.address, self._block = pool.take(self.size_bytes)

    @property
    def device_index(self) -> int:
        """Of the GPU that it lies on."""
        return self._cuda.index

    @property
    def size_bytes(self) -> int:
        """Of its values."""
        return self.dtype.itemsize * math.prod(self._shape)

    def shape(self) -> Sequence[int]:
        """Its sizes."""
        return self._shape

    def data_ptr(self) -> int:
        """Its address on the GPU."""
        return self.address

    def __del__(self) -> None:
        if hasattr(self, "_block"):  # a decoder has two of these per layer and token: `weakref.finalize` is dearer
            self._pool.give_back(self.address, self._block)

    def numpy(self) -> Array:
        """Its values, copied."""
        values = np.empty(self._shape, self.dtype)
        if values.nbytes:
            self._cuda.activate()
            self._cuda.read(values.ctypes.data, self.address, values.nbytes)
        return values
