"""Which recipe trains a hierarchy best: side by side, at equal steps and seeds.

    python benchmarks/training.py --json benchmarks/results/training.json
    python benchmarks/training.py --quick

Every recipe begins with the same dense model and takes the same number of optimiser steps. Scores are taken at the
anchor (full rank), at rungs, and at ranks between the rungs; of each the mean over the seeds, and its spread (standard
deviation). The recipes are in `training_recipes.py`; where one recipe takes minutes, some are tried with the first seed
alone, and some not at all. The default's settings were chosen on CLINC150's validation split; its scores are of the
test split. `--quick` takes one seed, few steps and the small data sets, to see that everything runs: its figures say
little. Data sets that are absent are left out, and said.

Data sets and seeds run beside each other in `--jobs` processes of one thread. `--kept FOLDER` keeps what is done, so
that an interrupted benchmark goes on where it stopped.

JSON: `rows`, one object per data set, recipe, seed and rank: `arena, unit, recipe, seed, rank, flops_fraction,
wanted_fraction, between, score, top_score, train_s` (`top_score`, with full rank alone, is of what ships
at full power: the dense original where only factors were trained); `dense`, the dense model's score per data set and
seed; `recipes`, their settings; `processor_s`, what everything took of one core, kept results included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from common import Target, publish
from rich.table import Table
from training_arenas import ARENAS, DATA
from training_recipes import RECIPES
from training_runs import RUNGS, Row, run_unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON document here too")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, small data")
    parser.add_argument("--data", default="", help=f"which of {', '.join(ARENAS)}, with commas between; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", default="", help="only those whose name this regular expression finds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one per core")
    parser.add_argument("--kept", type=Path, metavar="FOLDER", help="keep what is done here, and use what is there")
    parser.add_argument("--only-kept", action="store_true", help="train nothing: the tables of what is kept so far")
    options = parser.parse_args()
    names = options.data.split(",") if options.data else (["stories", "digits"] if options.quick else list(ARENAS))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="nsn-edge-bench-") as temporary:
        kept = options.kept or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        seeds = range(1 if options.quick else options.seeds)
        settings = (options.quick, options.recipes, kept, options.only_kept)
        units = [(name, seed, *settings) for name in names if _is_there(name) for seed in seeds]
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(min(options.jobs, len(units)), context) as pool:
            done = list(pool.map(run_unit, *zip(*units, strict=True)))
    rows = [row for unit in done for row in unit.rows]
    dense = [{"arena": unit.arena, "seed": unit.seed, "score": unit.dense_score} for unit in done]
    results = {
        "quick": options.quick,
        "seconds": time.perf_counter() - start,
        "processor_s": sum(unit.processor_s for unit in done),
        "recipes": [recipe.to_json() for recipe in RECIPES],
        "dense": dense,
        "rows": rows,
    }
    arenas = list(dict.fromkeys(row["arena"] for row in rows))
    tables = [table(arena, rows, dense) for arena in arenas]
    publish("benchmark-training", results, targets(rows, dense), tables, options.json)


def _is_there(name: str) -> bool:
    """Whether the data of an arena are there; says so where not."""
    folder = ARENAS[name].folder
    if folder is None or (DATA / folder).is_dir():
        return True
    print(f"{name} is left out: there is no {DATA / folder} (NSN_EDGE_DATA)", file=sys.stderr)
    return False


def table(arena: str, rows: Sequence[Row], dense: Sequence[dict[str, Any]]) -> Table:
    """Recipes down, ranks across."""
    mine = [row for row in rows if row["arena"] == arena]
    base = [entry["score"] for entry in dense if entry["arena"] == arena]
    shown = Table(title=f"{arena}: {mine[0]['unit']}; dense {_spread(base)}", title_justify="left")
    shown.add_column("recipe")
    fractions = sorted({row["wanted_fraction"] for row in mine if not row["between"]}, reverse=True)
    for heading in ("top rung", "full rank", *(f"{fraction:.0%}" for fraction in fractions[1:]), "rungs", "between"):
        shown.add_column(heading, justify="right")
    for recipe in dict.fromkeys(row["recipe"] for row in mine):
        its = [row for row in mine if row["recipe"] == recipe]
        each = [_over_seeds(its, lambda row, at=at: row["wanted_fraction"] == at) for at in fractions]
        means = [_over_seeds(its, lambda row, between=b: row["between"] == between) for b in (False, True)]
        top = [row["top_score"] for row in its if row["top_score"] is not None]
        shown.add_row(recipe, *(_spread(values) for values in (top, *each, *means)))
    return shown


def targets(rows: Sequence[Row], dense: Sequence[dict[str, Any]]) -> list[Target]:
    """What the default recipe must show."""

    def mean(arena: str, recipe: str, at: float) -> float | None:
        key = "top_score" if at == RUNGS[0] else "score"
        its = [row for row in rows if (row["arena"], row["recipe"], row["wanted_fraction"]) == (arena, recipe, at)]
        return statistics.mean(row[key] for row in its) if its else None

    found = []
    limits = {"CLINC150": {1.0: 0.2, 0.5: 0.4, 0.25: 1.8, 0.15: 6.0}, "STS-B": {0.5: 1.0, 0.25: 4.0}}
    for arena, goals in limits.items():
        for at, limit in goals.items():
            score = mean(arena, "default", at)
            if score is not None:
                base = statistics.mean(entry["score"] for entry in dense if entry["arena"] == arena)
                found.append(Target(f"{arena}: points lost at {at:.0%}, default recipe", base - score, limit))
    ours, paper = mean("stories260K", "default", 0.5), mean("stories260K", "paper", 0.5)
    if ours is not None and paper is not None:
        found.append(Target("stories260K: perplexity at 50 %, default against paper", ours / paper, 0.70))
    ours, paper = mean("digits", "default", 0.15), mean("digits", "paper", 0.15)
    if ours is not None and paper is not None:
        found.append(Target("digits: accuracy at 15 %, default less paper", ours - paper, 0.0, at_least=True))
    for arena in dict.fromkeys(row["arena"] for row in rows if row["arena"] in limits):
        found.append(
            Target(f"{arena}: points below the line between rungs, default recipe", _below_line(arena, rows), 0.5)
        )
    return found


def _below_line(arena: str, rows: Sequence[Row]) -> float:
    """How far a rank between two rungs falls below the line through them, at most, by the means over the seeds."""
    its = [row for row in rows if row["arena"] == arena and row["recipe"] == "default"]
    shares = {row["wanted_fraction"]: row["between"] for row in its}
    mean = {at: statistics.mean(row["score"] for row in its if row["wanted_fraction"] == at) for at in shares}
    rungs = [at for at, between in shares.items() if not between]
    worst = 0.0
    for at, between in shares.items():
        if between:
            low, high = max(other for other in rungs if other < at), min(other for other in rungs if other > at)
            line = mean[low] + (at - low) / (high - low) * (mean[high] - mean[low])
            worst = max(worst, line - mean[at])
    return worst


def _over_seeds(rows: Sequence[Row], chosen: Callable[[dict[str, Any]], bool]) -> list[float]:
    """For each seed the mean score of the chosen rows."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if chosen(row):
            by_seed.setdefault(row["seed"], []).append(row["score"])
    return [statistics.mean(scores) for scores in by_seed.values()]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
