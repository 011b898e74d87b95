"""TensorRT without a GPU: the runtime's API over `fake_cuda`, with onnxruntime for kernels.

It computes from the bytes that lie at the addresses it was told, when the stream comes to it, so that a missing copy,
a stale CUDA graph or a buffer used twice shows as wrong numbers. Where TensorRT returns None or False and tells its
logger why, so does this; where it raises, this raises. What TensorRT leaves undefined (a CUDA graph whose context has
changed since, scratch memory used by two at once) gives rubbish here.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from fake_cuda import RUBBISH, FakeCuda, IllegalAddressError

MAGIC = b"FAKE ENGINE\n"
_TYPES = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64", "tensor(float16)": "HALF"}
_NUMPY = {"FLOAT": np.float32, "INT64": np.int64, "INT32": np.int32, "HALF": np.float16, "BF16": np.uint16}


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

    def __init__(self) -> None:
        self.is_made = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    BF16 = 7
    INT64 = 8


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class IRuntimeCache:
    """Of kernels that were compiled: a JSON list, which other versions and other bytes refuse."""

    def __init__(self, lib: FakeTensorRt) -> None:
        self._lib = lib
        self._kernels: list[str] = []

    def serialize(self) -> memoryview:
        assert "context" not in self._lib.alive, "contexts still add to it"
        return memoryview(json.dumps([self._lib.__version__, *self._kernels]).encode())

    def deserialize(self, blob: bytes) -> bool:
        try:
            version, *kernels = json.loads(blob)
        except ValueError:
            return False
        if version == self._lib.__version__:
            self._kernels = kernels
        return bool(version == self._lib.__version__)


class IRuntimeConfig:
    def __init__(self, lib: FakeTensorRt) -> None:
        self._lib = lib
        self._cache: IRuntimeCache | None = None
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self._allocation = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._allocation = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._lib)

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class Runtime:
    _lib: FakeTensorRt

    def __init__(self, logger: ILogger) -> None:
        assert logger.is_made, "the base class was not initialised"
        if not self._lib.starts:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 100")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger
        self._lib.alive.append("runtime")

    def __del__(self) -> None:
        if hasattr(self, "logger"):
            self._lib.gone("runtime")

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        data = bytes(memoryview(serialized_engine))
        self.logger.log(Severity.INFO, f"Loaded engine size: {len(data) >> 20} MiB")
        if not data.startswith(MAGIC):
            where = "In readHeader at /_src/runtime/dispatch/runtime.cpp:765"
            self.logger.log(
                Severity.ERROR,
                "[runtime.cpp::readHeader::765] Error Code 2: Internal Error "
                f"(Assertion bufferSize >= minBufferSize failed.  {where})",
            )
            self.logger.log(Severity.ERROR, "a consequence")
            return None
        plan = json.loads(data[len(MAGIC) :])
        code, weights = self._lib.cuda.cudaMalloc(plan["weights_bytes"])
        if code:
            self.logger.log(Severity.ERROR, "[virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory")
            return None
        return (ICudaEngineOf8 if self._lib.age < 10 else ICudaEngine)(self, plan, weights)


class ICudaEngine:
    def __init__(self, runtime: Runtime, plan: dict[str, Any], weights: int) -> None:
        import onnxruntime as ort

        self._runtime, self._plan = runtime, plan
        self.lib = runtime._lib
        self.lib.alive.append("engine")
        self._weights = weights
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(plan["onnx"], options, providers=["CPUExecutionProvider"])
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.outputs = {node.name: node for node in self.session.get_outputs()}
        self.profiles_in_use: list[int] = []
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = len(plan["profiles"])
        size = plan["scratch_bytes"]
        setattr(self, "device_memory_size" if self.lib.age < 10 else "device_memory_size_v2", size)
        self._shapes: dict[Any, dict[str, tuple[int, ...]]] = {}

    def __del__(self) -> None:
        self.lib.cuda.memory.pop(self._weights, None)
        self.lib.gone("engine")

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        kind = self._plan["types"].get(name) or _TYPES[{**self.inputs, **self.outputs}[name].type]
        return DataType["INT32" if kind == "INT64" and self.lib.age < 10 else kind]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == "rank" else TensorLocation.DEVICE

    def create_execution_context(self, strategy: Any = ExecutionContextAllocationStrategy.STATIC) -> Any:
        if self.lib.contexts_left <= 0:
            self._runtime.logger.log(Severity.ERROR, "[x.cpp::y::1] Error Code 2: OutOfMemory (no further information)")
            return None
        self.lib.contexts_left -= 1
        config = strategy if isinstance(strategy, IRuntimeConfig) else None
        allocation = config._allocation if config else strategy
        user_managed = allocation is ExecutionContextAllocationStrategy.USER_MANAGED
        if config is not None:
            self._compile(config._cache)
        captures = config is not None and config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self.lib.context_class(self, user_managed, captures)

    def _compile(self, cache: IRuntimeCache | None) -> None:
        kernel = Path(self._plan["onnx"]).name
        if cache is None or kernel not in cache._kernels:
            self.lib.compiled.append(kernel)
            if cache is not None:
                cache._kernels.append(kernel)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig(self.lib)

    def numpy_type(self, name: str) -> np.dtype:
        return np.dtype(_NUMPY[self.get_tensor_dtype(name).name])

    def output_shapes(self, shapes: dict[str, tuple[int, ...]], rank: int | None) -> dict[str, tuple[int, ...]]:
        key = (tuple(sorted(shapes.items())), rank)
        if key not in self._shapes:
            feeds = {name: np.zeros(shape, self.numpy_type(name)) for name, shape in shapes.items()}
            self._shapes[key] = {name: array.shape for name, array in self.compute(feeds, rank).items()}
        return self._shapes[key]

    def compute(self, feeds: dict[str, np.ndarray], rank: int | None) -> dict[str, np.ndarray]:
        feeds = {name: a.astype(np.int64) if a.dtype == np.int32 else a for name, a in feeds.items()}
        if rank is not None:
            feeds["rank"] = np.array(rank)
        found = self.session.run(list(self.outputs), feeds)
        return {name: a.astype(self.numpy_type(name)) for name, a in zip(self.outputs, found, strict=True)}


class ICudaEngineOf8(ICudaEngine):
    def create_execution_context(self) -> Any:  # type: ignore[override]
        return ICudaEngine.create_execution_context(self, ExecutionContextAllocationStrategy.STATIC)

    def create_execution_context_without_device_memory(self) -> Any:
        return ICudaEngine.create_execution_context(self, ExecutionContextAllocationStrategy.USER_MANAGED)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, user_managed: bool, captures: bool) -> None:
        self.engine, self.captures = engine, captures
        self.lib = engine.lib
        self.lib.alive.append("context")
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
        self.lib.gone("context")

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
        if self.lib.refuses_to_run or (self._scratch is not None and self._scratch[1] < self._needed()):
            self._error("IExecutionContext::enqueueV3: Error Code 1: Myelin (the kernels are on strike)")
            return False
        recording = self.lib.cuda.is_recording(stream_handle)
        if recording and (self.lib.refuses_to_record or self._settled != self._state):
            self.lib.cuda.invalidate(stream_handle)
            self._error("Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)")
            return False
        self._settled = self._state
        run = _Run(self, recording, stream_handle)
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


class _Run:
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


class FakeTensorRt(types.ModuleType):
    """The module `tensorrt` or `tensorrt_rtx`."""

    def __init__(self, cuda: FakeCuda, name: str = "tensorrt", version: str = "10.3.0") -> None:
        super().__init__(name)
        self.__version__ = version
        self.cuda = cuda
        self.age = 10 if name == "tensorrt_rtx" else int(version.split(".")[0])
        self.ILogger, self.DataType = ILogger, DataType
        self.TensorIOMode, self.TensorLocation = TensorIOMode, TensorLocation
        self.Runtime = type("Runtime", (Runtime,), {"_lib": self})
        if self.age >= 10:
            self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        if name == "tensorrt_rtx":
            self.CudaGraphStrategy = CudaGraphStrategy
        self.context_class = IExecutionContextOf8 if self.age < 10 else IExecutionContext
        self.alive: list[str] = []
        self.order_of_death: list[str] = []
        self.contexts: list[tuple[bool, bool]] = []
        self.executions: list[tuple[int, bool]] = []
        self.running: list[_Run] = []
        self.compiled: list[str] = []
        self.starts = True
        self.contexts_left = 1000
        self.data_dependent = False
        self.refuses_to_run = False
        self.refuses_to_record = False

    def gone(self, what: str) -> None:
        self.alive.remove(what)
        self.order_of_death.append(what)


def fake_engine(onnx: Path, profiles: list[dict[str, Any]], *, scratch_bytes: int = 512, **plan: Any) -> bytes:
    """The bytes of an engine that computes what an ONNX file says."""
    plan = {"types": {}, "weights_bytes": 4096, **plan, "onnx": str(onnx.resolve()), "profiles": profiles}
    return MAGIC + json.dumps({**plan, "scratch_bytes": scratch_bytes}).encode()
