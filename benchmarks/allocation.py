"""Ranks per layer: the same share for all, or by measured sensitivity, at the same linear FLOPs. No training.

    python benchmarks/allocation.py --json benchmarks/results/allocation.json

MiniLM, calibrated on Python's documentation and, where the data folder is present, on sentences of STS-B; judged on
text that it was not calibrated on: held-out documentation (order of similarities against dense), sentences of STS-B's
test split (the same), and its pairs (Spearman against people's scores). The real Llama of 260,000 parameters,
calibrated on stories that it told, judged on others and on tinyshakespeare (perplexity). `--quick`: few sentences of
the documentation.

JSON: `rows`, one object per model, text, allocation and rung: `model, calibrated_on, judged_on, metric, allocation,
wanted, rank, flops_fraction, layer_ranks (lowest, highest), quality`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import ROOT, Target, arguments, publish
from rich.table import Table

from nsn_edge.adaptation import CalibrationText, adapt_pretrained, packaged_text
from nsn_edge.bundle import TaskSpec
from nsn_edge.calibration import Batch, some_examples, text_batches
from nsn_edge.corpus import documentation_corpus
from nsn_edge.datafiles import read_table, read_text
from nsn_edge.frontier.measures import Measure, Perplexity, SimilarityOrder, SimilarityScores
from nsn_edge.layers import at_dense, at_rank, ladder_of
from nsn_edge.pretrained import load_pretrained
from nsn_edge.sensitivity import PROBE_EXAMPLES, allocate_

sys.path.insert(0, str(ROOT / "tests" / "support"))
from shared_data import data_root

FRACTIONS = (0.75, 0.5, 0.35, 0.25)
STS = ("sentence1", "sentence2", "score")
WINDOW = 256  # tokens


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few sentences of the documentation: a smoke test")
    options = parser.parse_args()
    most = 60 if options.quick else 500
    rows = embedder(most, 60 if options.quick else 600, everyday=not options.quick)
    if not options.quick and (data_root() / "stories260K").is_dir():
        rows += decoder()
    targets = [
        Target(
            f"sensitivity less uniform, {row['judged_on']}, at {row['wanted']:.0%}",
            row["quality"] - other(rows, row)["quality"],
            0.0,
            at_least=True,
        )
        for row in rows
        if row["allocation"] == "sensitivity" and row["calibrated_on"] == "documentation" and row["wanted"] == 0.5
    ]
    publish("benchmark-allocation", {"rows": rows}, targets, [table(rows)], options.json)


def embedder(most: int, sentences: int, everyday: bool) -> list[dict[str, Any]]:
    """MiniLM, cut once per calibration text."""
    folder = data_root() / "stsb"
    texts = {"documentation": packaged_text(sentences)}
    everyday = everyday and folder.is_dir()
    if everyday:
        train = read_table(folder / "stsb-en-train.csv", STS)
        test = read_table(folder / "stsb-en-test.csv", STS)
        seen = set(test.texts("sentence1")) | set(test.texts("sentence2"))
        unseen = dict.fromkeys([*train.texts("sentence1"), *train.texts("sentence2")])
        texts["STS-B"] = CalibrationText([text for text in unseen if text not in seen], "STS-B train", sentences)
    rows = []
    for name, text in texts.items():
        print(f"MiniLM, calibrated on {name} ...", file=sys.stderr)
        pretrained = load_pretrained()
        tokenizer, task = pretrained.tokenizer, pretrained.task
        measures: dict[str, Measure] = {
            "documentation": SimilarityOrder(tokenizer, task, documentation_corpus().held_out[:most], {})
        }
        if everyday:
            first, second, scores = test.texts("sentence1"), test.texts("sentence2"), test.numbers("score")
            distinct = list(dict.fromkeys([*first, *second]))[:most]
            measures["STS-B sentences"] = SimilarityOrder(tokenizer, task, distinct, {})
            measures["STS-B pairs"] = SimilarityScores(tokenizer, task, first, second, scores)
        checkpoint = adapt_pretrained(pretrained, None, text)
        probes = some_examples(text_batches(tokenizer, text.chosen(), max_length=task.max_length), PROBE_EXAMPLES)
        rows += judge(checkpoint.model, task, probes, measures, {"model": "MiniLM", "calibrated_on": name})
    return rows


def decoder() -> list[dict[str, Any]]:
    """The Llama that tells stories."""
    import stories260k

    print("Llama 260K ...", file=sys.stderr)
    folder = data_root() / "stories260K"
    original = stories260k.load_model(folder)
    told = stories260k.told_stories(original, 96, WINDOW, seed=1)
    others = stories260k.told_stories(original, 32, WINDOW, seed=2)
    with tempfile.TemporaryDirectory(prefix="nsn-edge-bench-") as name:
        checkpoint = stories260k.nested_checkpoint(folder, Path(name), told=told)
        measures: dict[str, Measure] = {"its own stories": Perplexity(list(others))}
        play = data_root() / "tinyshakespeare" / "input.txt"
        if play.is_file():
            text = read_text(play)
            ids = stories260k.load_tokenizer(folder).encode(text[-len(text) // 10 :]).ids
            windows = torch.tensor(ids).split(WINDOW)
            measures["tinyshakespeare"] = Perplexity([window for window in windows[:200] if len(window) > 1])
        probes: list[Batch] = [{"input_ids": part} for part in told[:32].split(16)]
        named = {"model": "Llama 260K", "calibrated_on": "its own stories"}
        return judge(checkpoint.model, checkpoint.task, probes, measures, named, align=1)


def judge(
    model: torch.nn.Module,
    task: TaskSpec,
    probes: Sequence[Batch],
    measures: Mapping[str, Measure],
    named: Mapping[str, str],
    align: int = 8,
) -> list[dict[str, Any]]:
    """Both allocations of one cut model, at every rung, by every measure."""
    rows = []
    with at_dense(model):
        dense = {name: measure(model) for name, measure in measures.items()}
    rows += [row(named, name, m, "dense", 1.0, 0, 1.0, (0, 0), dense[name]) for name, m in measures.items()]
    for allocation in ("uniform", "sensitivity"):
        if allocation == "sensitivity":
            allocate_(model, probes, task, align)
        ladder = ladder_of(model)
        for wanted in FRACTIONS:
            rank = ladder.rank_for_fraction(wanted)
            layer_ranks = ladder.layer_ranks(rank).values()
            span = min(layer_ranks), max(layer_ranks)
            with at_rank(model, rank):
                for name, measure in measures.items():
                    fraction = ladder.flops_fraction(rank)
                    rows.append(row(named, name, measure, allocation, wanted, rank, fraction, span, measure(model)))
    return rows


def row(
    named: Mapping[str, str],
    judged_on: str,
    measure: Measure,
    allocation: str,
    wanted: float,
    rank: int,
    fraction: float,
    span: tuple[int, int],
    quality: float,
) -> dict[str, Any]:
    return {
        **named,
        "judged_on": judged_on,
        "metric": measure.metric.name,
        "allocation": allocation,
        "wanted": wanted,
        "rank": rank,
        "flops_fraction": fraction,
        "layer_ranks": span,
        "quality": quality,
    }


def other(rows: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same row of the uniform allocation."""
    keys = ("model", "calibrated_on", "judged_on", "wanted")
    return next(r for r in rows if r["allocation"] == "uniform" and all(r[key] == given[key] for key in keys))


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    result = Table(title="Uniform ranks and ranks by sensitivity, no training", title_justify="left")
    for heading in ("model", "calibrated on", "judged on", "metric", "allocation"):
        result.add_column(heading)
    for fraction in (1.0, *FRACTIONS):
        result.add_column(f"{fraction:.0%}", justify="right")
    found: dict[tuple[str, ...], dict[float, float]] = {}
    for r in rows:
        key = tuple(r[name] for name in ("model", "calibrated_on", "judged_on", "metric", "allocation"))
        found.setdefault(key, {})[r["wanted"]] = r["quality"]
    for key, by_fraction in found.items():
        cells = (f"{by_fraction[f]:.3f}" if f in by_fraction else "" for f in (1.0, *FRACTIONS))
        result.add_row(*key, *cells)
    return result


if __name__ == "__main__":
    main()
