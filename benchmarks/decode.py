"""Tokens per second of a decoder at every rung, in llama-bench's conventions, with the rank as a column.

    python benchmarks/decode.py --json benchmarks/results/decode.json

    pp512, pp128   reading a prompt of that many tokens at once
    tg128          writing 128 tokens one by one, from an empty cache; no sampling

The model is a Llama of 57 M random weights whose vocabulary is small, so that its linear layers are nearly all of it.
Rungs take turns in a shuffled order: prompt by prompt, each after an untimed one, or token by token. t/s is the mean
and deviation over the repetitions. A ratio is the median over the rounds of what the dense rung took against what this
one took in the same round, so that a neighbour's job moves the figures and not the ratios. `-o csv` and `-o json` put
nothing else on stdout.

Writing a token reads every weight once, so the floor is set by the memory: `floor_share` is the measured speed against
bytes per token at the bandwidth with which the same threads read a large array, measured in turn with the rungs.
`profile` says where a token's time goes, by onnxruntime's own clock: `linears` with weights, `attention`, `cache` (the
graph's copy of the cache into a longer one), and `other`.

JSON: `results` holds one object per threads, rank and test, with `model, model_size, model_n_params, backend, threads,
rank, dense, flops_fraction, test, n_prompt, n_gen, avg_ts, stddev_ts, samples_ts, median_ts, relative_to_dense`;
`floors` one per threads and rank; `profile` one per rank.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import io
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import Target, publish
from random_decoder import DecoderSize, export_random_decoder
from rich.table import Table

from nsn_edge.bundle import Bundle
from nsn_edge.export.exporter import ExportConfig
from nsn_edge.runtimes.engines import OnnxRuntimeEngine
from nsn_edge.runtimes.generation import Decoder
from nsn_edge.runtimes.generation.generator import left_padded
from nsn_edge.runtimes.profiling import MeasureSettings, measure
from nsn_edge.runtimes.session import EdgeSession

TESTS = ("pp512", "pp128", "tg128")
QUICK_TESTS = ("pp128", "tg32")
QUICK_SIZE = DecoderSize(hidden=512, layers=4, intermediate=1408, heads=8)
READ_BYTES = 256 << 20
READ_EVERY = 16
CSV_FIELDS = ("model", "backend", "threads", "rank", "flops_fraction", "test", "avg_ts", "stddev_ts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON document here too")
    parser.add_argument("-o", "--output", choices=("md", "csv", "json"), default="md", help="what stdout gets")
    parser.add_argument("-r", "--repetitions", type=int, default=5, help="timed calls of each test and rung")
    parser.add_argument("-t", "--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer and shorter tests: to try it")
    options = parser.parse_args()
    size, tests = (QUICK_SIZE, QUICK_TESTS) if options.quick else (DecoderSize(), TESTS)
    repetitions = min(options.repetitions, 3) if options.quick else options.repetitions
    with tempfile.TemporaryDirectory(prefix="nsn-edge-bench-") as folder:
        print("exporting a random decoder ...", file=sys.stderr)
        bundle = export_random_decoder(Path(folder) / "bundle", size, ExportConfig(forms=("static",)))
        results: list[dict[str, Any]] = []
        floors: list[dict[str, Any]] = []
        for threads in options.threads:
            with EdgeSession.open(bundle, engine=OnnxRuntimeEngine(threads=threads)) as session:
                for test in tests:
                    print(f"{test} with {threads} threads ...", file=sys.stderr)
                    rows, floor = run_test(session, threads, test, repetitions)
                    results += rows
                    floors += floor
        profile = [profiled(bundle, rank, position=64) for rank in bundle.manifest.ladder.ranks]
    document = {
        "model": bundle.manifest.model,
        "settings": {"repetitions": repetitions, "size": vars(size), "quick": options.quick},
        "results": results,
        "floors": floors,
        "profile": profile,
    }
    if options.output == "md":
        print(markdown(results))
        tables = [floor_table(floors), profile_table(profile)]
        publish("benchmark-decode", document, targets(bundle, results), tables, options.json)
        return
    with contextlib.redirect_stdout(sys.stderr):
        publish("benchmark-decode", document, targets(bundle, results), [], options.json)
    print(as_csv(results) if options.output == "csv" else json.dumps(results))


def run_test(
    session: EdgeSession, threads: int, test: str, repetitions: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every rung in turn; for writing, the memory's bandwidth too. Returns the rows and the floors."""
    ladder = session.ladder
    for loading in session.preload(ladder.ranks):
        loading.result()
    decoder, n = Decoder(session), int(test[2:])
    if test.startswith("pp"):
        candidates = {rank: functools.partial(read_prompt, decoder, n, rank) for rank in ladder.ranks}
        once = MeasureSettings(warmup=1, min_repetitions=repetitions, min_time_s=0, max_time_s=3600, calls_per_turn=1)
        samples_ms, bandwidth = measure(candidates, once), None
    else:
        samples_ms, bandwidth = write_in_turn(decoder, n, ladder.ranks, threads, repetitions)
    dense_ms = np.array(samples_ms[ladder.max_rank])
    rows = []
    for rank in reversed(ladder.ranks):
        speeds = [n / ms * 1e3 for ms in samples_ms[rank]]
        rows.append(
            {
                "model": session.bundle.manifest.model,
                "model_size": bytes_per_token(session.bundle, rank, positions=0),
                "model_n_params": bytes_per_token(session.bundle, rank, positions=0) // 4,
                "backend": session.engine.name,
                "threads": threads,
                "rank": rank,
                "dense": ladder.rung(rank).dense,
                "flops_fraction": ladder.flops_fraction(rank),
                "test": test,
                "n_prompt": n if test.startswith("pp") else 0,
                "n_gen": n if test.startswith("tg") else 0,
                "avg_ts": float(np.mean(speeds)),
                "stddev_ts": float(np.std(speeds, ddof=1)) if len(speeds) > 1 else 0.0,
                "samples_ts": speeds,
                "median_ts": float(np.median(speeds)),
                "relative_to_dense": float(np.median(dense_ms / np.array(samples_ms[rank]))),
            }
        )
    return rows, [] if bandwidth is None else [floor_of(session.bundle, row, bandwidth) for row in rows]


