"""Rank and precision together: every rung and the dense original in fp32, int8 and int4, in one run.

    python benchmarks/precision.py --json benchmarks/results/precision.json

MiniLM at 8, 32 and 128 tokens in fp32 and int8, and a Llama of 57 M random weights that writes one token after 64 in
fp32, int8 and int4; batch 1, one thread. All candidates of a workload take turns in a shuffled order, ten calls each,
so that most of them find their weights in the cache, as a rung in use does. The clock is the processor time of the one
thread: its latency on an idle machine. Ratios are of lower quartiles: neighbours only add.

`default int8` is what a user has without this project: onnxruntime's dynamic quantisation of the dense graph.

Quality: of MiniLM the Spearman correlation of all pairwise similarities of the held-out sentences with the dense fp32
model's, in points (x 100); of the random decoder, which has nothing to be good at, the share of positions where a rung
in int8 or int4 has the same likeliest token as that rung in fp32.

Where the time goes: of each int8 rung the products (with the quantisation of what they multiply) and all else, by
onnxruntime's profiler. What the whole takes longer under it is spread evenly over the nodes and taken off. All else
takes the same at every rung, so it alone holds a ratio to dense up.

JSON: `rows` holds one object per model, workload, precision and rank (null for the default) with `ms`,
`relative_to_dense` (of the same precision), `relative_to_dense_fp32`, `quality` and `quality_cost` (against the same
rung in fp32; in points for MiniLM); `operators` where the time of MiniLM's int8 goes at 128 tokens, in milliseconds by
kind of operator; `split` of each int8 rung at each length `products_ms` and `other_ms`, together `ms`; `disk` the bytes
of each bundle; `spared` the layers that the int8 bundle spares, from the rank `spared_from` on.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import Target, arguments, percentile, publish, workspace
from random_decoder import DecoderSize, random_decoder
from rich.table import Table
from rungs import OneGraphSession, quantise

from nsn_edge.bundle import Bundle
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.corpus import documentation_corpus
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.precision.sensitivity import AUTO, lowest_sparing, measure_damage, measure_losses, worst_layers
from nsn_edge.metrics import pairwise_similarity_spearman
from nsn_edge.runtimes.engines import LoadedGraph, OnnxRuntimeEngine
from nsn_edge.runtimes.profiling import MeasureSettings, measure
from nsn_edge.runtimes.profiling.inputs import synthesise_inputs
from nsn_edge.runtimes.text import TextEmbedder

TOKENS = (8, 32, 128)
WORDS = 20_000
"""Of MiniLM's vocabulary, which made-up inputs are drawn from."""
PAST = 64
LIMITS = {8: 0.70, 32: 0.70, 128: 0.85}
QUICK_SIZE = DecoderSize(hidden=128, layers=2, intermediate=352, heads=4)
PRODUCTS = {"DynamicQuantizeMatMul", "DynamicQuantizeLinear", "MatMulInteger", "MatMulIntegerToFloat"}
"""Kinds of operators that are linear layers in int8, as onnxruntime fuses them."""
LOW = 25.0
"""The percentile that ratios are of."""

