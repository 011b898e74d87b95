"""One data set with one seed: every recipe trained, every rank scored. Used by `training.py`, in a process of its own.

What is done is kept in a folder, recipe by recipe, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from training_arenas import ARENAS, MINUTES, SECONDS, Arena
from training_recipes import ALWAYS, CHEAP, RECIPES, Recipe
from transformers import TrainingArguments

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.errors import RankError
from nsn_edge.ladder import RankLadder
from nsn_edge.layers import at_dense, at_rank, ladder_of, nsn_layers
from nsn_edge.training.config import TrainConfig
from nsn_edge.training.dense import dense_copy
from nsn_edge.training.objectives import weighting
from nsn_edge.training.ranks import RankSampler
from nsn_edge.training.trainer import NSNTrainer, drop_dense_weights_

RUNGS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)
BETWEEN = (0.6, 0.42, 0.3, 0.2)

Row = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """What came of a data set and seed."""

    arena: str
    """The data set's name in tables."""
    seed: int
    dense_score: float
    """Of the model before it is cut."""
    rows: list[Row]
    """One per recipe and rank."""
    processor_s: float
    """Of one core, kept results included."""


def run_unit(name: str, seed: int, quick: bool, wanted: str, kept: Path, only_kept: bool) -> Unit:
    """Every recipe of a data set and seed whose name the regular expression `wanted` finds; with `only_kept` those of
    them that were done before."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    arena: Arena | None = None

    def made() -> Arena:
        nonlocal arena
        if arena is None:
            _say(start, f"{name}, seed {seed}: dense")
            arena = ARENAS[name].make(seed, quick, kept)
        return arena

    def dense() -> dict[str, Any]:
        return {"arena": made().name, "score": made().score(made().dense), "rows": []}

    def trained(recipe: Recipe) -> dict[str, Any]:
        base = made()
        _say(start, f"{name}, seed {seed}: {recipe.name}")
        return {"rows": run(base, recipe, seed)}

    first = _kept(kept / f"{name}-{seed}-dense.json", {"quick": quick}, dense)
    documents = [first]
    for recipe in RECIPES:
        if _applies(recipe, name, seed) and re.search(wanted, recipe.name):
            file = kept / f"{name}-{seed}-{_slug(recipe.name)}.json"
            if only_kept and not file.is_file():
                continue
            documents.append(_kept(file, recipe.to_json(), partial(trained, recipe)))
    rows = [row for document in documents for row in document["rows"]]
    seconds = sum(document["processor_s"] for document in documents)
    return Unit(first["arena"], seed, first["score"], rows, seconds)


def _kept(file: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file keeps, if it was made with these settings; else what `make` gives, which is kept then."""
    if file.is_file():
        document: dict[str, Any] = json.loads(file.read_bytes())
        if document["recipe"] == settings:
            return document
    begun = time.process_time()
    document = {"recipe": settings, **make()}
    document["processor_s"] = time.process_time() - begun
    atomic_write_bytes(file, json.dumps(document).encode())
    return document


def run(arena: Arena, recipe: Recipe, seed: int) -> list[Row]:
    """Train by a recipe, and score every rank."""
    model = arena.nested(recipe.method, recipe.allocate)
    ladder = ladder_of(model)
    seconds = 0.0
    found = []
    for fraction, rank in ranks_of(ladder).items():
        if recipe.kind == "separate" and fraction in BETWEEN:
            continue
        if recipe.kind == "separate":
            model = arena.nested(recipe.method, recipe.allocate)
            seconds += train(arena, model, recipe, seed, only=rank)
        elif fraction == RUNGS[0] and recipe.kind != "untrained":
            seconds = train(arena, model, recipe, seed, only=ladder.max_rank if recipe.kind == "single" else None)
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
                "flops_fraction": ladder.flops_fraction(rank),
                "wanted_fraction": fraction,
                "between": fraction in BETWEEN,
                "score": score,
                "top_score": top_score(arena, model, score) if fraction == RUNGS[0] else None,
                "train_s": seconds,
            }
        )
    return found


def top_score(arena: Arena, model: torch.nn.Module, full_rank_score: float) -> float:
    """What ships at full power: the dense original, where the rest of the model still fits it, else the full rank."""
    if not all(layer.weight is not None for layer in nsn_layers(model).values()):
        return full_rank_score
    with at_dense(model):
        return arena.score(model)


def train(arena: Arena, model: torch.nn.Module, recipe: Recipe, seed: int, only: int | None) -> float:
    """One run of `NSNTrainer`; its seconds."""
    ladder = ladder_of(model)
    settings = {**arena.settings, **recipe.config}
    settings["learning_rate"] *= recipe.rate
    if not arena.has_labels:
        settings["objective"] = "distill"
    if settings.get("ranks") == "ladder":
        settings["rungs"] = tuple(rank for fraction, rank in ranks_of(ladder).items() if fraction in RUNGS)
    if "highest" in settings:
        settings["highest"] = min(settings["highest"], ladder.max_rank)
    config = TrainConfig(**settings, seed=seed)
    assert config.steps is not None
    sampler = config.sampler(ladder, config.steps)
    if only is not None:
        sampler = RankSampler((only,), ladder.max_rank, draws=1, seed=seed)
    loss = arena.loss(config)
    start = time.perf_counter()
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
            use_cpu=True,
            dataloader_pin_memory=False,
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
    if config.trained == "all":
        drop_dense_weights_(model)
    return time.perf_counter() - start


def ranks_of(ladder: RankLadder) -> dict[float, int]:
    """The rank of every share of the linear FLOPs that the model can take; the anchor first."""
    ranks = {RUNGS[0]: ladder.max_rank}
    for fraction in (*RUNGS[1:], *BETWEEN):
        try:
            ranks[fraction] = ladder.rank_for_fraction(fraction)
        except RankError:
            continue
    return ranks


def _applies(recipe: Recipe, name: str, seed: int) -> bool:
    """Whether a recipe is tried on a data set. Without labels there is no cross-entropy: distillation stands in for
    it, and what is then the same recipe twice is tried once."""
    kind = ARENAS[name]
    if kind.one_recipe != SECONDS and recipe.where != ALWAYS and seed != 0:
        return False
    if kind.one_recipe == MINUTES and recipe.where == CHEAP:
        return False
    if kind.has_labels or recipe.kind == "untrained":
        return True
    return recipe.name == "default"


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _say(start: float, words: str) -> None:
    print(f"{time.perf_counter() - start:6.0f} s  {words}", file=sys.stderr, flush=True)
