"""The libraries and their ages behind one face: JetPack's `tensorrt` (8.6, 10.x), and `tensorrt_rtx`.

                         tensorrt 8.6                      tensorrt 10 and later         tensorrt_rtx
    context without      ..._without_device_memory()       strategy USER_MANAGED         a runtime config with both
      scratch memory
    its scratch memory   device_memory = address           set_device_memory(a, size)    set_device_memory(a, size)
    CUDA graphs          captured by us                    captured by us                captured by the library
    a profile serves     one context at a time             any number of contexts        any number of contexts

The library is asked what it can do, not how old it is, wherever it can be asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from nsn_edge.bundle.engine_record import BACKENDS
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.nvidia import Messages, import_library, messages_of, reason
from nsn_edge.runtimes.engines.tensorrt.kernels import KernelCache

_FIRST_WITH_SHARED_PROFILES = 10
_NO_MEMORY = re.compile("out ?of ?memory|MemoryAllocation", re.IGNORECASE)
_LESS = "keep fewer rungs in memory, or free the GPU"
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Library:
    """TensorRT or TensorRT-RTX, imported."""

    backend: str
    """As users type it, one of `BACKENDS`."""
    module: Any
    """`tensorrt` or `tensorrt_rtx`."""
    messages: Messages
    """Its logger."""

    @classmethod
    def of(cls, backend: str) -> Library:
        """Import the library of a backend.

        Raises:
            UsageError: there is no such backend.
            MissingDependencyError: it is not installed.
            EngineError: it is installed and cannot be imported.
        """
        if backend not in BACKENDS:
            raise UsageError(f"unknown TensorRT {backend!r}", f"choose {' or '.join(BACKENDS)}")
        module = import_library(BACKENDS[backend], f"running an engine of {backend}")
        return cls(backend, module, messages_of(module))

    @property
    def name(self) -> str:
        """The module's name, as engine records spell it."""
        return BACKENDS[self.backend]

    @property
    def version(self) -> str:
        """In full."""
        return str(self.module.__version__)

    @property
    def captures_itself(self) -> bool:
        """Whether the library makes CUDA graphs on its own. Its kernels may be replaced by better ones while a model
        runs, so it knows when to capture, and we do not."""
        return hasattr(self.module, "CudaGraphStrategy")

    @property
    def shares_profiles(self) -> bool:
        """Whether several contexts may use one optimization profile at the same time."""
        return self.name == "tensorrt_rtx" or int(self.version.split(".")[0]) >= _FIRST_WITH_SHARED_PROFILES

    def runtime(self) -> Any:
        """A `Runtime`.

        Raises:
            EngineError: the library does not start.
        """
        with self.messages.collected() as errors:
            try:
                return self.module.Runtime(self.messages.logger)
            except (RuntimeError, TypeError) as error:  # pybind11's word for a constructor that gave nothing
                raise EngineError(f"{self.backend} does not start: {_why(errors, error)}") from error

    def deserialised(self, runtime: Any, data: Any, name: str, mend: str) -> Any:
        """An `ICudaEngine` of the bytes of an engine file.

        Raises:
            EngineError: the library refuses them; `mend` is the hint.
        """
        with self.messages.collected() as errors:
            engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            why = reason(errors)
            hint = _LESS if _NO_MEMORY.search(why) else mend
            raise EngineError(f"{self.backend} cannot load {name}: {why}", hint)
        return engine

    def context(self, engine: Any, profile: int, stream: int, capture: bool, kernels: KernelCache) -> Any:
        """An `IExecutionContext` at a profile, without scratch memory of its own.

        Args:
            engine: an `ICudaEngine`.
            profile: number of the optimization profile.
            stream: where the choice of the profile is queued: the one that the context will run in.
            capture: let the library make CUDA graphs, where it does.
            kernels: compiled ones, for a library that compiles when it runs.

        Raises:
            EngineError: there is no room for it, or the profile is another context's.
        """
        with self.messages.collected() as errors:
            try:
                context = self._new_context(engine, capture, kernels)
                if context is not None and context.active_optimization_profile != profile:
                    context.set_optimization_profile_async(profile, stream)  # raises where others return False
            except RuntimeError as error:
                raise EngineError(f"{self.backend} cannot use the profile {profile}: {_why(errors, error)}") from error
        if context is None:
            raise EngineError(f"{self.backend} made no execution context: {reason(errors)}")
        return context

    def _new_context(self, engine: Any, capture: bool, kernels: KernelCache) -> Any:
        strategies = getattr(self.module, "ExecutionContextAllocationStrategy", None)
        if strategies is None:
            return engine.create_execution_context_without_device_memory()
        if not self.captures_itself:
            return engine.create_execution_context(strategies.USER_MANAGED)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        kernels.attach(config)
        graphs = self.module.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if capture else graphs.DISABLED
        return engine.create_execution_context(config)

    def scratch_bytes(self, engine: Any) -> int:
        """Memory that a context of the engine works in, whatever the profile."""
        sized = "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size"
        return int(getattr(engine, sized))

    def give_scratch(self, context: Any, address: int, size_bytes: int) -> None:
        """Let a context work in this memory from the next run on."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size_bytes)
        else:
            context.device_memory = address

    def dtype(self, engine: Any, name: str) -> str:
        """numpy's name of the dtype of an engine's tensor.

        Raises:
            EngineError: numpy has none.
        """
        kind = engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise EngineError(f"the tensor {name!r} of the engine is {kind}, which numpy cannot hold")
        return _DTYPES[kind]

    def is_input(self, engine: Any, name: str) -> bool:
        """Whether a tensor of the engine is an input."""
        return bool(engine.get_tensor_mode(name) == self.module.TensorIOMode.INPUT)

    def is_on_host(self, engine: Any, name: str) -> bool:
        """Whether a tensor of the engine is read where the processor writes it: one whose value is a shape."""
        return bool(engine.get_tensor_location(name) == self.module.TensorLocation.HOST)


def _why(errors: list[str], error: Exception) -> str:
    return reason(errors or [str(error) or type(error).__name__])
