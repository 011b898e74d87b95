"""`nsn-edge eval`: the frontier of a checkpoint: what every rank keeps, and how well that could have been foretold."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.cli.common import emit, progress_bar, verb_options
from nsn_edge.errors import UsageError

if TYPE_CHECKING:
    from nsn_edge.frontier.curve import Frontier
    from nsn_edge.ladder import RankLadder
    from nsn_edge.runtimes.profiling.result import Profile

_MANY = 12  # trained ranks: more of them are no rungs but a range


@click.command(name="eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--data",
    help="A csv, tsv, jsonl or txt file to measure on; for image classifiers a folder or a data set of the hub. "
    "Default: held-out sentences of Python's documentation.",
)
@click.option("--split", default="test", show_default=True, help="Of images: the part to measure on.")
@click.option("--text-column", help="The text, or the first of a pair. Default: text, sentence, sentence1 or content.")
@click.option("--pair-column", help="The second text of a pair. Default, with scores: sentence2, text2 or pair.")
@click.option("--label-column", help="For classifiers: the label. Default: label, labels, intent or class.")
@click.option("--score-column", help="For sentence embedders: how alike a pair is. Default: score or similarity.")
@click.option("--columns", help="Names of all columns, with commas between, for a file without a header line.")
@click.option("--examples", type=click.IntRange(min=1), help="At most this many, spread evenly. Default: all.")
@click.option(
    "--flops",
    "fractions",
    multiple=True,
    type=float,
    help="A rung at this fraction of the dense linear FLOPs, in (0, 1]. Repeat it. Default: those of export, or the "
    "trained ranks where they are few.",
)
@click.option("--rank", "ranks", multiple=True, type=int, help="A rung at this rank. Repeat it.")
@click.option(
    "--between",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Ranks to measure between two neighbouring rungs.",
)
@click.option("--profile", "profile_file", type=click.Path(path_type=Path), help="A profile, for measured latency.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the points to this file as CSV.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw the frontier to this SVG file.")
@verb_options
def command(
    checkpoint: Path,
    data: str | None,
    split: str,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    score_column: str | None,
    columns: str | None,
    examples: int | None,
    fractions: tuple[float, ...],
    ranks: tuple[int, ...],
    between: int,
    profile_file: Path | None,
    csv_file: Path | None,
    plot_file: Path | None,
    as_json: bool,
) -> None:
    """Measure what the ranks of CHECKPOINT keep: at rungs, and at ranks between them.

    Sentence embedders: the order of similarities against the dense model's, or against scores of pairs. Classifiers:
    accuracy, of texts or of images. Language models: perplexity. `export --quality` puts the figures of --json-file
    into the bundle.
    """
    from nsn_edge.checkpoint import Checkpoint
    from nsn_edge.frontier.measures import Columns, Measure, measure_for
    from nsn_edge.frontier.measuring import measure_frontier
    from nsn_edge.frontier.record import csv_text, fingerprint
    from nsn_edge.report.frontier import frontier_svg
    from nsn_edge.runtimes.profiling.result import Profile

    names = tuple(name.strip() for name in columns.split(",")) if columns else ()
    start = time.perf_counter()
    with progress_bar() as progress:
        loaded = Checkpoint.load(checkpoint, progress=progress)
        rungs = _rungs(loaded, fractions, ranks)
        latencies = _latencies(Profile.load(profile_file), profile_file, loaded.ladder) if profile_file else {}
        measure: Measure
        if loaded.task.name == "image-classification":
            from nsn_edge.frontier.images import image_accuracy

            measure = image_accuracy(loaded.model, loaded.assets, data, label_column, split, examples)
        else:
            where = Columns(text_column, pair_column, label_column, score_column, names)
            file = None if data is None else Path(data)
            measure = measure_for(loaded.model, _tokenizer(loaded, checkpoint), loaded.task, file, where, examples)
        found = measure_frontier(loaded, measure, rungs, between, progress)
    body = found.to_json()
    for point in body["points"]:
        point |= latencies.get((point["rank"], point["dense"]), {"p50_ms": None, "p90_ms": None})
    document: dict[str, Any] = {
        "schema_version": 1,
        "kind": "evaluation",
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": fingerprint(checkpoint),
        "model": loaded.name,
        "task": loaded.task.name,
        "data": data or "held-out sentences of Python's documentation",
        "examples": measure.examples,
        "precision": _precision(loaded),
        **body,
        "seconds": time.perf_counter() - start,
    }
    if csv_file is not None:
        atomic_write_bytes(csv_file, csv_text(document).encode())
    if plot_file is not None:
        atomic_write_bytes(plot_file, frontier_svg(document).encode())
    emit(document, lambda console: _render(console, found, document), as_json)


def _rungs(checkpoint: Any, fractions: tuple[float, ...], ranks: tuple[int, ...]) -> list[int]:
    """What was asked for; else the trained ranks, where they are few; else those that export takes."""
    from nsn_edge.sensitivity import rank_within

    ladder = checkpoint.ladder
    if fractions or ranks:
        return [*(ladder.rank_for_fraction(fraction) for fraction in fractions), *ranks]
    if 0 < len(checkpoint.trained_ranks) <= _MANY:
        return sorted(checkpoint.trained_ranks)
    return sorted({rank_within(ladder, fraction) for fraction in (0.75, 0.5, 0.35, 0.25)})


def _tokenizer(checkpoint: Any, path: Path) -> Any:
    if checkpoint.assets is None or not any((path / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UsageError(
            f"{path} has no tokenizer, so it cannot be measured on text",
            "nsn_edge.frontier takes a measure of your own",
        )
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _latencies(profile: Profile, file: Path, ladder: RankLadder) -> dict[tuple[int, bool], dict[str, float]]:
    """Measured milliseconds by rank.

    Raises:
        UsageError: the profile is of another model.
    """
    found = {}
    for rung in profile.rungs:
        fits = 1 <= rung.rank <= ladder.max_rank
        fraction = ladder.flops_fraction(rung.rank) if fits and not rung.dense else 1.0
        if not fits or abs(fraction - rung.flops_fraction) > 1e-6:
            raise UsageError(
                f"{file} profiles another model: rank {rung.rank} took {rung.flops_fraction:.1%} of the linear FLOPs",
                "profile a bundle of this checkpoint",
            )
        found[rung.rank, rung.dense] = {"p50_ms": rung.latency.p50_ms, "p90_ms": rung.latency.p90_ms}
    return found


def _precision(checkpoint: Any) -> str:
    from nsn_edge.layers import nsn_layers

    dtype = next(iter(nsn_layers(checkpoint.model).values())).A.dtype
    return {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}.get(str(dtype), str(dtype))


def _render(console: Console, found: Frontier, document: Mapping[str, Any]) -> None:
    metric = found.metric
    console.print(
        f"{metric.title} on {document['examples']} examples of {document['data']}; "
        f"loss against {found.reference}, in {metric.unit}",
        markup=False,
    )
    timed = any(point["p50_ms"] is not None for point in document["points"])
    table = Table()
    headings = ("rank", "linear FLOPs", metric.name, "loss", "off the line", "predicted", "energy kept")
    for heading in (*headings, *(("ms (p50)",) if timed else ())):
        table.add_column(heading, justify="right")
    for point, row in zip(reversed(found.points), reversed(document["points"]), strict=True):
        fitted = " fit" if point.fitted else ""
        cells = [
            f"{point.rank}{' (dense)' if point.dense else '' if point.rung else ' between'}",
            f"{point.flops_fraction:.1%}",
            _shown(point.quality),
            f"{point.loss:.2f}",
            "" if point.off_line is None else f"{point.off_line:+.2f}",
            "" if point.predicted is None else f"{_shown(point.predicted)}{fitted}",
            "" if point.dense else f"{point.energy_kept:.1%}",
        ]
        if timed:
            cells.append("" if row["p50_ms"] is None else f"{row['p50_ms']:.2f}")
        table.add_row(*cells)
    console.print(table)
    unit = metric.unit
    if found.worst_off_line is not None:
        console.print(f"ranks between rungs lie within {found.worst_off_line:.2f} {unit} of their neighbours' line")
    if found.prediction_error is not None:
        console.print(
            f"from the ranks at 50 % and more, the layers' energy foretells the others to "
            f"{found.prediction_error:.2f} {unit} (mean error)"
        )
    half = next(
        kept for share, kept in zip(found.decay.share_of_rank, found.decay.energy_kept, strict=True) if share >= 0.5
    )
    fit = ""
    if found.decay.exponential_r2 is not None and found.decay.power_r2 is not None:
        fit = f"; exponential decay fits with R^2 {found.decay.exponential_r2:.2f}, a power law with "
        fit += f"{found.decay.power_r2:.2f}"
    console.print(f"half of the directions keep {half:.1%} of the energy{fit}")


def _shown(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:.4g}"
