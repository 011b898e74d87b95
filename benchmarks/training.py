"""Which recipe trains a hierarchy best: side by side, at equal steps and seeds.

    python benchmarks/training.py --json benchmarks/results/training.json
    python benchmarks/training.py --quick

Every recipe begins with the same dense model and takes the same number of optimiser steps. Scores are taken at the
anchor (full rank), at rungs, and at ranks between the rungs; of each the mean over the seeds, and its spread (standard
deviation). `--quick` takes one seed, few steps and the small data sets, to see that everything runs: its figures say
little. Data sets that are absent are left out, and said.

JSON: `rows`, one object per data set, recipe, seed and rank: `arena, unit, recipe, seed, rank, flops_fraction, between,
score`; `dense`, the dense model's score per data set and seed; `recipes`, their settings.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import Target, publish
from rich.table import Table
from training_arenas import ARENAS, DATA, Arena
from transformers import TrainingArguments

from nsn_edge.errors import RankError
from nsn_edge.layers import at_rank
from nsn_edge.training.config import TrainConfig
from nsn_edge.training.dense import dense_copy
from nsn_edge.training.objectives import weighting
from nsn_edge.training.ranks import RankSampler
from nsn_edge.training.trainer import NSNTrainer

RUNGS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)
BETWEEN = (0.6, 0.42, 0.3, 0.2)

PAPER = {
    "objective": "labels",
    "weights": "uncertainty",
    "plan": "anchor",
    "draws": 1,
    "widen": 0.5,
    "trained": "all",
}


@dataclass(frozen=True)
class Recipe:
    """A way to train."""

    name: str
    method: str
    """How the dense weights are cut: `svd` or `whitened`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings of `TrainConfig`."""
    kind: str = "hierarchy"
    """`hierarchy`, `untrained`, `single` (the anchor alone) or `separate` (a model for each rank)."""


RECIPES = (
    Recipe("untrained, svd", "svd", kind="untrained"),
    Recipe("untrained, whitened", "whitened", kind="untrained"),
    Recipe("cross-entropy at full rank", "svd", {"objective": "labels", "trained": "all"}, "single"),
    Recipe("paper", "svd", PAPER),
    Recipe("paper, equal weights", "svd", {**PAPER, "weights": "equal"}),
    Recipe("paper + whitened", "whitened", PAPER),
    Recipe("paper + distillation", "svd", {**PAPER, "objective": "mixed"}),
    Recipe("paper + two random ranks", "svd", {**PAPER, "plan": "random", "draws": 2, "widen": 0.0}),
    Recipe("paper + sandwich", "svd", {**PAPER, "plan": "sandwich"}),
    Recipe("paper, factors alone", "svd", {**PAPER, "trained": "factors"}),
    Recipe("default", "whitened"),
    Recipe("default, distillation alone", "whitened", {"objective": "distill"}),
    Recipe("default, every parameter", "whitened", {"trained": "all"}),
    Recipe("default, sandwich", "whitened", {"plan": "sandwich", "draws": 1}),
    Recipe("default, small ranks more often", "whitened", {"lean": 1.0}),
    Recipe("default, rungs alone", "whitened", {"ranks": "ladder"}),
    Recipe("a model for each rank", "whitened", kind="separate"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON document here too")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, small data")
    parser.add_argument("--data", default="", help=f"which of {', '.join(ARENAS)}, with commas between; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", default="", help="only those whose name holds one of these words, commas between")
    options = parser.parse_args()
    names = options.data.split(",") if options.data else (["digits", "stories"] if options.quick else list(ARENAS))
    rows: list[dict[str, Any]] = []
    dense: list[dict[str, Any]] = []
    start = time.perf_counter()
    for name in names:
        make, folder = ARENAS[name]
        if folder is not None and not (DATA / folder).is_dir():
            print(f"{name} is left out: there is no {DATA / folder} (NSN_EDGE_DATA)", file=sys.stderr)
            continue
        for seed in range(1 if options.quick else options.seeds):
            arena = make(seed, options.quick)
            dense.append({"arena": arena.name, "seed": seed, "score": arena.score(arena.dense)})
            for recipe in RECIPES:
                wanted = not options.recipes or any(word in recipe.name for word in options.recipes.split(","))
                if not wanted or not _fits(recipe, arena):
                    continue
                print(f"{time.perf_counter() - start:.0f} s: {arena.name}, seed {seed}: {recipe.name}", file=sys.stderr)
                rows += run(arena, recipe, seed)
    results = {
        "quick": options.quick,
        "seconds": time.perf_counter() - start,
        "recipes": [{"name": r.name, "method": r.method, "kind": r.kind, "config": r.config} for r in RECIPES],
        "dense": dense,
        "rows": rows,
    }
    arenas = list(dict.fromkeys(row["arena"] for row in rows))
    tables = [table(arena, rows, dense) for arena in arenas]
    publish("benchmark-training", results, targets(rows, dense), tables, options.json)


def run(arena: Arena, recipe: Recipe, seed: int) -> list[dict[str, Any]]:
    """Train by a recipe, and score every rank."""
    model = arena.nested(recipe.method)
    ranks = _ranks(arena)
    found = []
    for fraction, rank in ranks.items():
        if recipe.kind == "separate":
            model = arena.nested(recipe.method)
            train(arena, model, recipe, seed, only=rank)
        elif fraction == RUNGS[0] and recipe.kind != "untrained":
            train(arena, model, recipe, seed, only=arena.ladder.max_rank if recipe.kind == "single" else None)
        model.eval()
        with at_rank(model, rank):
            score = arena.score(model)
        found.append(
            {
                "arena": arena.name,
                "unit": arena.unit,
                "recipe": recipe.name,
                "seed": seed,
                "rank": rank,
                "flops_fraction": arena.ladder.flops_fraction(rank),
                "wanted_fraction": fraction,
                "between": fraction in BETWEEN,
                "score": score,
            }
        )
    return found


def train(arena: Arena, model: torch.nn.Module, recipe: Recipe, seed: int, only: int | None) -> None:
    """One run of `NSNTrainer`."""
    settings = {**arena.settings, **recipe.config}
    if not arena.has_labels:
        settings["objective"] = "distill"
    if settings.get("ranks") == "ladder":
        settings["rungs"] = tuple(rank for fraction, rank in _ranks(arena).items() if fraction in RUNGS)
    config = TrainConfig(**settings, seed=seed)
    assert config.steps is not None
    sampler = config.sampler(arena.ladder, config.steps)
    if only is not None:
        sampler = RankSampler((only,), arena.ladder.max_rank, draws=1, seed=seed)
    loss = arena.loss(config)
    with tempfile.TemporaryDirectory(prefix="nsn-edge-bench-") as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=config.steps,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            warmup_ratio=config.warmup,
            weight_decay=config.weight_decay,
            seed=seed,
            group_by_length=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        NSNTrainer(
            model,
            arguments,
            sampler=sampler,
            loss=loss,
            weights=weighting(config.weights, sampler.count),
            teacher=dense_copy(model, frozen=True) if loss.needs_teacher else None,
            trained=config.trained,
            train_dataset=arena.rows,
            data_collator=arena.rows.collate,
        ).train()
    model.cpu()


def table(arena: str, rows: Sequence[dict[str, Any]], dense: Sequence[dict[str, Any]]) -> Table:
    """Recipes down, ranks across."""
    mine = [row for row in rows if row["arena"] == arena]
    base = [entry["score"] for entry in dense if entry["arena"] == arena]
    shown = Table(title=f"{arena}: {mine[0]['unit']}; dense {_spread(base)}", title_justify="left")
    shown.add_column("recipe")
    fractions = sorted({row["wanted_fraction"] for row in mine if not row["between"]}, reverse=True)
    for heading in ("anchor", *(f"{fraction:.0%}" for fraction in fractions[1:]), "rungs", "between"):
        shown.add_column(heading, justify="right")
    for recipe in dict.fromkeys(row["recipe"] for row in mine):
        its = [row for row in mine if row["recipe"] == recipe]
        each = [_over_seeds(its, lambda row, at=at: row["wanted_fraction"] == at) for at in fractions]
        means = [_over_seeds(its, lambda row, between=b: row["between"] == between) for b in (False, True)]
        shown.add_row(recipe, *(_spread(values) for values in (*each, *means)))
    return shown


def targets(rows: Sequence[dict[str, Any]], dense: Sequence[dict[str, Any]]) -> list[Target]:
    """What the default recipe must show."""

    def mean(arena: str, recipe: str, at: float) -> float | None:
        its = [row for row in rows if row["arena"] == arena and row["recipe"] == recipe]
        values = _over_seeds(its, lambda row: row["wanted_fraction"] == at)
        return statistics.mean(values) if values else None

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


def _below_line(arena: str, rows: Sequence[dict[str, Any]]) -> float:
    """How far a rank between two rungs falls below the line through them, at most, by the means over the seeds."""
    its = [row for row in rows if row["arena"] == arena and row["recipe"] == "default"]
    points = sorted({(row["rank"], row["between"]) for row in its})
    mean = {rank: statistics.mean(row["score"] for row in its if row["rank"] == rank) for rank, _ in points}
    rungs = [rank for rank, between in points if not between]
    worst = 0.0
    for rank, between in points:
        if between:
            low = max(other for other in rungs if other <= rank)
            high = min(other for other in rungs if other >= rank)
            share = (rank - low) / max(high - low, 1)
            worst = max(worst, mean[low] + share * (mean[high] - mean[low]) - mean[rank])
    return worst


def _ranks(arena: Arena) -> dict[float, int]:
    """The rank of every share of the linear FLOPs that the model can take; the anchor first."""
    ranks = {RUNGS[0]: arena.ladder.max_rank}
    for fraction in (*RUNGS[1:], *BETWEEN):
        try:
            ranks[fraction] = arena.ladder.rank_for_fraction(fraction)
        except RankError:
            continue
    return ranks


def _fits(recipe: Recipe, arena: Arena) -> bool:
    """Without labels there is no cross-entropy, and the default recipe is distillation already."""
    if arena.has_labels:
        return True
    return recipe.config.get("objective", "mixed") == "mixed" and recipe.name != "default, distillation alone"


def _over_seeds(rows: Sequence[dict[str, Any]], chosen: Callable[[dict[str, Any]], bool]) -> list[float]:
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
