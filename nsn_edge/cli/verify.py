"""`nsn-edge verify`: does every exported graph say what torch says, and how much quality does each rung keep?"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nsn_edge.cli.common import emit, progress_bar, read_texts, verb_options


@click.command(name="verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--text", type=click.Path(path_type=Path), help="Texts to verify with, one a line. Default: Python's docs."
)
@click.option(
    "--inputs", type=click.Path(path_type=Path), help="An .npz file with an array per input, in place of text."
)
@click.option(
    "--tolerance",
    type=float,
    help="Largest relative difference allowed. Default: 1e-4 in fp32, 1e-2 in fp16, 0.5 in int8, 0.2 in int4.",
)
@click.option(
    "--quality/--no-quality",
    default=True,
    show_default=True,
    help="For sentence embedders and decoders: measure what each rung keeps, and record it in the bundle's manifest.",
)
@verb_options
def command(
    bundle: Path,
    checkpoint: Path,
    text: Path | None,
    inputs: Path | None,
    tolerance: float | None,
    quality: bool,
    as_json: bool,
) -> None:
    """Compare every rung and form of BUNDLE with the torch model in CHECKPOINT, on real inputs.

    Exits with 1, naming the worst tensor, when one differs by more than the tolerance.
    """
    from nsn_edge.bundle import Bundle
    from nsn_edge.checkpoint import Checkpoint
    from nsn_edge.verification import has_quality, record_quality, verify_on

    texts = read_texts(text) if text else None
    with progress_bar() as progress:
        opened = Bundle.open(bundle, progress=progress)
        loaded = Checkpoint.load(checkpoint)
        report = verify_on(opened, loaded, texts, inputs, tolerance=tolerance, progress=progress)
        data = report.to_json()
        # A decoder's quality needs the text of a tokenizer; an embedder without one has none either.
        if report.passed and quality and has_quality(opened.manifest.task) and loaded.assets is not None:
            opened = record_quality(opened, loaded, texts, progress=progress)
        data["precision"] = opened.manifest.precision
        data["quality"] = {str(rung.rank): dict(rung.quality) for rung in opened.manifest.ladder.rungs}

    def render(console: Console) -> None:
        table = Table()
        for heading in ("form", "precision", "rank", "worst difference", "tensor", "quality", ""):
            table.add_column(heading, justify="left" if heading in ("form", "precision", "tensor", "") else "right")
        for check in report.checks:
            kept = data["quality"].get(str(check.rank), {}) if check.form == "static" else {}
            table.add_row(
                check.form,
                check.precision,
                f"{check.rank} (dense)" if check.dense else str(check.rank),
                f"{check.max_abs_diff:.1e}",
                escape(check.worst_tensor),
                ", ".join(f"{name} {value:.3f}" for name, value in kept.items()),
                "ok" if check.passed else "[bold red]differs[/]",
            )
        console.print(table)
        console.print(f"{sum(check.passed for check in report.checks)} of {len(report.checks)} agree with torch")

    emit(data, render, as_json)
    report.raise_if_failed()
