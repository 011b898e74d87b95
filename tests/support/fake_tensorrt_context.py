"""Execution contexts of `fake_tensorrt`, and what becomes of a run that they queue."""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from fake_cuda import RUBBISH, IllegalAddressError
from fake_tensorrt_names import Severity

if TYPE_CHECKING:
    from fake_tensorrt import ICudaEngine


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, user_managed: bool, captures: bool) -> None:
        self.engine, self.captures = engine, captures
        self.lib = engine.lib
        self.lib.alive.append("context")
        self._device = self.lib.cuda.current_device
        self.lib.contexts.append((user_managed, captures))
        self._shared = self.lib.age >= 10
        free = self._shared or 0 not in engine.profiles_in_use
        self.active_optimization_profile = 0 if free else -1
        engine.profiles_in_use.append(self.active_optimization_profile)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._told_rank: int | None = None  # as it was when the address was told: what came later may go unnoticed
        self._scratch = (0, 0) if user_managed else None
        self._state = 0  # counts changes: a recorded run is good for one state
        self._settled = -1

    def __del__(self) -> None:
        self.engine.profiles_in_use.remove(self.active_optimization_profile)
        self.lib.gone("context" if self.lib.cuda.current_device == self._device else "context of another device")

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        used = profile_index in self.engine.profiles_in_use and not self._shared
        if used or not 0 <= profile_index < self.engine.num_optimization_profiles:
            self._error(f"Error Code 3: API Usage Error (Profile {profile_index} has been chosen by another context)")
            raise RuntimeError("Error in set optimization profile async.")
        self.engine.profiles_in_use.remove(self.active_optimization_profile)
        self.engine.profiles_in_use.append(profile_index)
        self.active_optimization_profile = profile_index
        self.lib.cuda.enqueue(stream_handle, lambda: None)
        self._state += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert type(shape) in (tuple, list)
        if name not in self.engine.inputs or self.active_optimization_profile < 0:
            self._error(f"Error Code 3: API Usage Error (no input {name}, or no profile)")
            return False
        ranges = self.engine._plan["profiles"][self.active_optimization_profile][name]
        if len(shape) != len(ranges[0]) or any(
            not low <= size <= high for low, size, high in zip(ranges[0], shape, ranges[1], strict=True)
        ):
            self._error(f"Error Code 3: API Usage Error (Set dimensions {list(shape)} of {name} beyond {ranges})")
            return False
        if self._shapes.get(name) != tuple(shape):
            self._shapes[name] = tuple(shape)
            self._state += 1
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert type(memory) is int
        if name not in {**self.engine.inputs, **self.engine.outputs} or not memory:
            self._error(f"Error Code 3: API Usage Error (Tensor {name} is bound to nullptr)")
            return False
        told = self._read_rank(memory) if name == "rank" else None
        if self._addresses.get(name) != memory or (name == "rank" and told != self._told_rank):
            self._addresses[name] = memory
            self._told_rank = told if name == "rank" else self._told_rank
            self._state += 1
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        if self._scratch != (memory, size):
            self._scratch = (memory, size)
            self._state += 1

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self.engine.inputs if name != "rank" and name not in self._shapes]
        missing += [name for name in self.engine.inputs if name == "rank" and name not in self._addresses]
        if not missing and self.lib.data_dependent is False:
            self.engine.output_shapes(self._shapes, self._rank())
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self.lib.data_dependent:
            return (-1,)
        return self.engine.output_shapes(self._shapes, self._rank())[name]

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert type(stream_handle) is int
        tensors = {**self.engine.inputs, **self.engine.outputs}
        if unset := [name for name in tensors if name not in self._addresses]:
            self._error(
                f"IExecutionContext::enqueueV3: Error Code 3: API Usage Error (Address is not set for {unset[0]})"
            )
            return False
        if self.lib.cuda.last_error:
            self._error(f"Error Code 1: Cuda Runtime ({self.lib.cuda.last_error.name})")  # another's, as it happens
            return False
        if self.lib.cuda.current_device != self._device or self._device != self.engine.device:
            self._error("Error Code 1: Cuda Runtime (invalid resource handle)")
            return False
        if self.lib.refuses_to_run or (self._scratch is not None and self._scratch[1] < self._needed()):
            self._error("IExecutionContext::enqueueV3: Error Code 1: Myelin (the kernels are on strike)")
            return False
        recording = self.lib.cuda.is_recording(stream_handle)
        if recording and (self.lib.refuses_to_record or self._settled != self._state):
            self.lib.cuda.invalidate(stream_handle)
            self._error("Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)")
            return False
        if recording:
            self.lib.while_recording()
        self._settled = self._state
        run = Run(self, recording, stream_handle)
        if not recording:
            run.claim()
        self.lib.cuda.enqueue(stream_handle, run)
        self.lib.executions.append((self.active_optimization_profile, recording))
        return True

    def _needed(self) -> int:
        return int(self.engine._plan["scratch_bytes"])

    def _rank(self) -> int | None:
        return self._told_rank

    def _read_rank(self, memory: int) -> int:
        kind = ctypes.c_int32 if self.lib.age < 10 else ctypes.c_int64
        return int(kind.from_address(memory).value)

    def _error(self, text: str) -> None:
        self.engine._runtime.logger.log(Severity.ERROR, text)


class IExecutionContextOf8(IExecutionContext):
    def __getattribute__(self, name: str) -> Any:
        if name == "set_device_memory":
            raise AttributeError(name)
        return super().__getattribute__(name)

    def _set_device_memory(self, memory: int) -> None:
        IExecutionContext.set_device_memory(self, memory, self._needed())

    device_memory = property(None, _set_device_memory)


class Run:
    """One execution as it was queued. It keeps nothing alive: a context or an engine freed too early shows."""

    def __init__(self, context: IExecutionContext, recorded: bool, stream: int) -> None:
        self.stream = stream
        self.context, self.engine, self.lib = weakref.ref(context), weakref.ref(context.engine), context.lib
        self.recorded, self.spoiled = recorded, False
        self.shapes, self.addresses = dict(context._shapes), dict(context._addresses)
        self.scratch, self.state, self.rank = context._scratch, context._state, context._rank()

    def claim(self) -> None:
        """Runs of two streams may overlap: in the same scratch memory they spoil each other."""
        for other in self.lib.running:
            if self.scratch is not None and other.scratch == self.scratch and other.stream != self.stream:
                other.spoiled = self.spoiled = True
        self.lib.running.append(self)

    def __call__(self) -> None:
        if self in self.lib.running:
            self.lib.running.remove(self)
        cuda, context, engine = self.lib.cuda, self.context(), self.engine()
        if context is None or engine is None:
            raise IllegalAddressError("the code of a context that is gone")
        if self.scratch is not None and self.scratch[1]:
            cuda.view(*self.scratch)[:] = np.random.default_rng(0).integers(0, 256, self.scratch[1], np.uint8)
        feeds = {}
        for name, shape in self.shapes.items():
            kind = engine.numpy_type(name)
            size = kind.itemsize * int(np.prod(shape, dtype=np.int64))
            feeds[name] = np.frombuffer(cuda.view(self.addresses[name], size).tobytes(), kind).reshape(shape)
        outputs = engine.compute(feeds, self.rank)
        spoiled = self.spoiled or (self.recorded and self.state != context._state)
        for name, array in outputs.items():
            there = cuda.view(self.addresses[name], array.nbytes)
            there[:] = RUBBISH if spoiled else np.frombuffer(array.tobytes(), np.uint8)
