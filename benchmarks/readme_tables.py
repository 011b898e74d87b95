"""Write the tables of README.md and docs/ from the committed result files, so that no figure was typed by hand.

python benchmarks/readme_tables.py            # rewrite the tables
python benchmarks/readme_tables.py --check    # exit 1 if a page differs from the results
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import page_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ARENAS = {"clinc": "CLINC150", "stsb": "STS-B", "stories": "stories260K", "digits": "digits"}
"""The tables of docs/training.md, and the data sets of training.json."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    different = []
    for page, tables in pages().items():
        file = ROOT / page
        before = file.read_text(encoding="utf-8")
        after = with_tables(page, before, tables)
        if after != before:
            different.append(page)
        if not options.check:
            file.write_text(after, encoding="utf-8")
    if options.check and different:
        sys.exit(f"{', '.join(different)} differ from benchmarks/results: run benchmarks/readme_tables.py")


def pages() -> dict[str, dict[str, str]]:
    """By file, its tables by name."""
    forms, precision, training = load("forms"), load("precision"), load("training")
    return {
        "README.md": {
            "rungs": rungs_table(load("rungs")),
            "calibration": calibration_table(load("calibration")),
            "training": page_tables.lost_by_training(training),
            "footprint": footprint_table(),
        },
        "docs/forms.md": {
            "latency": page_tables.forms_latency(forms),
            "memory": page_tables.forms_memory(forms),
            "ordinary": page_tables.forms_ordinary(forms),
            "missed": page_tables.missed(forms),
        },
        "docs/generation.md": {"decode": page_tables.decode_speed(load("decode"))},
        "docs/precision.md": {
            "pairs": page_tables.precision_pairs(precision),
            "missed": page_tables.missed(precision),
        },
        "docs/difficulty.md": {"rules": page_tables.difficulty_rules(load_if_there("difficulty"))},
        "docs/training.md": {
            **{name: page_tables.recipes(training, arena) for name, arena in ARENAS.items()},
            "missed": page_tables.missed(training),
        },
        "docs/tensorrt.md": {"built": page_tables.built_engines(load("build"))},
    }


def load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def load_if_there(name: str) -> dict[str, Any] | None:
    """None before the first run is committed."""
    return load(name) if (RESULTS / f"{name}.json").is_file() else None


def with_tables(page: str, text: str, tables: dict[str, str]) -> str:
    """The text with what stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->` replaced."""
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{page} has no place for the table {name!r}")
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def rungs_table(data: dict[str, Any]) -> str:
    lines = [
        f"all-MiniLM-L6-v2, batch {data['settings']['batch_size']}, {data['settings']['sequence_length']} tokens, "
        f"{data['settings']['threads']} thread, on {machine(data)} "
        f"(`python benchmarks/rungs.py`, [results](benchmarks/results/rungs.json)):",
        "",
        "| rung | linear FLOPs | p50 ms | p99 ms | latency / dense | quality (Spearman) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for item in [*reversed(data["rungs"]), *data["alternatives"]]:
        name = "dense int8 (onnxruntime)" if item["rank"] is None else f"rank {item['rank']}"
        if item["rank"] is not None and item["dense"]:
            name = "dense (the original)"
        lines.append(
            f"| {name} | {item['flops_fraction']:.0%} | {item['p50_ms']:.1f} | {item['p99_ms']:.1f} "
            f"| {item['relative_to_dense']:.2f} | {item['spearman']:.3f} |"
        )
    return "\n".join(lines)


def calibration_table(data: dict[str, Any]) -> str:
    found: dict[tuple[str, str, str], dict[float, float]] = {}
    for row in data["rows"]:
        key = (row["judged_on"], row["calibrated_on"], row["method"])
        found.setdefault(key, {})[row["flops_fraction"]] = row["spearman"]
    fractions = sorted({row["flops_fraction"] for row in data["rows"]}, reverse=True)
    lines = [
        "Spearman against dense by calibration text (`python benchmarks/calibration.py`, "
        "[results](benchmarks/results/calibration.json)):",
        "",
        "| judged on | calibrated on | " + " | ".join(f"{fraction:.0%}" for fraction in fractions) + " |",
        "|---|---|" + "--:|" * len(fractions),
    ]
    for (judged_on, calibrated_on, method), values in sorted(found.items()):
        way = "nothing (plain SVD)" if method == "svd" else calibrated_on
        cells = " | ".join(f"{values[fraction]:.3f}" for fraction in fractions)
        lines.append(f"| {judged_on} | {way} | {cells} |")
    return "\n".join(lines)


def footprint_table() -> str:
    size, switching = load("footprint"), load("switching")
    cold = switching["cold"]
    return "\n".join(
        [
            "| | measured | with |",
            "|---|--:|---|",
            "| bundle of five rungs / (dense weights + one set of factors), on disk "
            f"| {size['bundle_over_weights']:.3f} | `benchmarks/footprint.py` |",
            f"| the same / five separate exports, on disk | {size['bundle_over_separate']:.2f} | |",
            f"| tracing and exporting five rungs / one | {size['ratios']['five_over_one']:.2f} | |",
            f"| switch between resident rungs, p99 | {switching['resident']['p99_ms'] * 1e3:.0f} µs "
            "| `benchmarks/switching.py` |",
            f"| request p99 while a cold rung loads / undisturbed | {cold['p99_ratio']:.2f} | |",
            f"| failed or wrong answers in {switching['random']['switches']:,} random switches under load "
            f"| {switching['random']['failed'] + switching['random']['wrong']} of "
            f"{switching['random']['requests']:,} requests | |",
        ]
    )


def machine(data: dict[str, Any]) -> str:
    host = data["host"]
    return f"{host['cpu']}, {host['cores']} cores, onnxruntime {data['settings']['engine']['version']}"


if __name__ == "__main__":
    main()