def read_prompt(decoder: Decoder, n: int, rank: int) -> None:
    """One prompt of `n` tokens at once."""
    decoder.step(*left_padded([[1] * n]), decoder.empty_cache(1), rank)


def write_in_turn(
    decoder: Decoder, n: int, ranks: Sequence[int], threads: int, repetitions: int
) -> tuple[dict[int, list[float]], float]:
    """Texts of `n` tokens, every rung one token at a time in turn, so that a neighbour's job disturbs all alike.

    Their weights are larger than the processor's caches, so that none finds there what it left.

    Returns:
        Milliseconds of each text by rank, and the memory's bandwidth in bytes per second, measured in between.
    """
    samples_ms: dict[int, list[float]] = {rank: [] for rank in ranks}
    reads_s: list[float] = []
    token, order, shuffle = np.array([[1]]), list(ranks), random.Random(0).shuffle
    with ThreadPoolExecutor(threads) as readers:
        read = memory_reader(readers, threads)
        for repetition in range(repetitions + 1):
            caches = dict.fromkeys(ranks, decoder.empty_cache(1))
            spent_s = dict.fromkeys(ranks, 0.0)
            for position in range(n):
                mask, positions = np.ones((1, position + 1), np.int64), np.array([[position]])
                shuffle(order)
                for rank in order:
                    start = time.perf_counter()
                    caches[rank] = decoder.step(token, mask, positions, caches[rank], rank).cache
                    spent_s[rank] += time.perf_counter() - start
                if position % READ_EVERY == 0:
                    start = time.perf_counter()
                    read()
                    reads_s.append(time.perf_counter() - start)
            if repetition:  # the first text is a warm-up
                for rank in ranks:
                    samples_ms[rank].append(spent_s[rank] * 1e3)
    return samples_ms, READ_BYTES / float(np.median(reads_s))


def memory_reader(readers: ThreadPoolExecutor, threads: int) -> Callable[[], object]:
    """Reads an array far larger than the caches with the threads of an inference."""
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)
    return lambda: list(readers.map(np.sum, parts))


def bytes_per_token(bundle: Bundle, rank: int, positions: int) -> int:
    """Bytes that writing one token has to read: every weight, and the cache of so many tokens."""
    manifest = bundle.manifest
    dense_bytes = bundle.graph(manifest.ladder.max_rank).weight_bytes
    assert dense_bytes is not None
    weights = dense_bytes + 4 * (manifest.ladder.macs(rank) - manifest.ladder.dense_macs)
    per_position = sum(
        4 * int(np.prod([size for size in spec.shape if isinstance(size, int)]))
        for spec in manifest.inputs
        if spec.name.startswith("past_key_values.")
    )
    return weights + positions * per_position


