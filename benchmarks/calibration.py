"""What the factors are calibrated on decides what the rungs keep: MiniLM, no training.

    python benchmarks/calibration.py --json benchmarks/results/calibration.json

Each way of cutting is judged on two kinds of text that it was not calibrated on: held-out sentences of Python's
documentation and, where the data folder is present, sentences of STS-B (everyday English). Quality is the Spearman
correlation of all pairwise similarities with the dense model's, in torch, at each rung.

JSON: `rows`, one object per way, text and rung: `method, calibrated_on, judged_on, rank, flops_fraction, spearman`.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Target, publish
from rich.table import Table

from nsn_edge.adaptation import CalibrationText, adapt_pretrained, packaged_text
from nsn_edge.convert import NSNConfig
from nsn_edge.corpus import documentation_corpus
from nsn_edge.evaluation import embed_texts
from nsn_edge.export.exporter import DEFAULT_FRACTIONS
from nsn_edge.layers import at_dense, at_rank
from nsn_edge.metrics import pairwise_similarity_spearman
from nsn_edge.pretrained import load_pretrained

SENTENCES = 500


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON document here too")
    options = parser.parse_args()
    judged = {"documentation": list(documentation_corpus().held_out[:SENTENCES])}
    ways: list[tuple[str, str, CalibrationText | None]] = [
        ("svd", "nothing", None),
        ("whitened", "documentation", packaged_text()),
    ]
    everyday = stsb("train")
    if everyday:
        judged["STS-B"] = stsb("test")[:SENTENCES]
        unseen = [text for text in everyday if text not in set(judged["STS-B"])]
        ways.append(("whitened", "STS-B", CalibrationText(unseen, "STS-B train")))
        mixed = [text for pair in zip(documentation_corpus().calibration, unseen, strict=False) for text in pair]
        ways.append(("whitened", "both", CalibrationText(mixed, "documentation and STS-B train")))
    else:
        print("STS-B is not here (NSN_EDGE_DATA): judging on documentation alone", file=sys.stderr)
    rows = [row for way in ways for row in judge(*way, judged)]
    half = [row for row in rows if row["rank"] == 128 and row["calibrated_on"] == row["judged_on"]]
    targets = [
        Target(f"Spearman at 50 %, calibrated and judged on {row['judged_on']}", row["spearman"], 0.80, at_least=True)
        for row in half
        if row["judged_on"] == "documentation"
    ]
    publish("benchmark-calibration", {"rows": rows}, targets, [table(rows)], options.json)


def stsb(split: str) -> list[str]:
    """Distinct sentences of a split of STS-B; none where the data is absent."""
    folder = Path(os.environ.get("NSN_EDGE_DATA", ROOT.parent / "shared" / "data")) / "stsb"
    file = folder / f"stsb-en-{split}.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(dict.fromkeys(sentence for row in csv.reader(stream) for sentence in row[:2]))


def judge(
    method: str, calibrated_on: str, text: CalibrationText | None, judged: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Cut the model one way and judge it at every rung."""
    print(f"{method}, calibrated on {calibrated_on} ...", file=sys.stderr)
    pretrained = load_pretrained()
    checkpoint = adapt_pretrained(pretrained, NSNConfig(method), text)
    model, ladder = checkpoint.model, checkpoint.ladder
    rows = []
    for name, texts in judged.items():

        def embed(texts: list[str] = texts) -> np.ndarray:
            return embed_texts(model, pretrained.tokenizer, texts, checkpoint.task)

        with at_dense(model):
            dense = embed()
        for fraction in DEFAULT_FRACTIONS:
            rank = ladder.rank_for_fraction(fraction)
            with at_rank(model, rank):
                spearman = pairwise_similarity_spearman(dense, embed())
            rows.append(
                {
                    "method": method,
                    "calibrated_on": calibrated_on,
                    "judged_on": name,
                    "rank": rank,
                    "flops_fraction": ladder.flops_fraction(rank),
                    "spearman": spearman,
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    result = Table(title="Spearman against dense, no training", title_justify="left")
    for heading in ("method", "calibrated on", "judged on"):
        result.add_column(heading)
    fractions = list(dict.fromkeys(row["flops_fraction"] for row in rows))
    for fraction in fractions:
        result.add_column(f"{fraction:.0%}", justify="right")
    found: dict[tuple[str, str, str], dict[float, float]] = {}
    for row in rows:
        key = (row["method"], row["calibrated_on"], row["judged_on"])
        found.setdefault(key, {})[row["flops_fraction"]] = row["spearman"]
    for key, by_fraction in found.items():
        result.add_row(*key, *(f"{by_fraction[fraction]:.3f}" for fraction in fractions))
    return result


if __name__ == "__main__":
    main()
