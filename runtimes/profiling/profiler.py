"""Profile a bundle: load every rung, measure them against each other, write down on what.

profile = profile_bundle(Bundle.open("bundle"), OnnxRuntimeEngine(threads=1), ProfileSettings(sequence_length=128))
profile.save(Path("profile.json"))
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.manifest import FORMS_OF_RUNGS, GRAPH_FORMS
from nsn_edge.errors import UsageError
from nsn_edge.ladder import RankLadder
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.dynamic import RankInputs
from nsn_edge.runtimes.engines import Engine, LoadedGraph, fix_inputs
from nsn_edge.runtimes.profiling.host import Host, describe_host
from nsn_edge.runtimes.profiling.inputs import PAST_LENGTH, Inputs, synthesise_inputs, vocabulary_size
from nsn_edge.runtimes.profiling.measure import Clock, MeasureSettings, measure
from nsn_edge.runtimes.profiling.memory import peak_memory_mb
from nsn_edge.runtimes.profiling.result import Profile, RungProfile
from nsn_edge.runtimes.profiling.stats import SAMPLES_FOR_P99, UNSTEADY_CV, LatencyStats

_FIXED_CLOCKS = frozenset({"performance", "userspace"})


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

    def __post_init__(self) -> None:
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


def profile_bundle(
    bundle: Bundle,
    engine: Engine,
    settings: ProfileSettings | None = None,
    *,
    ranks: Sequence[int] | None = None,
    clock: Clock = time.perf_counter,
    host: Callable[[], Host] = describe_host,
    progress: Progress = silent,
) -> Profile:
    """Measure every rung of a bundle.

    All rungs stay loaded while they are measured, as they share their weights; the graphs are closed at the end.

    Args:
        bundle: checked.
        engine: loads and runs the graphs.
        settings: the defaults measure one sequence of 128 tokens.
        ranks: rungs to measure; all by default.
        clock: seconds.
        host: describes the machine.
        progress: hears of loading and measuring.

    Raises:
        UsageError: a named dimension is unknown, the sequence is longer than the model takes, or the bundle lacks
            the form.
        RankError: a rank has no rung.
        EngineError: the engine could not load or run a graph.
    """
    settings = settings or ProfileSettings()
    chosen = _chosen_ranks(bundle, ranks)
    inputs = _inputs(bundle, settings)
    machine = host()
    with contextlib.ExitStack() as loaded:
        calls, load_ms = _load(bundle, engine, settings.form, chosen, inputs, loaded, clock, progress)
        samples = measure(calls, settings.measure, clock=clock, progress=progress)
        peak_mb = peak_memory_mb()
    rungs = tuple(_rung(bundle, rank, settings, samples[rank], load_ms[rank]) for rank in chosen)
    description = engine.describe()
    return Profile(
        bundle_path=str(bundle.path),
        model=bundle.manifest.model,
        host=machine.to_json(),
        settings={**_settings_json(settings, description), "precision": bundle.manifest.precision},
        rungs=rungs,
        peak_memory_mb=peak_mb,
        warnings=tuple(_warnings(rungs, settings.measure, machine, description)),
    )


def _chosen_ranks(bundle: Bundle, ranks: Sequence[int] | None) -> list[int]:
    ladder = bundle.manifest.ladder
    chosen = sorted(set(ladder.ranks if ranks is None else ranks))
    if not chosen:
        raise UsageError(f"{bundle.path} has no rungs to profile", "export it with rungs, or name ranks")
    for rank in chosen:
        ladder.rung(rank)
    return chosen


def _inputs(bundle: Bundle, settings: ProfileSettings) -> Inputs:
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


def _load(
    bundle: Bundle,
    engine: Engine,
    form: str,
    ranks: Sequence[int],
    inputs: Inputs,
    loaded: contextlib.ExitStack,
    clock: Clock,
    progress: Progress,
) -> tuple[dict[int, Callable[[], object]], dict[int, float]]:
    """A call and a loading time (ms) per rank; `loaded` closes the graphs."""
    # The first load of all pays for importing the engine and starting it. No rung should be blamed for that.
    engine.load(bundle.file(bundle.graph(ranks[0], form))).close()
    calls: dict[int, Callable[[], object]] = {}
    load_ms: dict[int, float] = {}
    graphs: dict[Path, tuple[LoadedGraph, float]] = {}
    extra = None if form == "static" else RankInputs(bundle, form)
    for done, rank in enumerate(ranks, start=1):
        file = bundle.file(bundle.graph(rank, form))
        if file not in graphs:
            graphs[file] = _timed_load(engine, file, clock)
            loaded.callback(graphs[file][0].close)
        graph, load_ms[rank] = graphs[file]
        calls[rank] = _call(graph if extra is None else fix_inputs(graph, extra.at(rank)), inputs)
        progress("load", done, len(ranks))
    return calls, load_ms


def _timed_load(engine: Engine, path: Path, clock: Clock) -> tuple[LoadedGraph, float]:
    start = clock()
    graph = engine.load(path)
    return graph, (clock() - start) * 1e3


def _call(graph: LoadedGraph, inputs: Inputs) -> Callable[[], object]:
    return lambda: graph.run(inputs)


def _rung(
    bundle: Bundle, rank: int, settings: ProfileSettings, samples_ms: Sequence[float], load_ms: float
) -> RungProfile:
    ladder = bundle.manifest.ladder
    rung = ladder.rung(rank)
    # Other forms hold factors alone: at the top rank too, where the ladder's rung may be the original.
    dense = bundle.answers_as_original(rank, settings.form)
    macs = _macs(ladder, rank, dense, settings.form)
    latency = LatencyStats.from_samples(samples_ms)
    batch_size = settings.sizes["batch_size"]
    return RungProfile(
        rank=rank,
        dense=dense,
        flops_fraction=macs / ladder.dense_macs,
        macs=macs,
        latency=latency,
        load_ms=load_ms,
        throughput_per_s=batch_size * 1e3 / latency.mean_ms if latency.mean_ms > 0 else 0.0,
        quality=rung.quality if dense == rung.dense else {},
    )


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
    }


def _warnings(
    rungs: Sequence[RungProfile], settings: MeasureSettings, host: Host, engine: Mapping[str, Any]
) -> Iterator[str]:
    unsteady = [f"{_name(rung)} ({rung.latency.cv:.0%})" for rung in rungs if not rung.latency.steady]
    if unsteady:
        yield (
            f"unsteady: the coefficient of variation is above {UNSTEADY_CV:.0%} at {', '.join(unsteady)}; "
            "ratios hold better than times. Close other programs and measure again"
        )
    fewest = min(rung.latency.n for rung in rungs)
    if fewest < settings.min_repetitions:
        yield (
            f"stopped after {settings.max_time_s:g} s with {fewest} of {settings.min_repetitions} repetitions; "
            "give it more time with --max-time"
        )
    elif any(rung.latency.p99_is_thin for rung in rungs):
        yield f"p99 of fewer than {SAMPLES_FOR_P99} repetitions is little more than the maximum"
    threads = engine.get("threads")
    if host.usable_cores and isinstance(threads, int) and threads > host.usable_cores:
        yield f"{threads} threads share {host.usable_cores} cores"
    if host.governor and host.governor not in _FIXED_CLOCKS:
        yield f"the governor {host.governor!r} moves the clock while measuring; 'performance' holds it"
    yield from _not_faster(rungs)


def _not_faster(rungs: Sequence[RungProfile]) -> Iterator[str]:
    """A rung that saves FLOPs and no time is worse than the one above it: say so."""
    for lower, upper in itertools.pairwise(rungs):
        if lower.macs < upper.macs and lower.latency.p50_ms >= upper.latency.p50_ms:
            yield f"{_name(lower)} is not faster here than {_name(upper)}, so it has nothing to offer"


def _name(rung: RungProfile) -> str:
    return "dense" if rung.dense else f"rank {rung.rank}"
