"""Profile a bundle: load every rung, measure them against each other, write down on what.

profile = profile_bundle(Bundle.open("bundle"), OnnxRuntimeEngine(threads=1), ProfileSettings(sequence_length=128))
profile.save(Path("profile.json"))
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engines import bundle_hash
from nsn_edge.bundle.manifest import FORMS_OF_RUNGS, GRAPH_FORMS
from nsn_edge.errors import UsageError
from nsn_edge.ladder import RankLadder
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.dynamic import RankInputs
from nsn_edge.runtimes.engines import Engine, LoadedGraph, fix_inputs
from nsn_edge.runtimes.profiling.conditions import Watcher
from nsn_edge.runtimes.profiling.device import device_key, runs_on_gpu
from nsn_edge.runtimes.profiling.energy import EnergyMeter, EnergySettings, mean_energy_mj
from nsn_edge.runtimes.profiling.host import Host, describe_host
from nsn_edge.runtimes.profiling.inputs import PAST_LENGTH, Inputs, synthesise_inputs, vocabulary_size
from nsn_edge.runtimes.profiling.measure import Clock, MeasureSettings, measure
from nsn_edge.runtimes.profiling.memory import (
    MemoryUse,
    device_memory_mb,
    give_memory_back,
    peak_memory_mb,
    reset_peak_memory,
    resident_memory_mb,
)
from nsn_edge.runtimes.profiling.result import Profile, RungProfile
from nsn_edge.runtimes.profiling.sensors import energy_sensor
from nsn_edge.runtimes.profiling.stats import LatencyStats
from nsn_edge.runtimes.profiling.turns import Turns
from nsn_edge.runtimes.profiling.warnings import warnings_about
from nsn_edge.runtimes.telemetry import NvmlGpu, TelemetrySource

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ProfileSettings:
    """What to measure, and how much."""

    batch_size: int = 1
    """Fills the dimension `batch_size` of the inputs."""
    sequence_length: int = 128
    """Fills the dimension `sequence_length`."""
    dimensions: Mapping[str, int] = field(default_factory=dict)
    """Fills other named dimensions; wins over the two above. `past_sequence_length`, tokens in a decoder's cache, is 0
    unless given here."""
    form: str = "static"
    """Which graphs: one per rung (`static`), or the one that serves every rank (the other `GRAPH_FORMS`)."""
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    """Warm-up, repetitions, time."""
    energy: EnergySettings = field(default_factory=EnergySettings)
    """Of the part that measures energy, where a sensor is."""
    settle_s: float = 0.0
    """Run for so many seconds at most before anything is timed, until the device's temperature no longer rises."""

    def __post_init__(self) -> None:
        if not 0 <= self.settle_s < float("inf"):
            raise UsageError(f"cannot let the device settle for {self.settle_s} s", "say 0 or more seconds")
        if self.form not in GRAPH_FORMS:
            raise UsageError(f"unknown form {self.form!r}", f"choose {', '.join(GRAPH_FORMS)}")
        for name, size in self.sizes.items():
            if size < (0 if name == PAST_LENGTH else 1):
                raise UsageError(f"the dimension {name!r} cannot be {size}", "sizes are 1 or more")

    @property
    def sizes(self) -> dict[str, int]:
        """Every known dimension by name."""
        own = {"batch_size": self.batch_size, "sequence_length": self.sequence_length, PAST_LENGTH: 0}
        return {**own, **self.dimensions}


@dataclass(frozen=True)
class Loaded:
    """A rung in memory, ready to be called."""

    call: Callable[[], object]
    load_ms: float
    """Of its graph; the same for all ranks of a graph that serves several."""
    first_run_ms: float
    memory_mb: float | None
    """What loading the graph and its first run added to the resident memory."""


