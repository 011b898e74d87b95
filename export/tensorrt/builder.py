"""One engine: a parsed network, a configuration, and the library's builder at work where Ctrl-C still reaches us.

The builder runs for seconds to minutes inside one call. Everything that calls the library gets a thread of its own, so
that an interrupt arrives at once and whole; the library is then told to stop, through the monitor by which it also
reports progress, where it has one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engines import EngineDevice
from nsn_edge.bundle.manifest import RANK_INPUT
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.export.tensorrt.library import Library
from nsn_edge.export.tensorrt.network import Network, parse
from nsn_edge.export.tensorrt.plan import EngineJob
from nsn_edge.export.tensorrt.ranks import follow_ranks_
from nsn_edge.export.tensorrt.timing import TimingCache
from nsn_edge.export.tensorrt.weights import lower_precision_, multiply_out_

_TICK_S = 0.1
_STOP_S = 30.0
"""How long a build that was told to stop may take to do so."""
_LONGEST = 400
_SHAPES = "violate shape constraints"
"""What the builder says of sizes that the graph cannot take."""

Percent = Callable[[int], None]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Built:
    """What the builder gave."""

    data: Any
    """The engine's bytes, in the library's own memory: a buffer."""
    seconds: float


def build_engine(
    library: Library, bundle: Bundle, job: EngineJob, device: EngineDevice, cache: TimingCache, percent: Percent
) -> Built:
    """Build one engine in memory.

    Args:
        library: builds.
        bundle: holds the graph.
        job: what to build.
        device: what for.
        cache: used and added to, where the library has one.
        percent: hears how far the build is, where the library tells.

    Raises:
        EngineError: the parser or the builder refuses, in the library's own words.
        UsageError: the library does not know the precision.
        KeyboardInterrupt: as it came; the build is over by then, or goes down with the process.
    """
    library.check_precision(job.precision)
    start = time.perf_counter()
    stop = threading.Event()

    def work() -> tuple[Any, Any]:
        network = parse(library, bundle.file(job.artifact))
        multiply_out_(network)
        if job.kind == "dynamic":
            follow_ranks_(network, {layer.curve for layer in bundle.manifest.ladder.layers})
        config = network.builder.create_builder_config()
        library.set_target(config, device)
        _set_options(library, config, network, job)
        for profile in job.profiles:
            _add_profile(network, config, profile)
        cache.attach(library, config)
        monitor = _monitor(library.module, percent, stop) if library.has_progress else None
        if monitor is not None:
            config.progress_monitor = monitor
        if stop.is_set():
            return None, config
        data = network.builder.build_serialized_network(network.definition, config)
        if monitor is not None and monitor.failure is not None:
            raise monitor.failure
        return data, config

    with library.messages.kept():
        data, config = _in_a_thread(work, stop, patience_s=_STOP_S if library.has_progress else 0.0)
    if data is None:
        reason = _last_error(library)
        hint = "lower --sequence, --cache or --batch to what the model takes" if _SHAPES in reason else ""
        raise EngineError(f"{library.title} could not build {job.stem} from {job.artifact.path}: {reason}", hint)
    cache.keep(config)
    return Built(data, time.perf_counter() - start)


def _set_options(library: Library, config: Any, network: Network, job: EngineJob) -> None:
    trt = library.module
    flags = trt.BuilderFlag
    # TensorRT lets float32 products round their factors to 10 bits unless told not to.
    (config.clear_flag if job.precision == "fp32" else config.set_flag)(flags.TF32)
    if job.lowers_precision:
        flag = library.precision_flag(job.precision)
        if flag is not None:
            config.set_flag(flag)
        else:
            lower_precision_(network, job.precision)
    elif job.artifact.precision == "fp16" and library.precision_flag("fp16") is not None:
        config.set_flag(library.precision_flag("fp16"))
    if job.options["workspace_mb"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.options["workspace_mb"] * 10**6)
    if job.options["level"] is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise UsageError(f"{library.title} {library.version} has no optimization level", "leave out --level")
        config.builder_optimization_level = job.options["level"]


def _add_profile(network: Network, config: Any, profile: Any) -> None:
    made = network.builder.create_optimization_profile()
    for tensor in network.inputs:
        if tensor.name == RANK_INPUT:
            low, high = profile.rank_range
            made.set_shape_input(RANK_INPUT, [low], [profile.rank], [high])
        else:
            shapes = profile.inputs[tensor.name]
            made.set_shape(tensor.name, shapes.min, shapes.opt, shapes.max)
    if not made or config.add_optimization_profile(made) < 0:
        reason = _last_error(network.library)
        raise EngineError(f"{network.library.title} refuses the profile {profile.name!r}: {reason}")


def _last_error(library: Library) -> str:
    errors = library.messages.errors
    return " ".join(errors[-1].split())[:_LONGEST] if errors else "it does not say why"


def _in_a_thread(work: Callable[[], _Result], stop: threading.Event, patience_s: float) -> _Result:
    """Do the work where no interrupt arrives: one that does while the library calls back into Python is lost in it.

    Args:
        work: looks at `stop` now and then.
        stop: set when an interrupt comes.
        patience_s: how long to wait for the work to stop then.
    """
    result: list[_Result] = []
    failure: list[BaseException] = []
    over = threading.Event()  # and not `join`, which takes a thread for ended when an interrupt came meanwhile

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # handed to the caller's thread
            failure.append(error)
        finally:
            over.set()

    # A daemon: a library that cannot be stopped must not keep an interrupted process alive.
    thread = threading.Thread(target=run, name="engine-builder", daemon=True)
    thread.start()
    try:
        while not over.wait(_TICK_S):
            pass
    except BaseException:
        stop.set()
        over.wait(patience_s)
        raise
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


def _monitor(trt: Any, percent: Percent, stop: threading.Event) -> Any:
    """The library's progress monitor: phases nest, and each knows its number of steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self.phases: dict[str, _Phase] = {}
            self.told = -1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = _Phase(parent_phase, max(num_steps, 1))

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:  # an exception must not travel through the library
                self.phases[phase_name].done = step + 1
                self.tell()
            except BaseException as error:
                self.failure = error
                return False
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def tell(self) -> None:
            now = min(int(100 * self.fraction(None)), 99)
            if now > self.told:
                self.told = now
                percent(now)

        def fraction(self, parent: str | None) -> float:
            inside = [(name, phase) for name, phase in self.phases.items() if phase.parent == parent]
            return max((min((p.done + self.fraction(name)) / p.steps, 1.0) for name, p in inside), default=0.0)

    return Monitor()