Candidate = tuple[str, "int | None"]
"""Precision and rank; None is the default int8."""
Graphs = dict[Candidate, LoadedGraph]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=200, help="timed calls of each candidate, at least")
    parser.add_argument("--quick", action="store_true", help="a tiny decoder, few repetitions and sentences: to try it")
    options = parser.parse_args()
    repetitions = 5 if options.quick else options.repetitions
    settings = MeasureSettings(5, repetitions, min_time_s=0.0, max_time_s=300, calls_per_turn=10)
    texts = documentation_corpus().held_out[: 40 if options.quick else None]
    with workspace(options.checkpoint) as (folder, checkpoint):
        say(f"{checkpoint.name}: finding the layers to spare ...")
        damage = measure_damage(checkpoint, ExportConfig(precision="int8"))
        spared = worst_layers(damage, AUTO)
        spared_from = lowest_sparing(damage, spared, measure_losses(checkpoint, ExportConfig(precision="int8")))
        encoder = export(checkpoint, folder / "encoder", {"fp32": (), "int8": spared}, spared_from)
        default = quantise(encoder["fp32"], folder / "default.onnx")
        rows = encoder_rows(encoder, default, texts, settings)
        half = encoder["int8"].manifest.ladder.rung_within(0.5).rank
        top = encoder["int8"].manifest.ladder.max_rank
        kernels = {
            (tokens, rank): kernel_ms(encoder["int8"].file(encoder["int8"].graph(rank)), encoder["int8"], tokens)
            for tokens in TOKENS
            for rank in encoder["int8"].manifest.ladder.ranks
        }
        operators = {name: by_kind(kernels[max(TOKENS), rank]) for name, rank in (("dense", top), ("50 %", half))}
        split = split_rows(rows, kernels)
        source = random_decoder(QUICK_SIZE if options.quick else DecoderSize())
        decoder = export(source, folder / "decoder", {"fp32": (), "int8": (), "int4": ()})
        rows += decoder_rows(decoder, source, settings)
        disk = {
            f"{bundle.manifest.model}, {precision}": bundle.size_bytes
            for bundles in (encoder, decoder)
            for precision, bundle in bundles.items()
        }
    results = {
        "settings": {
            "repetitions": settings.min_repetitions,
            "threads": 1,
            "quick": options.quick,
            "percentile": LOW,
            "held_out_sentences": len(texts),
            "onnxruntime": onnxruntime.__version__,
        },
        "rows": rows,
        "operators": operators,
        "split": split,
        "disk": disk,
        "spared": {name: damage[name] for name in spared},
        "spared_from": spared_from,
    }
    tables = [row_table(rows), operator_table(operators), split_table(split), disk_table(disk)]
    publish("benchmark-precision", results, targets(rows, disk, half, top), tables, options.json)


def say(text: str) -> None:
    print(text, file=sys.stderr)


def export(
    checkpoint: Checkpoint, folder: Path, precisions: Mapping[str, tuple[str, ...]], spared_from: int = 1
) -> dict[str, Bundle]:
    """A bundle of rungs per precision, with the layers that it spares from a rank on."""
    bundles = {}
    for precision, spared in precisions.items():
        say(f"exporting {checkpoint.name} in {precision} ...")
        config = ExportConfig(forms=("static",), precision=precision, keep_precise=spared, keep_from=spared_from)
        bundles[precision] = export_bundle(checkpoint, folder / precision, config)
    return bundles


def load(bundles: Mapping[str, Bundle]) -> Graphs:
    engine = OnnxRuntimeEngine(threads=1)
    return {
        (precision, rank): engine.load(bundle.file(bundle.graph(rank)))
        for precision, bundle in bundles.items()
        for rank in bundle.manifest.ladder.ranks
    }


def timed(graphs: Graphs, inputs: Mapping[str, np.ndarray], settings: MeasureSettings) -> dict[Candidate, float]:
    """Each candidate's milliseconds."""

    def caller(graph: LoadedGraph) -> Callable[[], object]:
        feeds = {spec.name: inputs[spec.name] for spec in graph.inputs}
        return lambda: graph.run(feeds)

    samples = measure({key: caller(graph) for key, graph in graphs.items()}, settings, clock=time.thread_time)
    return {key: percentile(taken, LOW) for key, taken in samples.items()}


