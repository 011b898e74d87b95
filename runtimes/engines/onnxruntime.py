"""onnxruntime: CPU everywhere, CUDA and TensorRT where its GPU build and the libraries are installed.

onnxruntime.py             loads a graph            onnxruntime_providers.py   on what it runs, and whether it does
onnxruntime_graph.py       runs it                  onnxruntime_tensorrt.py    building engines once
onnxruntime_weights.py     weights on the device once for all graphs

Facts this file rests on (onnxruntime 1.31): creating a session releases the interpreter's lock, so other threads keep
running graphs meanwhile; weights in external files are found beside the graph's own path, hence loading by path; a
provider that cannot start is dropped with a console message unless `enable_fallback=0`, and even then the session may
end up on the CPU, hence the checks in `onnxruntime_providers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsn_edge.errors import EngineError, MissingDependencyError, ProviderError, UsageError
from nsn_edge.runtimes.engines.base import LoadedGraph
from nsn_edge.runtimes.engines.onnxruntime_graph import OnnxRuntimeGraph, first_line
from nsn_edge.runtimes.engines.onnxruntime_providers import (
    PROVIDERS,
    RECORD_PLACEMENT,
    START_HINTS,
    blames_libraries,
    check_placement,
    check_started,
    placement,
    provider_chain,
    wanted_provider,
)
from nsn_edge.runtimes.engines.onnxruntime_tensorrt import Range, tensorrt_options
from nsn_edge.runtimes.engines.onnxruntime_weights import DeviceWeights

__all__ = ["PROVIDERS", "OnnxRuntimeEngine"]

_SILENT = 4  # fatal errors alone: what fails is raised, and would be printed besides


@dataclass(frozen=True)
class OnnxRuntimeEngine:
    """Loads graphs with onnxruntime."""

    threads: int = 1
    """Threads per inference; 0 lets onnxruntime take every core, which starves whatever else the device does."""
    provider: str = "cpu"
    """`cpu`, `cuda`, `tensorrt`, or `auto`: CUDA where it works, else the CPU. TensorRT is never taken by itself, as it
    builds engines for minutes on the first load."""
    share_weights: bool = False
    """Hold the weights once for all graphs: a second rank adds next to no memory. On the CPU they stay in the mapped
    file instead of being repacked for the processor, and every inference is slower, the more so the fewer the tokens.
    With `cuda` they lie on the GPU, and graphs use prefixes of them; with `tensorrt` it cannot be, an engine holds its
    own. Export with `merge=False` for it: a merged layer would be multiplied out in every inference."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """Passed to the asked provider as they are (`device_id`, `trt_fp16_enable`, ...); they win over what this engine
    adds."""
    shapes: Mapping[str, Range] = field(default_factory=dict)
    """With `tensorrt`: the least, usual and largest size of each named dimension, and of `rank`. By default
    `usual_shapes` of the bundle: up to 8 sequences of up to 512 tokens, every rank from the lowest rung on."""
    engine_cache: Path | None = None
    """With `tensorrt`: where engines are kept; in `engines/` beside the graph by default."""
    _weights: dict[tuple[str, int], DeviceWeights] = field(default_factory=dict, init=False, repr=False, compare=False)
    _loaded: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 0:
            raise UsageError(f"threads is a whole number of 0 (all cores) or more, not {self.threads!r}")
        if self.provider not in (*PROVIDERS, "auto"):
            raise UsageError(f"unknown provider {self.provider!r}", f"choose {', '.join(PROVIDERS)} or auto")
        if self.share_weights and self.provider == "tensorrt":
            raise UsageError(
                "TensorRT engines each hold their own weights, which cannot be shared",
                "leave --share-weights out, ask for --provider cuda, or take the sliced form: one engine for all ranks",
            )

    @property
    def name(self) -> str:
        """`onnxruntime-` and the provider."""
        return f"onnxruntime-{self.provider}"

    @property
    def owns_threads(self) -> bool:
        """False for one thread on the CPU: then the caller's thread does everything."""
        return self.threads != 1 or self.provider != "cpu"

    @property
    def device_weight_bytes(self) -> int:
        """Weights that now lie on a GPU, shared by all graphs that this engine loaded."""
        return sum(weights.resident_bytes for weights in self._weights.values())

    def load(self, graph_path: Path) -> LoadedGraph:
        """Load a graph by its path.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            ProviderError: the provider is not there, did not start, or leaves the graph's products to the CPU.
            EngineError: the graph cannot be loaded.
        """
        ort = _import_onnxruntime()
        wanted = wanted_provider(self.provider, ort.get_available_providers())
        options = self._options(ort)
        on_gpu = wanted != PROVIDERS["cpu"]
        device = ("cuda", int(self.provider_options.get("device_id", 0))) if on_gpu else ("cpu", 0)
        try:
            chain = provider_chain(wanted, self._provider_options(wanted, graph_path, ort.__version__))
            weights = (
                self._device_weights(device).add_to(options, graph_path, ort) if self._shares_on_gpu(wanted) else []
            )
            session = ort.InferenceSession(str(graph_path), sess_options=options, providers=chain, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            if self.provider == "auto" and on_gpu:
                return OnnxRuntimeEngine(self.threads, "cpu", self.share_weights).load(graph_path)
            if isinstance(error, (EngineError, UsageError)):
                raise
            failed = f"onnxruntime cannot load {graph_path.name}: {first_line(error)}"
            if self.provider != "cpu" and blames_libraries(error):
                raise ProviderError(failed, START_HINTS[self.provider]) from error
            raise EngineError(failed) from error
        if self.provider != "auto":
            check_started(self.provider, session)
        if PROVIDERS["cuda"] not in session.get_providers():
            device = ("cpu", 0)
        self._note(graph_path.name, session)
        return OnnxRuntimeGraph(graph_path.name, session, device, weights)

    def describe(self) -> dict[str, Any]:
        """Engine, version, asked and available providers, settings; of each graph loaded on a GPU, the options that
        its providers run with and how many nodes each got."""
        ort = _import_onnxruntime()
        return {
            "engine": self.name,
            "version": ort.__version__,
            "provider": self.provider,
            "available_providers": ort.get_available_providers(),
            "provider_options": dict(self.provider_options),
            "threads": self.threads,
            "share_weights": self.share_weights,
            "device_weight_bytes": self.device_weight_bytes,
            "loaded": dict(self._loaded),
        }

    def _note(self, graph: str, session: Any) -> None:
        """Check what went where, and keep it for `describe`."""
        if session.get_providers() == [PROVIDERS["cpu"]]:
            return
        counts = placement(session)
        if self.provider != "auto":
            check_placement(self.provider, graph, counts)
        self._loaded[graph] = {
            "provider_options": session.get_provider_options(),
            "nodes": {provider: nodes.total() for provider, nodes in counts.items()} if counts else None,
        }

    def _provider_options(self, wanted: str, graph_path: Path, version: str) -> dict[str, Any]:
        own: dict[str, Any] = {}
        if wanted == PROVIDERS["tensorrt"]:
            own = dict(tensorrt_options(graph_path, self.shapes, self.engine_cache, version))
        elif self._shares_on_gpu(wanted):
            # An arena that doubles would take more than the rung it is for.
            own = {"arena_extend_strategy": "kSameAsRequested"}
        return {**own, **self.provider_options}

    def _shares_on_gpu(self, wanted: str) -> bool:
        return self.share_weights and wanted == PROVIDERS["cuda"]

    def _device_weights(self, device: tuple[str, int]) -> DeviceWeights:
        return self._weights.setdefault(device, DeviceWeights(*device))

    def _options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        # Each graph has threads of its own, which would wait spinning for its next call: on the cores that the rung
        # in use needs. See docs/decisions/0016-idle-rungs-do-not-spin.md.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.provider != "cpu":
            options.add_session_config_entry(RECORD_PLACEMENT, "1")
        if self.share_weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
            # A folded constant is a copy, of each factor transposed; unfolded, the product reads the rows themselves.
            options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
            # An arena keeps each graph's largest activations for good; freed, all graphs use the same memory in turn.
            options.enable_cpu_mem_arena = False
        return options


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "ort", "running a bundle") from error
    # Messages that belong to no session (a container without /sys/class/drm, for one) would reach the console.
    onnxruntime.set_default_logger_severity(_SILENT)
    return onnxruntime