def profile_bundle(
    bundle: Bundle,
    engine: Engine,
    settings: ProfileSettings | None = None,
    *,
    ranks: Sequence[int] | None = None,
    source: TelemetrySource | None = None,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    host: Callable[[], Host] = describe_host,
    progress: Progress = silent,
) -> Profile:
    """Measure every rung of a bundle in one configuration.

    All rungs stay loaded while they are measured, as they share their weights; the graphs are closed at the end.

    Args:
        bundle: checked.
        engine: loads and runs the graphs.
        settings: the defaults measure one sequence of 128 tokens.
        ranks: rungs to measure; all by default.
        source: sensors for energy and for how the device was; without one neither is in the profile.
        clock: seconds.
        sleep: waits for so many seconds while idle power is measured.
        host: describes the machine.
        progress: hears of loading and measuring.

    Raises:
        UsageError: a named dimension is unknown, the sequence is longer than the model takes, or the bundle lacks
            the form.
        RankError: a rank has no rung.
        EngineError: the engine could not load or run a graph.
    """
    settings = settings or ProfileSettings()
    chosen = chosen_ranks(bundle, ranks)
    inputs = made_up_inputs(bundle, settings)
    machine = host()
    watcher = None if source is None else Watcher(source, clock)
    meter = None
    if source is not None and settings.energy.turn_s > 0:
        meter = EnergyMeter(energy_sensor(source), clock, sleep)
        meter.measure_idle(settings.energy.idle_s)
    turns = Turns(watcher)
    own_peak, before_mb, device_before_mb = reset_peak_memory(), resident_memory_mb(), _device_mb(engine)
    with contextlib.ExitStack() as stack:
        loaded = load_rungs(bundle, engine, settings.form, chosen, inputs, stack, clock, progress)
        loaded_mb = resident_memory_mb()
        calls = {rank: rung.call for rank, rung in loaded.items()}
        if watcher is not None and settings.settle_s > 0:
            watcher.settle(list(calls.values()), settings.settle_s)
        samples = measure(calls, settings.measure, clock=clock, after_turn=turns.add, progress=progress)
        conditions = None if watcher is None else watcher.conditions()
        spent = {} if meter is None else meter.per_call(calls, settings.energy, progress=progress)
        memory = MemoryUse(before_mb, loaded_mb, resident_memory_mb(), own_peak, _grown(device_before_mb, engine))
        peak_mb = peak_memory_mb()
    rungs = tuple(
        _rung(bundle, rank, settings, samples[rank], loaded[rank], turns.of(rank), spent.get(rank, ()))
        for rank in chosen
    )
    description = engine.describe()
    energy = None if meter is None else meter.method()
    return Profile(
        bundle_path=str(bundle.path),
        model=bundle.manifest.model,
        host=machine.to_json(),
        settings={**_settings_json(settings, description), "precision": bundle.manifest.precision},
        rungs=rungs,
        peak_memory_mb=peak_mb,
        warnings=tuple(warnings_about(rungs, settings.measure, machine, description, conditions, energy)),
        bundle_hash=bundle_hash(bundle.manifest),
        device=device_key(machine, description),
        memory=memory,
        conditions=conditions,
        energy=energy,
    )


def chosen_ranks(bundle: Bundle, ranks: Sequence[int] | None) -> list[int]:
    """The rungs to measure, rising; every one of the bundle by default.

    Raises:
        UsageError: there are none.
        RankError: a rank has no rung.
    """
    ladder = bundle.manifest.ladder
    chosen = sorted(set(ladder.ranks if ranks is None else ranks))
    if not chosen:
        raise UsageError(f"{bundle.path} has no rungs to profile", "export it with rungs, or name ranks")
    for rank in chosen:
        ladder.rung(rank)
    return chosen


def made_up_inputs(bundle: Bundle, settings: ProfileSettings) -> Inputs:
    """What every rung is called with.

    Raises:
        UsageError: a named dimension is unknown, or the sequence is longer than the model takes.
    """
    longest = bundle.manifest.task.max_length
    past = settings.sizes[PAST_LENGTH]
    length = past + settings.sizes["sequence_length"]
    named = {size for spec in bundle.manifest.inputs for size in spec.shape if isinstance(size, str)}
    known = named | {part for name in named for part in name.split(" + ")}
    if strays := sorted(set(settings.dimensions) - known):
        raise UsageError(
            f"{bundle.manifest.model} has no dimension {strays[0]!r}",
            f"it has {', '.join(sorted(known)) or 'none that varies'}",
        )
    takes_sequences = any("sequence_length" in spec.shape for spec in bundle.manifest.inputs)
    if takes_sequences and longest is not None and length > longest:
        raise UsageError(
            f"a sequence of {length} is longer than the {longest} that {bundle.manifest.model} takes",
            f"ask for {longest} or less: --sequence and --past together"
            if past
            else f"ask for --sequence {longest} or less",
        )
    return synthesise_inputs(bundle.manifest.inputs, settings.sizes, vocabulary=vocabulary_size(bundle))