def floor_of(bundle: Bundle, row: Mapping[str, Any], bandwidth: float) -> dict[str, Any]:
    """The least time of a token that memory allows, on average over a test, and the measured one."""
    needed = bytes_per_token(bundle, row["rank"], positions=row["n_gen"] // 2)
    return {
        "threads": row["threads"],
        "rank": row["rank"],
        "bytes_per_token": needed,
        "bandwidth_gb_per_s": bandwidth / 1e9,
        "floor_ms": needed / bandwidth * 1e3,
        "measured_ms": 1e3 / row["median_ts"],
        "floor_share": needed / bandwidth * row["median_ts"],
    }


def profiled(bundle: Bundle, rank: int, position: int, steps: int = 20) -> dict[str, Any]:
    """Where the time of one token at a position goes: milliseconds by what is computed, profiling included."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="nsn-edge-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "trace")
        session = onnxruntime.InferenceSession(str(bundle.file(bundle.graph(rank))), options)
        inputs = {
            "input_ids": np.array([[1]]),
            "attention_mask": np.ones((1, position + 1), np.int64),
            "position_ids": np.array([[position]]),
        }
        for spec in bundle.manifest.inputs:
            if spec.name.startswith("past_key_values."):
                sizes = {"batch_size": 1, "past_sequence_length": position}
                shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
                inputs[spec.name] = np.ones(shape, np.float32)
        for _ in range(steps):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    started = sorted(event["ts"] for event in events if event["name"] == "model_run")[steps // 4]
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        if event["cat"] == "Node" and event["ts"] >= started and event["name"].endswith("kernel_time"):
            spent[kind_of(event["args"])] += event["dur"] / 1e3 / (steps - steps // 4)
    kinds = ("linears", "attention", "cache", "other")
    return {"rank": rank, "position": position, **{f"{kind}_ms": spent[kind] for kind in kinds}}


def kind_of(node: Mapping[str, Any]) -> str:
    """What a node of the profile is for. Weights that were repacked are no inputs any more: a product of two tensors
    that both depend on the tokens is attention's."""
    if node["op_name"] in ("MatMul", "FusedMatMul", "Gemm"):
        ranks = [len(next(iter(entry.values()))) for entry in node["input_type_shape"]]
        return "attention" if ranks[:2] == [4, 4] else "linears"
    return "cache" if node["op_name"] == "Concat" else "other"


def targets(bundle: Bundle, results: Sequence[Mapping[str, Any]]) -> list[Target]:
    """What the rung at 50 % must reach."""
    half = bundle.manifest.ladder.rung_within(0.5).rank
    found = []
    for row in results:
        if row["rank"] == half:
            limit = 1.4 if row["n_prompt"] else 1.6
            name = f"{row['test']} at 50 % / dense, threads {row['threads']}"
            found.append(Target(name, row["relative_to_dense"], limit, at_least=True))
    return found


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """llama-bench's table with the rank, its share of the linear FLOPs, and the ratio."""
    lines = [
        "| model | size | backend | threads | rank | linear FLOPs | test | t/s | x dense |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results:
        lines.append(
            f"| {row['model']} | {row['model_size'] / 2**20:.2f} MiB | {row['backend']} | {row['threads']} "
            f"| {row['rank']}{' (dense)' if row['dense'] else ''} | {row['flops_fraction']:.0%} | {row['test']} "
            f"| {row['avg_ts']:.2f} ± {row['stddev_ts']:.2f} | {row['relative_to_dense']:.2f} |"
        )
    return "\n".join(lines)


def as_csv(results: Sequence[Mapping[str, Any]]) -> str:
    """One line per threads, rank and test, after a line of names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    return text.getvalue().rstrip("\n")


def floor_table(floors: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Writing a token against reading its bytes", title_justify="left")
    for heading in ("threads", "rank", "MB per token", "GB/s", "floor ms", "measured ms", "share of the floor"):
        table.add_column(heading, justify="right")
    for row in floors:
        table.add_row(
            str(row["threads"]),
            str(row["rank"]),
            f"{row['bytes_per_token'] / 1e6:.1f}",
            f"{row['bandwidth_gb_per_s']:.1f}",
            f"{row['floor_ms']:.2f}",
            f"{row['measured_ms']:.2f}",
            f"{row['floor_share']:.0%}",
        )
    return table


def profile_table(profile: Sequence[Mapping[str, Any]]) -> Table:
    title = f"One token after {profile[0]['position']}, 1 thread, profiled: ms"
    table = Table(title=title, title_justify="left")
    kinds = ("linears", "attention", "cache", "other")
    for heading in ("rank", *kinds):
        table.add_column(heading, justify="right")
    for row in reversed(profile):
        table.add_row(str(row["rank"]), *(f"{row[f'{kind}_ms']:.2f}" for kind in kinds))
    return table


if __name__ == "__main__":
    main()
