"""`nsn-edge export`: from a checkpoint to a bundle."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.bundle.quantisation import PRECISIONS
from nsn_edge.cli.common import emit, progress_bar, verb_options


@click.command(name="export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle's folder.")
@click.option(
    "--flops",
    "fractions",
    multiple=True,
    type=float,
    help="A rung at this fraction of the dense linear FLOPs, in (0, 1]. Repeat it. Default: 0.75, 0.5, 0.35, 0.25.",
)
@click.option("--rank", "ranks", multiple=True, type=int, help="A rung at this rank. Repeat it.")
@click.option("--dense/--no-dense", "dense_top", default=True, show_default=True, help="The original as the top rung.")
@click.option(
    "--form",
    "forms",
    multiple=True,
    type=click.Choice(GRAPH_FORMS),
    help="Which graphs to write: one per rung (static), or one for all ranks: gated (its rungs cost what static's do), "
    "bound (prefixes of the mapped weights as inputs), sliced (for TensorRT), masked (the oracle). Repeat it. "
    "Default: all that exist in the precision.",
)
@click.option(
    "--merge/--no-merge",
    default=True,
    show_default=True,
    help="Multiply a layer's factors where that is less work than keeping them apart: fastest. --no-merge is for "
    "run --share-weights.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Of the weights. int8 and int4 have static graphs alone. Default: the checkpoint's own.",
)
@click.option(
    "--keep-precise",
    metavar="N|auto",
    help="With int8 and int4: spare the N layers that suffer most, as measured on calibration text, with a range per "
    "token for their activations; auto spares those that suffer far more than the others, at the rungs that "
    "lose little enough to notice.",
)
@click.option(
    "--quality",
    "quality_file",
    type=click.Path(path_type=Path),
    help="An evaluation of this checkpoint (eval --json-file): what its rungs keep goes into the manifest.",
)
@verb_options
def command(
    checkpoint: Path,
    output: Path,
    fractions: tuple[float, ...],
    ranks: tuple[int, ...],
    dense_top: bool,
    forms: tuple[str, ...],
    merge: bool,
    precision: str | None,
    keep_precise: str | None,
    quality_file: Path | None,
    as_json: bool,
) -> None:
    """Write the nested CHECKPOINT (made by `adapt`) as a bundle: a graph per rung, every weight once.

    The model is traced once. A bundle that stands at the output is replaced at the very end, in one step.
    """
    from nsn_edge.checkpoint import Checkpoint
    from nsn_edge.export.exporter import DEFAULT_FRACTIONS, ExportConfig, export_bundle
    from nsn_edge.export.precision.sensitivity import (
        AUTO,
        lowest_sparing,
        measure_damage,
        measure_losses,
        parse_keep,
        worst_layers,
    )
    from nsn_edge.frontier.record import qualities

    config = ExportConfig(
        fractions=fractions or (() if ranks else DEFAULT_FRACTIONS),
        ranks=ranks,
        dense_top=dense_top,
        forms=forms or None,
        merge=merge,
        precision=precision,
    )
    wanted = parse_keep(keep_precise, precision)
    start = time.perf_counter()
    with progress_bar() as progress:
        loaded = Checkpoint.load(checkpoint)
        quality = {}
        if quality_file is not None:
            quality = qualities(quality_file, checkpoint, config.rungs_of(loaded.ladder), precision)
        damage = {}
        if wanted:
            damage = measure_damage(loaded, config, progress=progress)
            config = replace(config, keep_precise=worst_layers(damage, wanted))
            if wanted == AUTO and precision == "int8":
                losses = measure_losses(loaded, config)
                config = replace(config, keep_from=lowest_sparing(damage, config.keep_precise, losses))
        bundle = export_bundle(loaded, output, config, progress=progress).record_quality(quality)
    seconds = time.perf_counter() - start
    ladder = bundle.manifest.ladder
    data = {
        "schema_version": 1,
        "kind": "export",
        "path": str(output),
        "size_bytes": bundle.size_bytes,
        "seconds": seconds,
        "precision": bundle.manifest.precision,
        "kept_precise": {name: damage[name] for name in config.keep_precise},
        "kept_from_rank": config.keep_from,
        "rungs": ladder.to_json()["rungs"],
        "files": [artifact.path for artifact in bundle.manifest.artifacts],
    }

    def render(console: Console) -> None:
        table = Table()
        for heading in ("rank", "linear FLOPs", "layer ranks"):
            table.add_column(heading, justify="right")
        for rung in reversed(ladder.rungs):
            used = ladder.layer_ranks(rung.rank).values()
            span = f"{min(used)}" if min(used) == max(used) else f"{min(used)}..{max(used)}"
            table.add_row(
                f"{rung.rank} (dense)" if rung.dense else str(rung.rank),
                f"{ladder.flops_fraction(rung.rank):.1%}",
                "original" if rung.dense else span,
            )
        console.print(table)
        files = len(bundle.manifest.artifacts) + 1
        for name, value in data["kept_precise"].items():
            console.print(
                f"spared: {name} (quantised like the others it moves the output by {value:.1%})", markup=False
            )
        if data["kept_from_rank"] > 1:
            console.print(f"spared from rank {data['kept_from_rank']} on: below, the rung itself loses far more")
        console.print(f"{bundle.manifest.precision} weights")
        console.print(f"{output}: {bundle.size_bytes / 1e6:.1f} MB, {files} files, {seconds:.1f} s", markup=False)
        console.print(f"next: nsn-edge verify {output} {checkpoint}", markup=False)

    emit(data, render, as_json)
