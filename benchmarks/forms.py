"""Every form at every rung against a graph of that rank exported on its own: latency, memory, disk, export time.

    python benchmarks/forms.py --json benchmarks/results/forms.json

    dedicated   the ordinary way: one export per rung, each with its own weights (= 1.0)
    static, gated, bound, sliced, masked        from one bundle, one weights file
    static, gated, bound shared                 the same with `share_weights`: mapped, not repacked, layers not merged

MiniLM at 8, 32 and 128 tokens, and a Llama of 57 M random weights that reads a prompt of 128 tokens and that writes one
token after 128; batch 1. Candidates of a rung take turns in a shuffled order, each call after an untimed one. With one
thread the clock is the processor time of that thread, which is its latency on an idle machine and does not count the
turns of other programs; with more it is the time on the wall. Ratios are of lower quartiles: neighbours only ever add.

At the top rung `static`, `gated` and `bound` run the original weights, the other forms the factors at full rank, which
is up to twice the work.

Memory is what one process holds that serves all rungs, see `resident.py`; a copy is the weights that these rungs use.

JSON: `latency` holds one object per model, workload, threads and rank, with `dedicated_ms` and, by candidate, `ratios`;
`memory` one per model, candidate and sharing; `ordinary` one per model, with bytes and export seconds of both ways.
"""

from __future__ import annotations

import functools
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Target, arguments, percentile, publish, workspace
from random_decoder import DecoderSize, random_decoder
from resident import resident_memory
from rich.table import Table

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.runtimes.dynamic import RankInputs
from nsn_edge.runtimes.engines import LoadedGraph, OnnxRuntimeEngine, fix_inputs
from nsn_edge.runtimes.profiling import MeasureSettings, measure
from nsn_edge.runtimes.profiling.inputs import synthesise_inputs

SHARED = ("static", "gated", "bound")
LIMITS = {"static": 1.03, "gated": 1.25, "bound": 1.5}
MEMORY_LIMIT = 1.1
QUICK_SIZE = DecoderSize(hidden=256, layers=2, intermediate=704, heads=4)
LOW = 25.0
"""The percentile that ratios are of."""


