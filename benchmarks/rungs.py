"""What each rung costs and keeps: MiniLM, batch 1, 128 tokens, 1 thread; dense int8 beside it.

    python benchmarks/rungs.py --json benchmarks/results/rungs.json

Every candidate is timed in turn, in a shuffled order, on one real text of exactly 128 tokens. Quality is the Spearman
correlation of all pairwise similarities of the held-out sentences against the dense rung. The int8 row is what a user
would pick instead: onnxruntime's dynamic quantisation of the dense graph, with its default settings.

JSON: `rungs` holds one object per rung, lowest first, with `rank, dense, precision, flops_fraction, p50_ms, p99_ms,
mean_ms, cv, repetitions, relative_to_dense, spearman, weight_bytes`; `alternatives` holds the same for int8 (`rank` is
null); `dense_max_abs_diff` compares the dense rung with torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import Target, arguments, publish, workspace
from rich.table import Table

from nsn_edge.bundle import Bundle
from nsn_edge.corpus import documentation_corpus
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.metrics import pairwise_similarity_spearman
from nsn_edge.runtimes.engines import OnnxRuntimeEngine
from nsn_edge.runtimes.engines.base import LoadedGraph
from nsn_edge.runtimes.profiling import LatencyStats, MeasureSettings, measure
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.text import TextEmbedder
from nsn_edge.verification import verify_on

TOKENS = 128


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=300, help="timed calls of each candidate, at least")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with workspace(options.checkpoint) as (folder, checkpoint):
        bundle = export_bundle(checkpoint, folder / "bundle", ExportConfig(forms=("static",)))
        verification = verify_on(bundle, checkpoint)
        verification.raise_if_failed()
        dense_diff = next(check.max_abs_diff for check in verification.checks if check.dense)
        engine = OnnxRuntimeEngine(threads=options.threads)
        ranks = bundle.manifest.ladder.ranks
        graphs: dict[int | str, LoadedGraph] = {rank: engine.load(bundle.file(bundle.graph(rank))) for rank in ranks}
        int8_file = quantise(bundle, folder / "int8.onnx")
        graphs["int8"] = engine.load(int8_file)
        inputs = long_text(bundle)
        settings = MeasureSettings(warmup=20, min_repetitions=options.repetitions, max_time_s=600)
        print("timing ...", file=sys.stderr)
        samples = measure({name: caller(graph, inputs) for name, graph in graphs.items()}, settings)
        print("measuring quality ...", file=sys.stderr)
        quality, sentences = spearman(bundle, graphs)
        rows = [row(bundle, name, samples[name], samples[ranks[-1]], quality[name]) for name in graphs]
        rows[-1]["weight_bytes"] = int8_file.stat().st_size
    half, quarter = (bundle.manifest.ladder.rung_within(fraction).rank for fraction in (0.5, 0.25))
    by_rank = {r["rank"]: r for r in rows}
    targets = [
        Target("latency of the 50 % rung / dense", by_rank[half]["relative_to_dense"], 0.70),
        Target("latency of the 25 % rung / dense", by_rank[quarter]["relative_to_dense"], 0.50),
        Target("Spearman at 50 %, no training", by_rank[half]["spearman"], 0.80, at_least=True),
        Target("dense rung, largest difference from torch", dense_diff, 1e-4),
    ]
    results = {
        "model": bundle.manifest.model,
        "settings": {
            "batch_size": 1,
            "sequence_length": TOKENS,
            "threads": options.threads,
            "engine": engine.describe(),
            "held_out_sentences": sentences,
            "provenance": dict(checkpoint.provenance),
        },
        "rungs": rows[:-1],
        "alternatives": rows[-1:],
        "dense_max_abs_diff": dense_diff,
    }
    publish("benchmark-rungs", results, targets, [table(rows, options.threads)], options.json)


def quantise(bundle: Bundle, file: Path) -> Path:
    """Dense int8 as onnxruntime makes it by default."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(bundle.file(bundle.graph(bundle.manifest.ladder.max_rank)), file)
    return file


def long_text(bundle: Bundle) -> dict[str, np.ndarray]:
    """One real text of exactly `TOKENS` tokens."""
    with EdgeSession.open(bundle) as session:
        embedder = TextEmbedder(session)
        text = " ".join(documentation_corpus().held_out[:60])
        encoded = embedder.tokenize([text])
    assert encoded["input_ids"].shape[1] >= TOKENS
    return {name: np.ascontiguousarray(array[:, :TOKENS]) for name, array in encoded.items()}


def caller(graph: LoadedGraph, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    return lambda: graph.run(inputs)


class OneGraphSession:
    """What `TextEmbedder` needs of a session, over a single graph, so that int8 is pooled like the rungs."""

    def __init__(self, bundle: Bundle, graph: LoadedGraph) -> None:
        self.bundle = bundle
        self._graph = graph

    def run(self, inputs: dict[str, np.ndarray], rank: int | None = None) -> Any:
        from nsn_edge.runtimes.session import Answer

        return Answer(self._graph.run(inputs), 0, 0.0)


def spearman(bundle: Bundle, graphs: dict[int | str, LoadedGraph]) -> tuple[dict[int | str, float], int]:
    """Each candidate's Spearman against the dense rung, and the number of sentences."""
    texts = documentation_corpus().held_out
    embeddings = {
        name: TextEmbedder(OneGraphSession(bundle, graph)).embed(texts)  # type: ignore[arg-type]
        for name, graph in graphs.items()
    }
    dense = embeddings[bundle.manifest.ladder.max_rank]
    return {name: pairwise_similarity_spearman(dense, found) for name, found in embeddings.items()}, len(texts)


def row(
    bundle: Bundle, name: int | str, samples_ms: list[float], dense_ms: list[float], quality: float
) -> dict[str, Any]:
    """One object of the JSON."""
    ladder = bundle.manifest.ladder
    stats, dense = LatencyStats.from_samples(samples_ms), LatencyStats.from_samples(dense_ms)
    rank = name if isinstance(name, int) else None
    return {
        "rank": rank,
        "dense": rank is None or ladder.rung(rank).dense,
        "precision": "int8" if rank is None else "fp32",
        "flops_fraction": 1.0 if rank is None else ladder.flops_fraction(rank),
        "p50_ms": stats.p50_ms,
        "p99_ms": stats.p99_ms,
        "mean_ms": stats.mean_ms,
        "cv": stats.cv,
        "repetitions": stats.n,
        "relative_to_dense": stats.p50_ms / dense.p50_ms,
        "spearman": quality,
        "weight_bytes": None if rank is None else bundle.graph(rank).weight_bytes,
    }


def table(rows: list[dict[str, Any]], threads: int) -> Table:
    result = Table(title=f"MiniLM, batch 1, {TOKENS} tokens, threads {threads}", title_justify="left")
    for heading in ("rung", "linear FLOPs", "p50 ms", "p99 ms", "x dense", "Spearman", "weights MB"):
        result.add_column(heading, justify="right")
    for item in sorted(rows, key=lambda item: (item["rank"] is None, -(item["rank"] or 0))):
        result.add_row(
            "dense int8" if item["rank"] is None else f"{item['rank']}{' (dense)' if item['dense'] else ''}",
            f"{item['flops_fraction']:.1%}",
            f"{item['p50_ms']:.2f}",
            f"{item['p99_ms']:.2f}",
            f"{item['relative_to_dense']:.3f}",
            f"{item['spearman']:.3f}",
            f"{item['weight_bytes'] / 1e6:.1f}",
        )
    return result


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(3)
    main()
