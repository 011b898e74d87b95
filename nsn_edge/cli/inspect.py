"""`nsn-edge inspect`: explain a bundle or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nsn_edge.cli.common import emit, verb_options
from nsn_edge.errors import UsageError
from nsn_edge.ladder import RankLadder


@click.command(name="inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--layers", "show_layers", is_flag=True, help="List every nested layer, not the kinds alone.")
@click.option("--no-hashes", is_flag=True, help="Check that the files are there and whole, but not their SHA-256.")
@verb_options
def command(path: Path, show_layers: bool, no_hashes: bool, as_json: bool) -> None:
    """Explain the bundle (or the checkpoint) at PATH: what it is, its rungs, its files, its layers.

    The files of a bundle are checked against the manifest on the way.
    """
    from nsn_edge.bundle import Bundle, is_bundle_folder

    if is_bundle_folder(path) or not (path / "nsn.json").is_file():
        bundle = Bundle.open(path, check_hashes=not no_hashes)
        emit(_bundle_json(bundle), lambda console: _print_bundle(console, bundle, show_layers), as_json)
        return
    from nsn_edge.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(path)
    data = {
        "schema_version": 1,
        "kind": "checkpoint",
        "path": str(path),
        "model": checkpoint.name,
        "architecture": type(checkpoint.model).__name__,
        "task": checkpoint.task.name,
        "provenance": checkpoint.provenance,
        "ladder": checkpoint.ladder.to_json(),
    }

    def render(console: Console) -> None:
        console.print(
            f"[bold]{escape(checkpoint.name)}[/] ({data['architecture']}, {checkpoint.task.name}): a nested checkpoint"
        )
        for key, value in checkpoint.provenance.items():
            console.print(f"  {key}: {_training_line(value) if key == 'training' else value}", markup=False)
        console.print(_layer_table(checkpoint.ladder, show_layers))

    emit(data, render, as_json)


def _training_line(training: Mapping[str, Any]) -> str:
    """What `--json` gives in full."""
    config, ranks = training["config"], training["ranks"]
    return (
        f"{training['steps']} steps of {config['batch_size']} on {training['data']} for {training['task']}, "
        f"{config['objective']}; {len(ranks)} ranks, {ranks[0]} to {ranks[-1]}"
    )


def _bundle_json(bundle: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "bundle",
        "path": str(bundle.path),
        "size_bytes": bundle.size_bytes,
        "manifest": bundle.manifest.to_json(),
    }


def _print_bundle(console: Console, bundle: Any, show_layers: bool) -> None:
    manifest = bundle.manifest
    ladder = manifest.ladder
    kind = escape(f"({manifest.architecture}, {manifest.task.name})")
    console.print(
        f"[bold]{escape(manifest.model)}[/] {kind}, {_mb(bundle.size_bytes)} MB, {manifest.precision} weights"
    )
    for title, specs in (("takes", manifest.inputs), ("gives", manifest.outputs)):
        for spec in specs:
            console.print(f"  {title} {spec.name}: {spec.dtype} {list(spec.shape)}", markup=False)
    if how := manifest.quantisation:
        since = f" from rank {how.kept_from} on" if how.kept_from > 1 else ""
        kept = f"; spared{since}: {', '.join(how.kept)}" if how.kept else ""
        rest = len(how.tables) + len(how.products)
        console.print(
            f"  {how.precision}: {len(ladder.layers)} nested layers{kept}; int8: {rest} other weights",
            markup=False,
        )
    console.print(f"  ranks 1..{ladder.max_rank}, {len(ladder.layers)} nested layers")
    metrics = sorted({name for rung in ladder.rungs for name in rung.quality})
    rungs = Table(title="Rungs", title_justify="left")
    for heading in ("rank", "linear FLOPs", "MACs/token", "weights MB", "merged layers", *metrics):
        rungs.add_column(heading, justify="right")
    by_rank = {a.rank: a for a in manifest.artifacts if a.kind == "graph" and a.form == "static"}
    for rung in reversed(ladder.rungs):
        ranks = ladder.layer_ranks(rung.rank)
        merged = 0 if rung.dense else sum(layer.is_merged(ranks[layer.name]) for layer in ladder.layers)
        graph = by_rank.get(rung.rank)
        rungs.add_row(
            f"{rung.rank} (dense)" if rung.dense else str(rung.rank),
            f"{ladder.flops_fraction(rung.rank):.1%}",
            f"{ladder.macs(rung.rank) / 1e6:.2f} M",
            "-" if graph is None or graph.weight_bytes is None else _mb(graph.weight_bytes),
            str(merged),
            *(f"{rung.quality[name]:.3f}" if name in rung.quality else "-" for name in metrics),
        )
    console.print(rungs)
    console.print(_layer_table(ladder, show_layers))
    files = Table(title="Files", title_justify="left")
    for heading, justify in (("file", "left"), ("what", "left"), ("KB", "right"), ("SHA-256", "left")):
        files.add_column(heading, justify="right" if justify == "right" else "left")
    for artifact in manifest.artifacts:
        what = f"{artifact.form} graph, {artifact.precision}" if artifact.form else artifact.kind
        files.add_row(escape(artifact.path), escape(what), f"{artifact.size_bytes / 1e3:,.0f}", artifact.sha256[:12])
    console.print(files)
    tools = ", ".join(f"{tool} {version}" for tool, version in manifest.created_by.items())
    console.print(f"written by {tools}", markup=False)


def _layer_table(ladder: RankLadder, every: bool) -> Table:
    """Every layer, or one row per distinct shape: a transformer repeats a few shapes many times."""
    table = Table(title="Nested layers" if every else "Nested layers by shape", title_justify="left")
    for heading in ("layer" if every else "count", "d_in", "d_out", "full rank", "break-even rank"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    counts: dict[tuple[int, int, int, int], int] = {}
    for layer in ladder.layers:
        row = (layer.d_in, layer.d_out, layer.curve.full_rank, layer.break_even_rank)
        counts[row] = counts.get(row, 0) + 1
        if every:
            table.add_row(escape(layer.name), *map(str, row))
    if not every:
        for row, count in counts.items():
            table.add_row(str(count), *map(str, row))
    if not ladder.layers:
        raise UsageError("no nested layers")
    return table


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f}"