@dataclass(frozen=True)
class Subject:
    """A model in all its exports."""

    name: str
    vocabulary: int
    workloads: Mapping[str, Mapping[str, int]]
    """Sizes of the inputs' named dimensions."""
    own: Mapping[int, Bundle]
    """By rank: the bundle that holds this rung alone."""
    bundle: Bundle
    """Every form; layers past break-even merged."""
    factored: Bundle
    """The forms that can share weights, nothing merged."""
    alone: Mapping[str, Bundle]
    """By form: a bundle with that form and the weights that it needs; nothing merged."""
    export_s: Mapping[str, float]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("-t", "--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=60, help="timed calls of each candidate")
    parser.add_argument("--max-time", type=float, default=40.0, help="seconds for each rung and workload")
    parser.add_argument("--quick", action="store_true", help="a tiny decoder and few repetitions: to try it")
    options = parser.parse_args()
    repetitions = 10 if options.quick else options.repetitions
    latency: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    ordinary: list[dict[str, Any]] = []
    with workspace(options.checkpoint) as (folder, checkpoint):
        decoder = random_decoder(QUICK_SIZE if options.quick else DecoderSize())
        lengths = {f"{n} tokens": sizes(n) for n in (8, 32, 128)}
        steps = {"prefill 128": sizes(128), "decode 1": sizes(1, past=128)}
        for source, workloads in ((checkpoint, lengths), (decoder, steps)):
            subject = exported(source, workloads, folder / source.name.replace(" ", "-"))
            for threads in options.threads:
                for workload in workloads:
                    say(f"{subject.name}, {workload}, threads {threads} ...")
                    settings = MeasureSettings(5, repetitions, min_time_s=0.0, max_time_s=options.max_time)
                    latency += timed(subject, workload, threads, settings)
            say(f"{subject.name}, memory ...")
            memory += remembered(subject)
            ordinary.append(compared(subject))
    results = {
        "settings": {"repetitions": repetitions, "threads": options.threads, "quick": options.quick, "percentile": LOW},
        "latency": latency,
        "memory": memory,
        "ordinary": ordinary,
    }
    tables = [latency_table(latency), memory_table(memory), ordinary_table(ordinary)]
    publish("benchmark-forms", results, targets(latency, memory), tables, options.json)


def say(text: str) -> None:
    print(text, file=sys.stderr)


def sizes(tokens: int, past: int = 0) -> dict[str, int]:
    return {"batch_size": 1, "sequence_length": tokens, "past_sequence_length": past}


def exported(checkpoint: Checkpoint, workloads: Mapping[str, Mapping[str, int]], folder: Path) -> Subject:
    """All exports of a model; those of the ordinary way and of the whole bundle are timed, tracing included."""
    say(f"exporting {checkpoint.name} ...")
    bundle, bundle_s = clocked(checkpoint, folder / "bundle", ExportConfig())
    own, own_s = {}, 0.0
    for rung in bundle.manifest.ladder.rungs:
        config = ExportConfig((), () if rung.dense else (rung.rank,), dense_top=rung.dense, forms=("static",))
        own[rung.rank], seconds = clocked(checkpoint, folder / f"own-{rung.rank}", config)
        own_s += seconds
    static_s = clocked(checkpoint, folder / "static", ExportConfig(forms=("static",)))[1]
    factored = export_bundle(checkpoint, folder / "factored", ExportConfig(forms=SHARED, merge=False))
    alone = {
        form: export_bundle(checkpoint, folder / form, ExportConfig(forms=(form,), merge=False)) for form in SHARED
    }
    vocabulary = checkpoint.model.config.vocab_size
    export_s = {"bundle": bundle_s, "static": static_s, "ordinary": own_s}
    return Subject(checkpoint.name, vocabulary, workloads, own, bundle, factored, alone, export_s)


def clocked(checkpoint: Checkpoint, path: Path, config: ExportConfig) -> tuple[Bundle, float]:
    gc.collect()
    start = time.perf_counter()
    return export_bundle(checkpoint, path, config), time.perf_counter() - start


def timed(subject: Subject, workload: str, threads: int, settings: MeasureSettings) -> list[dict[str, Any]]:
    """One row per rung: milliseconds of the dedicated graph, and every candidate's ratio to it."""
    inputs = synthesise_inputs(
        subject.bundle.manifest.inputs, subject.workloads[workload], vocabulary=subject.vocabulary
    )
    rows = []
    plain, sharing = OnnxRuntimeEngine(threads), OnnxRuntimeEngine(threads, share_weights=True)
    with ExitStack() as loaded:

        def load(engine: OnnxRuntimeEngine, bundle: Bundle, form: str, scope: ExitStack) -> Callable[[int], Any]:
            extra = RankInputs(bundle, form) if form != "static" else None
            graphs: dict[Path, LoadedGraph] = {}

            @functools.cache  # filled by the untimed calls
            def at(rank: int) -> LoadedGraph:
                file = bundle.file(bundle.graph(rank, form))
                if file not in graphs:
                    graphs[file] = engine.load(file)
                    scope.callback(graphs[file].close)
                return fix_inputs(graphs[file], extra.at(rank)) if extra else graphs[file]

            return lambda rank: at(rank).run(inputs)

        every_rank: dict[str, Callable[[int], Any]] = {}
        for rung in subject.bundle.manifest.ladder.rungs:
            if not every_rank:
                every_rank = {form: load(plain, subject.bundle, form, loaded) for form in GRAPH_FORMS[1:]}
                for form in SHARED[1:]:
                    every_rank[f"{form} shared"] = load(sharing, subject.factored, form, loaded)
            with ExitStack() as of_rung:
                runs = {
                    "dedicated": load(plain, subject.own[rung.rank], "static", of_rung),
                    "static": load(plain, subject.bundle, "static", of_rung),
                    "static shared": load(sharing, subject.factored, "static", of_rung),
                    **every_rank,
                }
                calls = {name: caller(run, rung.rank) for name, run in runs.items()}
                samples = measure(calls, settings, clock=time.thread_time if threads == 1 else time.perf_counter)
            low = {name: percentile(found, LOW) for name, found in samples.items()}
            rows.append(
                {
                    "model": subject.name,
                    "workload": workload,
                    "threads": threads,
                    "rank": rung.rank,
                    "dense": rung.dense,
                    "dedicated_ms": low["dedicated"],
                    "repetitions": min(map(len, samples.values())),
                    "ratios": {name: value / low["dedicated"] for name, value in low.items() if name != "dedicated"},
                    "p50_ms": {name: percentile(found, 50) for name, found in samples.items()},
                }
            )
    return rows


def caller(run: Callable[[int], Any], rank: int) -> Callable[[], Any]:
    return lambda: run(rank)


def remembered(subject: Subject) -> list[dict[str, Any]]:
    """Memory of all rungs, by form, with and without sharing; and of the ordinary way."""
    cases = [(form, shared, [subject.alone[form]]) for form in SHARED for shared in (True, False)]
    cases.append(("dedicated", False, list(subject.own.values())))
    copy = weights_of_rungs(subject)
    rows = []
    for form, shared, bundles in cases:
        graph_form = "static" if form == "dedicated" else form
        found = resident_memory([bundle.path for bundle in bundles], graph_form, shared, subject.vocabulary)
        copy_mb = copy[graph_form] / 1e6
        rows.append(
            {
                "model": subject.name,
                "form": form,
                "shared": shared,
                "copy_mb": copy_mb,
                **found,
                "copies": found["resident_mb"] / copy_mb,
            }
        )
    return rows


def weights_of_rungs(subject: Subject) -> dict[str, int]:
    """Bytes of the weights in use, once: what `static` stores is the rungs'; of `bound` every rank's."""
    files = {form: bundle.path / "weights.bin" for form, bundle in subject.alone.items()}
    static = files["static"].stat().st_size
    return {"static": static, "gated": static, "bound": files["bound"].stat().st_size}


def compared(subject: Subject) -> dict[str, Any]:
    """Disk and export time against the ordinary way."""
    own_bytes = sum(bundle.size_bytes for bundle in subject.own.values())
    rungs_bytes = subject.alone["static"].size_bytes
    return {
        "model": subject.name,
        "rungs_bytes": rungs_bytes,
        "all_forms_bytes": subject.bundle.size_bytes,
        "ordinary_bytes": own_bytes,
        "rungs_over_ordinary": rungs_bytes / own_bytes,
        "all_forms_over_ordinary": subject.bundle.size_bytes / own_bytes,
        "export_s": dict(subject.export_s),
        "export_over_ordinary": subject.export_s["static"] / subject.export_s["ordinary"],
        "export_all_forms_over_ordinary": subject.export_s["bundle"] / subject.export_s["ordinary"],
    }


def targets(latency: Sequence[Mapping[str, Any]], memory: Sequence[Mapping[str, Any]]) -> list[Target]:
    """The worst rung of each model, workload and number of threads; the memory of the sharing forms."""
    found = []
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in latency:
        # Full power is a figure of its own: there the engine's handling of weights is all that differs.
        groups.setdefault((row["model"], row["workload"], row["threads"], row["dense"]), []).append(row)
    for form, limit in LIMITS.items():
        for (model, workload, threads, dense), rows in groups.items():
            rungs = "dense rung" if dense else "worst rung below"
            name = f"{form} / dedicated, {rungs}: {model}, {workload}, threads {threads}"
            found.append(Target(name, max(row["ratios"][form] for row in rows), limit))
    for row in memory:
        if row["shared"]:
            name = f"memory of all rungs / one copy: {row['model']}, {row['form']} shared"
            found.append(Target(name, row["copies"], MEMORY_LIMIT))
    return found


def latency_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = list(rows[0]["ratios"])
    table = Table(title="Latency against a dedicated graph of the rank", title_justify="left")
    for heading in ("model", "workload", "threads", "rung", "dedicated ms", *names):
        table.add_column(heading, justify="left" if heading in ("model", "workload") else "right")
    for row in rows:
        rung = f"{row['rank']}{' (dense)' if row['dense'] else ''}"
        ratios = (f"{row['ratios'][name]:.2f}" for name in names)
        head = (row["model"], row["workload"], str(row["threads"]), rung)
        table.add_row(*head, f"{row['dedicated_ms']:.2f}", *ratios)
    return table


def memory_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Memory of one process that serves all rungs, MB", title_justify="left")
    for heading in ("model", "form", "one copy", "weights mapped", "anonymous", "sum", "copies"):
        table.add_column(heading, justify="left" if heading in ("model", "form") else "right")
    for row in rows:
        numbers = (row["copy_mb"], row["weights_mapped_mb"], row["anonymous_mb"], row["resident_mb"])
        name = row["form"] + (" shared" if row["shared"] else "")
        table.add_row(row["model"], name, *(f"{number:.1f}" for number in numbers), f"{row['copies']:.2f}")
    return table


def ordinary_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Against the ordinary way: one export per rung", title_justify="left")
    for heading in ("model", "what", "rungs, one bundle", "all forms, one bundle", "ordinary", "rungs / ordinary"):
        table.add_column(heading, justify="left" if heading in ("model", "what") else "right")
    for row in rows:
        disk = (row[key] / 1e6 for key in ("rungs_bytes", "all_forms_bytes", "ordinary_bytes"))
        export = (row["export_s"][key] for key in ("static", "bundle", "ordinary"))
        table.add_row(row["model"], "disk, MB", *(f"{x:.1f}" for x in disk), f"{row['rungs_over_ordinary']:.2f}")
        table.add_row(row["model"], "export, s", *(f"{x:.2f}" for x in export), f"{row['export_over_ordinary']:.2f}")
    return table


if __name__ == "__main__":
    main()