def load_rungs(
    bundle: Bundle,
    engine: Engine,
    form: str,
    ranks: Sequence[int],
    inputs: Inputs,
    stack: contextlib.ExitStack,
    clock: Clock,
    progress: Progress,
) -> dict[int, Loaded]:
    """Every rung in memory and called once; `stack` closes the graphs."""
    # The first load of all pays for importing the engine and starting it. No rung should be blamed for that.
    engine.load(bundle.file(bundle.graph(ranks[0], form))).close()
    give_memory_back()
    rungs: dict[int, Loaded] = {}
    graphs: dict[Path, tuple[LoadedGraph, float]] = {}
    grown: dict[Path, float | None] = {}
    extra = None if form == "static" else RankInputs(bundle, form)
    for done, rank in enumerate(ranks, start=1):
        file = bundle.file(bundle.graph(rank, form))
        before_mb = resident_memory_mb()
        if file not in graphs:
            graphs[file] = _timed(lambda file=file: engine.load(file), clock)  # type: ignore[misc]
            stack.callback(graphs[file][0].close)
        graph, load_ms = graphs[file]
        call = _call(graph if extra is None else fix_inputs(graph, extra.at(rank)), inputs)
        _, first_run_ms = _timed(call, clock)
        after_mb = resident_memory_mb()
        if file not in grown:
            grown[file] = None if before_mb is None or after_mb is None else after_mb - before_mb
        rungs[rank] = Loaded(call, load_ms, first_run_ms, grown[file])
        progress("load", done, len(ranks))
    return rungs


def _timed(call: Callable[[], _Result], clock: Clock) -> tuple[_Result, float]:
    start = clock()
    result = call()
    return result, (clock() - start) * 1e3


def _call(graph: LoadedGraph, inputs: Inputs) -> Callable[[], object]:
    return lambda: graph.run(inputs)


def _device_mb(engine: Engine) -> float | None:
    """Memory in use on the GPU that the engine runs on; None for the processor, or where nobody says."""
    return device_memory_mb(NvmlGpu.open) if runs_on_gpu(engine.describe()) else None


def _grown(before_mb: float | None, engine: Engine) -> float | None:
    after_mb = None if before_mb is None else _device_mb(engine)
    return None if before_mb is None or after_mb is None else after_mb - before_mb


def _rung(
    bundle: Bundle,
    rank: int,
    settings: ProfileSettings,
    samples_ms: Sequence[float],
    loaded: Loaded,
    turns_ms: tuple[float, ...],
    energy_mj: tuple[float, ...],
) -> RungProfile:
    ladder = bundle.manifest.ladder
    rung = ladder.rung(rank)
    dense, macs = flops_of(bundle, rank, settings.form)
    latency = LatencyStats.from_samples(samples_ms)
    batch_size = settings.sizes["batch_size"]
    return RungProfile(
        rank=rank,
        dense=dense,
        flops_fraction=macs / ladder.dense_macs,
        macs=macs,
        latency=latency,
        load_ms=loaded.load_ms,
        throughput_per_s=batch_size * 1e3 / latency.mean_ms if latency.mean_ms > 0 else 0.0,
        quality=rung.quality if dense == rung.dense else {},
        energy_mj=mean_energy_mj(energy_mj),
        energy_rounds_mj=energy_mj,
        first_run_ms=loaded.first_run_ms,
        memory_mb=loaded.memory_mb,
        turns_ms=turns_ms,
    )


def flops_of(bundle: Bundle, rank: int, form: str) -> tuple[bool, int]:
    """Whether a form answers as the dense original at a rank, and its MACs for one token."""
    # Other forms hold factors alone: at the top rank too, where the ladder's rung may be the original.
    dense = bundle.answers_as_original(rank, form)
    return dense, _macs(bundle.manifest.ladder, rank, dense, form)


def _macs(ladder: RankLadder, rank: int, dense: bool, form: str) -> int:
    """MACs for one token as this form computes them: only graphs of rungs merge layers past break-even, and a masked
    graph computes the full rank whatever is asked."""
    if dense:
        return ladder.dense_macs
    if form in FORMS_OF_RUNGS:
        return ladder.macs(rank)
    return sum(
        (layer.curve.full_rank if form == "masked" else layer.curve(rank)) * (layer.d_in + layer.d_out)
        for layer in ladder.layers
    )


def _settings_json(settings: ProfileSettings, engine: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **engine,
        "form": settings.form,
        "batch_size": settings.sizes["batch_size"],
        "sequence_length": settings.sizes["sequence_length"],
        "dimensions": dict(settings.dimensions),
        **asdict(settings.measure),
        **{f"energy_{key}": value for key, value in asdict(settings.energy).items()},
        "settle_s": settings.settle_s,
    }
