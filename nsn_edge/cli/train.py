"""`nsn-edge train`: train every rank of a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from nsn_edge.cli.common import emit, progress_bar, verb_options

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _settings(function: _Command) -> _Command:
    """The options that go into `TrainConfig`, by its names; None leaves the recipe's value."""
    options = (
        click.option("--objective", type=click.Choice(["labels", "distill", "mixed"]), help="The loss of a rank."),
        click.option("--distill-weight", type=float, help="Share of distillation in mixed. Default: 0.5."),
        click.option("--temperature", type=float, help="Of distilled logits. Default: 2."),
        click.option("--hidden-weight", type=float, help="Of hidden states, beside distilled logits. Default: 1."),
        click.option("--weights", type=click.Choice(["equal", "uncertainty"]), help="How a step's ranks are weighed."),
        click.option("--plan", type=click.Choice(["random", "anchor", "sandwich"]), help="Which ranks a step takes."),
        click.option("--ranks", type=click.Choice(["continuous", "aligned", "ladder"]), help="What is drawn from."),
        click.option("--rungs", type=click.STRING, help="For --ranks ladder: the ranks, with commas between."),
        click.option("--lowest", type=int, help="The smallest rank to train."),
        click.option("--highest", type=int, help="The largest rank to draw."),
        click.option("--draws", type=int, help="How many ranks a step draws. Default: 2."),
        click.option("--lean", type=float, help="Draw small ranks more often, by rank**-lean. Default: 0."),
        click.option("--widen", type=float, help="Share of the steps over which the ranks widen downwards."),
        click.option(
            "--allocate",
            type=click.Choice(["keep", "sensitivity"]),
            help="Ranks of each layer where the dense model was trained and is cut anew. Default: sensitivity.",
        ),
        click.option("--train", "trained", type=click.Choice(["factors", "all"]), help="What is trained."),
        click.option("--steps", type=int, help="Optimiser steps, in place of --epochs."),
        click.option("--epochs", type=float, help="Passes over the data. Default: 1."),
        click.option("--dense-epochs", type=float, help="Passes that train the dense model first."),
        click.option("--batch-size", type=int, help="Examples of a step, over all processes. Default: 32."),
        click.option("--accumulate", type=int, help="Micro-batches of a step. Default: 1."),
        click.option("--lr", "learning_rate", type=float, help="Highest learning rate. Default: 5e-4."),
        click.option("--dense-lr", "dense_learning_rate", type=float, help="That of the dense model. Default: 1e-4."),
        click.option("--warmup", type=float, help="Share of the steps that the rate rises over. Default: 0.06."),
        click.option("--weight-decay", type=float, help="AdamW's. Default: 0.01."),
        click.option("--max-length", type=int, help="Tokens of an example. Default: the model's limit, at most 256."),
        click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Default: fp32."),
        click.option("--gradient-checkpointing", "checkpointing", is_flag=True, default=None, help="Less memory."),
        click.option("--save-every", type=int, help="Steps between saved states. Default: 200."),
        click.option("--seed", type=int, help="Default: 0."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command(name="train")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The trained checkpoint's folder.")
@click.option("--data", required=True, help="A csv, tsv, jsonl or txt file, a folder, or a data set of the hub.")
@click.option(
    "--task",
    type=click.Choice(["feature-extraction", "text-classification", "text-generation", "image-classification"]),
    help="What to train for. Default: what the checkpoint is for.",
)
@click.option("--split", default="train", show_default=True, help="Of a folder or a data set of the hub.")
@click.option("--held-out", help="Data to measure the loss of the rungs on.")
@click.option("--held-out-split", default="validation", show_default=True, help="Of a folder or a hub's data set.")
@click.option("--text-column", help="The text, or the first of a pair.")
@click.option("--pair-column", help="The second text of a pair.")
@click.option("--label-column", help="The label.")
@click.option("--columns", help="Names of all columns, with commas between, for a file without a header line.")
@click.option("--new-head", is_flag=True, help="Replace the model's head by one for the labels of the data.")
@click.option(
    "--recipe",
    type=click.Choice(["default", "paper"]),
    default="default",
    show_default=True,
    help="Settings to begin from; the options below change them.",
)
@click.option("--restart", is_flag=True, help="Throw the state of an interrupted run away.")
@_settings
@verb_options
def command(
    checkpoint: Path,
    output: Path,
    data: str,
    task: str | None,
    split: str,
    held_out: str | None,
    held_out_split: str,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    columns: str | None,
    new_head: bool,
    recipe: str,
    restart: bool,
    as_json: bool,
    rungs: str | None,
    **settings: Any,
) -> None:
    """Train every rank of CHECKPOINT on labels, on what the dense model says, or both.

    The same command goes on after an interruption, from the state in OUTPUT.run. On several processes or GPUs:
    accelerate launch -m nsn_edge train ...
    """
    from nsn_edge.training.config import TrainConfig
    from nsn_edge.training.data import Columns
    from nsn_edge.training.run import Source, train_checkpoint

    config = TrainConfig.of_recipe(recipe, rungs=_ranks(rungs), **settings)
    names = tuple(name.strip() for name in columns.split(",")) if columns else ()
    source = Source(
        data, Columns(text_column, pair_column, label_column, names), split, held_out, held_out_split, new_head
    )
    start = time.perf_counter()
    with progress_bar() as progress:
        trained = train_checkpoint(checkpoint, output, source, task, config, restart=restart, progress=progress)
    if not trained.is_main:
        return
    seconds = time.perf_counter() - start
    result = trained.checkpoint
    size_bytes = sum(file.stat().st_size for file in output.iterdir())
    ranks = result.trained_ranks
    ladder = result.ladder
    document = {
        "schema_version": 1,
        "kind": "training",
        "path": str(output),
        "size_bytes": size_bytes,
        "model": result.name,
        "architecture": type(result.model).__name__,
        "task": result.task.name,
        "steps": trained.steps,
        "resumed_from": trained.resumed_from,
        "training": dict(result.provenance["training"]),
        "log": trained.logged,
        "held_out": [
            {
                "rank": rank,
                "flops_fraction": ladder.flops_fraction(rank),
                "loss_before": trained.before.get(rank),
                "loss_after": loss,
            }
            for rank, loss in trained.after.items()
        ],
        "seconds": seconds,
    }

    def render(console: Console) -> None:
        resumed = "" if trained.resumed_from is None else f", went on from step {trained.resumed_from}"
        console.print(f"{trained.steps} steps{resumed}; {len(ranks)} ranks trained, {ranks[0]} to {ranks[-1]}")
        if trained.logged:
            console.print(f"loss: {trained.logged[0]['loss']:.4g} at first, {trained.logged[-1]['loss']:.4g} at last")
        if trained.after:
            table = Table(title="Held-out loss", title_justify="left")
            for heading in ("rank", "linear FLOPs", "before", "after"):
                table.add_column(heading, justify="right")
            for rank, loss in trained.after.items():
                before = trained.before.get(rank)
                shown = "-" if before is None else f"{before:.4f}"
                table.add_row(str(rank), f"{ladder.flops_fraction(rank):.1%}", shown, f"{loss:.4f}")
            console.print(table)
        if result.provenance["training"]["config"]["trained"] == "all":
            console.print("every parameter was trained, so the dense original is gone: export with --no-dense")
        console.print(f"{output}: {size_bytes / 1e6:.1f} MB, {seconds:.1f} s", markup=False)
        console.print(f"next: nsn-edge export {output} -o BUNDLE", markup=False)

    emit(document, render, as_json)


def _ranks(text: str | None) -> tuple[int, ...] | None:
    from nsn_edge.errors import UsageError

    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"--rungs takes ranks with commas between, not {text!r}") from error