def encoder_rows(
    bundles: Mapping[str, Bundle], default: Path, texts: tuple[str, ...], settings: MeasureSettings
) -> list[dict[str, Any]]:
    bundle = bundles["fp32"]
    graphs = load(bundles)
    graphs["int8", None] = OnnxRuntimeEngine(threads=1).load(default)
    say("measuring quality ...")
    embeddings = {
        key: TextEmbedder(OneGraphSession(bundle, graph)).embed(texts)  # type: ignore[arg-type]
        for key, graph in graphs.items()
    }
    top = bundle.manifest.ladder.max_rank
    dense = embeddings["fp32", top]
    quality = {key: pairwise_similarity_spearman(dense, found) for key, found in embeddings.items()}
    cost = {key: 100 * (quality["fp32", key[1] or top] - value) for key, value in quality.items()}
    rows = []
    for tokens in TOKENS:
        say(f"timing {tokens} tokens ...")
        rows += to_rows(bundle, f"{tokens} tokens", timed(graphs, inputs_of(bundle, tokens), settings), quality, cost)
    return rows


def decoder_rows(bundles: Mapping[str, Bundle], source: Checkpoint, settings: MeasureSettings) -> list[dict[str, Any]]:
    bundle = bundles["fp32"]
    graphs = load(bundles)
    say("timing the decoder ...")
    ms = timed(graphs, inputs_of(bundle, 1, PAST, source), settings)
    prompt = inputs_of(bundle, 256, 0, source)
    likeliest = {key: graph.run(prompt)["logits"].argmax(axis=-1) for key, graph in graphs.items()}
    same = {key: float((found == likeliest["fp32", key[1]]).mean()) for key, found in likeliest.items()}
    return to_rows(bundle, f"decode 1 after {PAST}", ms, same, {key: 1 - value for key, value in same.items()})


def inputs_of(bundle: Bundle, tokens: int, past: int = 0, source: Checkpoint | None = None) -> dict[str, np.ndarray]:
    sizes = {"batch_size": 1, "sequence_length": tokens, "past_sequence_length": past}
    words = WORDS if source is None else source.model.config.vocab_size
    return dict(synthesise_inputs(bundle.manifest.inputs, sizes, vocabulary=words))


def to_rows(
    bundle: Bundle,
    workload: str,
    ms: Mapping[Candidate, float],
    quality: Mapping[Candidate, float],
    cost: Mapping[Candidate, float],
) -> list[dict[str, Any]]:
    ladder = bundle.manifest.ladder
    top = ladder.max_rank
    return [
        {
            "model": bundle.manifest.model,
            "workload": workload,
            "precision": precision,
            "rank": rank,
            "dense": rank in (None, top),
            "flops_fraction": 1.0 if rank is None else ladder.flops_fraction(rank),
            "ms": value,
            "relative_to_dense": value / ms[precision, top],
            "relative_to_dense_fp32": value / ms["fp32", top],
            "quality": quality[precision, rank],
            "quality_cost": cost[precision, rank],
        }
        for (precision, rank), value in ms.items()
    ]


def kernel_ms(graph: Path, bundle: Bundle, tokens: int, runs: int = 60) -> dict[tuple[str, str], float]:
    """Milliseconds of each node by its kind and name, by onnxruntime's own profiler."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="nsn-edge-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "operators")
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        inputs = inputs_of(bundle, tokens)
        for _ in range(runs):
            session.run(None, {node.name: inputs[node.name] for node in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_bytes())
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    return {node: percentile(times, LOW) for node, times in taken.items()}


def by_kind(kernels: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Milliseconds by kind of operator, the slowest first."""
    total: Counter[str] = Counter()
    for (kind, _), ms in kernels.items():
        total[kind] += ms  # type: ignore[assignment]
    return dict(total.most_common())


def split_rows(
    rows: list[dict[str, Any]], kernels: Mapping[tuple[int, int], Mapping[tuple[str, str], float]]
) -> list[dict[str, Any]]:
    """The milliseconds of int8 rungs in `rows`, parted into products and all else by what the profiler saw."""
    found = []
    for (tokens, rank), nodes in kernels.items():
        (row,) = [
            row
            for row in rows
            if (row["workload"], row["precision"], row["rank"]) == (f"{tokens} tokens", "int8", rank)
        ]
        added_ms = max(sum(nodes.values()) - row["ms"], 0) / len(nodes)
        products_ms = sum(max(ms - added_ms, 0) for (kind, _), ms in nodes.items() if kind in PRODUCTS)
        products_ms = min(products_ms, row["ms"])
        parts = {"ms": row["ms"], "products_ms": products_ms, "other_ms": row["ms"] - products_ms}
        found.append({"tokens": tokens, "rank": rank, "dense": row["dense"], "nodes": len(nodes), **parts})
    return found


