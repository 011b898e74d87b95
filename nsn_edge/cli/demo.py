"""`nsn-edge demo`: the main job on a real model, start to report."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
from rich.console import Console

from nsn_edge.cli.common import emit, verb_options


@click.command(name="demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("nsn-edge-demo"),
    show_default=True,
    help="Folder for the checkpoint, the bundle, every result and the report.",
)
@click.option(
    "--model",
    default="minilm",
    show_default=True,
    help="A sentence encoder: a local folder, a hub id, or minilm (the packaged all-MiniLM-L6-v2).",
)
@click.option("--sequence", default=128, show_default=True, help="Tokens per sequence when the rungs are measured.")
@verb_options
def command(output: Path, model: str, sequence: int, as_json: bool) -> None:
    """Cut a real model, export it once, verify, measure and use every rung here, and write report.html.

    Runs the other verbs one after the other and shows each command line, so that each can be repeated alone.
    """
    from nsn_edge.demo import run_demo, run_step

    start = time.perf_counter()
    # With --json, stdout is the document's alone: what the steps print goes to stderr.
    tables = sys.stderr if as_json else None
    report = run_demo(
        output,
        model,
        sequence,
        announce=lambda text: click.echo(text, err=as_json),
        runner=lambda step, result: run_step(step, result, tables),
    )
    seconds = time.perf_counter() - start
    data = {"schema_version": 1, "kind": "demo", "report": str(report), "folder": str(output), "seconds": seconds}

    def render(console: Console) -> None:
        console.print(f"\ndone in {seconds:.0f} s. The report: [bold]{report.resolve()}[/]", soft_wrap=True)

    emit(data, render, as_json)
