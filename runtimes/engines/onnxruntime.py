"""onnxruntime: CPU everywhere, CUDA and TensorRT where its GPU build and the libraries are installed.

Facts this file rests on (onnxruntime 1.31): creating a session releases the interpreter's lock, so other threads keep
running graphs meanwhile; weights in external files are found beside the graph's own path, hence loading by path; a
provider that cannot start is dropped with a console message unless `enable_fallback=0`, and even then the session may
end up on the CPU, hence the comparison with `get_providers()`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nsn_edge.bundle import TensorSpec
from nsn_edge.errors import EngineError, MissingDependencyError, UsageError
from nsn_edge.runtimes.engines.base import Array, LoadedGraph, check_inputs
from nsn_edge.runtimes.engines.holding import Held, HeldArray

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""onnxruntime's names of the providers this engine can ask for."""

_SILENT = 4  # fatal errors alone: what fails is raised, and would be printed besides
_CHECK_VALUES = "are the ids within the vocabulary, and is the input as long as the model takes?"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class OnnxRuntimeEngine:
    """Loads graphs with onnxruntime."""

    threads: int = 1
    """Threads per inference; 0 lets onnxruntime take every core, which starves whatever else the device does."""
    provider: str = "cpu"
    """`cpu`, `cuda`, `tensorrt`, or `auto`: CUDA where it works, else the CPU. TensorRT is never taken by itself, as it
    builds engines for minutes on the first load."""
    share_weights: bool = False
    """Leave weights in the mapped file instead of repacking them for the processor: a second rank adds next to no
    memory, and every inference is slower, the more so the fewer the tokens. CPU only. Export with `merge=False` for it:
    a merged layer would be multiplied out in every inference."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """Passed to the asked provider as they are (`device_id`, `trt_engine_cache_path`, ...)."""

    def __post_init__(self) -> None:
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 0:
            raise UsageError(f"threads is a whole number of 0 (all cores) or more, not {self.threads!r}")
        if self.provider not in (*PROVIDERS, "auto"):
            raise UsageError(f"unknown provider {self.provider!r}", f"choose {', '.join(PROVIDERS)} or auto")

    @property
    def name(self) -> str:
        """`onnxruntime-` and the provider."""
        return f"onnxruntime-{self.provider}"

    @property
    def owns_threads(self) -> bool:
        """False for one thread on the CPU: then the caller's thread does everything."""
        return self.threads != 1 or self.provider != "cpu"

    def load(self, graph_path: Path) -> LoadedGraph:
        """Load a graph by its path.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            EngineError: the provider is not there or did not start, or the graph cannot be loaded.
        """
        ort = _import_onnxruntime()
        wanted = self._wanted_provider(ort.get_available_providers())
        chain: list[Any] = [(wanted, dict(self.provider_options))]
        if wanted == PROVIDERS["tensorrt"]:
            chain.append(PROVIDERS["cuda"])  # what TensorRT cannot take should stay on the GPU
        if wanted != PROVIDERS["cpu"]:
            chain.append(PROVIDERS["cpu"])
        try:
            session = ort.InferenceSession(
                str(graph_path), sess_options=self._options(ort), providers=chain, enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            if self.provider == "auto" and wanted != PROVIDERS["cpu"]:
                return OnnxRuntimeEngine(self.threads, "cpu", self.share_weights).load(graph_path)
            raise EngineError(f"onnxruntime cannot load {graph_path.name}: {_first_line(error)}") from error
        if self.provider != "auto" and wanted not in session.get_providers():
            raise EngineError(
                f"onnxruntime has the {self.provider} provider but could not start it, and would use "
                f"{', '.join(session.get_providers())}",
                "install the CUDA libraries it was built for (pip install 'onnxruntime-gpu[cuda,cudnn]'), "
                "or ask for --provider cpu",
            )
        on_gpu = PROVIDERS["cuda"] in session.get_providers()
        device = ("cuda", int(self.provider_options.get("device_id", 0))) if on_gpu else ("cpu", 0)
        return OnnxRuntimeGraph(graph_path.name, session, device)

    def describe(self) -> dict[str, Any]:
        """Engine, version, asked and available providers, settings."""
        ort = _import_onnxruntime()
        return {
            "engine": self.name,
            "version": ort.__version__,
            "provider": self.provider,
            "available_providers": ort.get_available_providers(),
            "provider_options": dict(self.provider_options),
            "threads": self.threads,
            "share_weights": self.share_weights,
        }

    def _wanted_provider(self, available: list[str]) -> str:
        if self.provider == "auto":
            return PROVIDERS["cuda"] if PROVIDERS["cuda"] in available else PROVIDERS["cpu"]
        wanted = PROVIDERS[self.provider]
        if wanted not in available:
            known = [name for name, full_name in PROVIDERS.items() if full_name in available]
            raise EngineError(
                f"this onnxruntime has no {self.provider} provider; it has {', '.join(known)}",
                "pip uninstall onnxruntime, then pip install 'nsn-edge[ort-gpu]' for NVIDIA GPUs",
            )
        return wanted

    def _options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        if self.share_weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
            # A folded constant is a copy, of each factor transposed; unfolded, the product reads the mapped rows.
            options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
        return options


class OnnxRuntimeGraph:
    """A graph held by an onnxruntime session."""

    def __init__(self, name: str, session: Any, device: tuple[str, int] = ("cpu", 0)) -> None:
        """
        Args:
            name: for messages.
            session: an `onnxruntime.InferenceSession`.
            device: kind and number of the device where held tensors stay.
        """
        self._name = name
        self._session = session
        self._device = device
        self._inputs = tuple(_spec(name, node) for node in session.get_inputs())
        self._outputs = tuple(_spec(name, node) for node in session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        return self._outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name; the arrays belong to the caller.

        Raises:
            EngineError: the inputs do not fit, the graph was closed, or onnxruntime failed.
        """
        check_inputs(self._name, self._inputs, inputs)
        if self._session is None:
            raise EngineError(f"{self._name} was closed")
        try:
            outputs = self._session.run(self._output_names, inputs)
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            raise EngineError(
                f"onnxruntime failed while running {self._name}: {_first_line(error)}", _CHECK_VALUES
            ) from error
        return dict(zip(self._output_names, outputs, strict=True))

    def run_holding(
        self, inputs: Mapping[str, Array], held: Mapping[str, Held], hold: Collection[str]
    ) -> tuple[dict[str, Array], dict[str, Held]]:
        """As the function `run_holding`, by I/O binding. Held tensors are `OrtValue`s: they outlive this graph, and
        on a GPU they never leave it.

        Raises:
            EngineError: the inputs do not fit, the graph was closed, or onnxruntime failed.
        """
        arrays = {**inputs, **{name: tensor.array for name, tensor in held.items() if isinstance(tensor, HeldArray)}}
        bound = {name: tensor for name, tensor in held.items() if name not in arrays}
        check_inputs(self._name, tuple(spec for spec in self._inputs if spec.name not in bound), arrays)
        session = self._session
        if session is None:
            raise EngineError(f"{self._name} was closed")
        binding = session.io_binding()
        try:
            for name, array in arrays.items():
                arrays[name] = np.ascontiguousarray(array)  # kept in `arrays`: the binding does not own it
                binding.bind_cpu_input(name, arrays[name])
            for name, tensor in bound.items():
                binding.bind_ortvalue_input(name, tensor)
            for name in self._output_names:
                binding.bind_output(name, *(self._device if name in hold else ("cpu", 0)))
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            raise EngineError(
                f"onnxruntime failed while running {self._name}: {_first_line(error)}", _CHECK_VALUES
            ) from error
        outputs = dict(zip(self._output_names, binding.get_outputs(), strict=True))
        returned = {name: value.numpy() for name, value in outputs.items() if name not in hold}
        return returned, {name: value for name, value in outputs.items() if name in hold}

    def close(self) -> None:
        """Free the session's memory."""
        self._session = None


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "ort", "running a bundle") from error
    # Messages that belong to no session (a container without /sys/class/drm, for one) would reach the console.
    onnxruntime.set_default_logger_severity(_SILENT)
    return onnxruntime


def _spec(graph: str, node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise EngineError(
            f"{graph} has the tensor {node.name!r} of type {node.type}, which this engine does not pass on"
        )
    shape = tuple(size if isinstance(size, int) else str(size) for size in node.shape)
    return TensorSpec(node.name, _DTYPES[node.type], shape)


def _first_line(error: Exception) -> str:
    """onnxruntime's messages run over many lines and repeat the path of its own sources."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