def targets(rows: list[dict[str, Any]], disk: Mapping[str, int], half: int, top: int) -> list[Target]:
    model = rows[0]["model"]
    int8 = [row for row in rows if row["model"] == model and row["precision"] == "int8" and row["rank"]]
    by_place = {(row["workload"], row["rank"]): row for row in int8}
    found = [
        Target(
            f"int8 50 % / int8 dense, {tokens} tokens",
            by_place[f"{tokens} tokens", half]["relative_to_dense"],
            LIMITS[tokens],
        )
        for tokens in TOKENS
    ]
    worst = max(row["quality_cost"] for row in int8)
    found.append(Target("points of Spearman that int8 costs, worst rung", worst, 0.5))
    found.append(Target("disk, int8 bundle / fp32 bundle", disk[f"{model}, int8"] / disk[f"{model}, fp32"], 0.30))
    return found


def row_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Rank and precision", title_justify="left")
    for heading in ("model", "workload", "precision", "rung"):
        table.add_column(heading)
    for heading in ("linear FLOPs", "ms", "x dense", "x dense fp32", "quality", "cost"):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: (row["model"], row["workload"], -row["ms"])):
        table.add_row(
            row["model"],
            row["workload"],
            row["precision"],
            "dense, default" if row["rank"] is None else f"{row['rank']}{' (dense)' if row['dense'] else ''}",
            f"{row['flops_fraction']:.0%}",
            f"{row['ms']:.2f}",
            f"{row['relative_to_dense']:.2f}",
            f"{row['relative_to_dense_fp32']:.2f}",
            f"{row['quality']:.3f}",
            f"{row['quality_cost']:.2f}",
        )
    return table


def operator_table(operators: Mapping[str, Mapping[str, float]], most: int = 12) -> Table:
    table = Table(title="Where int8 spends 128 tokens, ms", title_justify="left")
    table.add_column("operator")
    for name in operators:
        table.add_column(name, justify="right")
    kinds = dict.fromkeys(kind for found in operators.values() for kind in list(found)[:most])
    for kind in kinds:
        table.add_row(kind, *(f"{found.get(kind, 0):.2f}" for found in operators.values()))
    table.add_row("all", *(f"{sum(found.values()):.2f}" for found in operators.values()))
    return table


def split_table(split: list[dict[str, Any]]) -> Table:
    """With what each rung's ratio to dense would be if nothing but products took time."""
    table = Table(title="int8: products and all else, ms", title_justify="left")
    for heading in ("tokens", "rung", "nodes", "all", "products", "all else", "x dense", "products x dense"):
        table.add_column(heading, justify="right")
    dense = {row["tokens"]: row for row in split if row["dense"]}
    for row in split:
        whole = dense[row["tokens"]]
        table.add_row(
            str(row["tokens"]),
            f"{row['rank']}{' (dense)' if row['dense'] else ''}",
            str(row["nodes"]),
            *(f"{row[key]:.2f}" for key in ("ms", "products_ms", "other_ms")),
            *(f"{row[key] / whole[key]:.2f}" for key in ("ms", "products_ms")),
        )
    return table


def disk_table(disk: Mapping[str, int]) -> Table:
    table = Table(title="Disk", title_justify="left")
    table.add_column("bundle")
    table.add_column("MB", justify="right")
    for name, size in disk.items():
        table.add_row(name, f"{size / 1e6:.1f}")
    return table


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(3)
    main()
