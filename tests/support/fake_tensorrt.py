"""TensorRT without a GPU: the runtime's API over `fake_cuda`, with onnxruntime for kernels.

It computes from the bytes that lie at the addresses it was told, when the stream comes to it, so that a missing copy,
a stale CUDA graph or a buffer used twice shows as wrong numbers. Where TensorRT returns None or False and tells its
logger why, so does this; where it raises, this raises. What TensorRT leaves undefined (a CUDA graph whose context has
changed since, scratch memory used by two at once) gives rubbish here.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fake_cuda import FakeCuda
from fake_tensorrt_context import IExecutionContext, IExecutionContextOf8, Run
from fake_tensorrt_names import (
    CudaGraphStrategy,
    DataType,
    ExecutionContextAllocationStrategy,
    ILogger,
    Severity,
    TensorIOMode,
    TensorLocation,
)

MAGIC = b"FAKE ENGINE\n"
_TYPES = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64", "tensor(float16)": "HALF"}
_NUMPY = {"FLOAT": np.float32, "INT64": np.int64, "INT32": np.int32, "HALF": np.float16, "BF16": np.uint16}


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
        self._weights, self.device = weights, self.lib.cuda.current_device
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
        self.running: list[Run] = []
        self.compiled: list[str] = []
        self.starts = True
        self.contexts_left = 1000
        self.data_dependent = False
        self.refuses_to_run = False
        self.refuses_to_record = False
        self.while_recording: Callable[[], None] = lambda: None
        """Called in the midst of each recording."""

    def gone(self, what: str) -> None:
        self.alive.remove(what.partition(" ")[0])
        self.order_of_death.append(what)


def fake_engine(onnx: Path, profiles: list[dict[str, Any]], *, scratch_bytes: int = 512, **plan: Any) -> bytes:
    """The bytes of an engine that computes what an ONNX file says."""
    plan = {"types": {}, "weights_bytes": 4096, **plan, "onnx": str(onnx.resolve()), "profiles": profiles}
    return MAGIC + json.dumps({**plan, "scratch_bytes": scratch_bytes}).encode()
