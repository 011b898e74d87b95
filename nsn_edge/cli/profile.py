"""`nsn-edge profile`: measure every rung on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.cli.common import emit, progress_bar, verb_options
from nsn_edge.cli.engines import EngineChoice, engine_options
from nsn_edge.errors import UsageError

if TYPE_CHECKING:
    from nsn_edge.runtimes.profiling import Profile

DEFAULT_SEQUENCE = 128


@click.command(name="profile")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the result as JSON to this file.")
@click.option("--threads", default=1, show_default=True, help="Threads per inference; 0 takes every core.")
@click.option(
    "--share-weights",
    is_flag=True,
    help="Hold the weights once for all rungs: on the CPU mapped and not repacked, which is slower; with CUDA "
    "on the GPU. Export with --no-merge.",
)
@engine_options
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda, tensorrt, or auto.")
@click.option("--batch", "batch_size", default=1, show_default=True, help="Sequences per call.")
@click.option(
    "--sequence",
    "sequence_length",
    type=int,
    help=f"Tokens per sequence.  [default: {DEFAULT_SEQUENCE}, or the most the model takes; 1 with --past]",
)
@click.option("--past", default=0, show_default=True, help="Tokens that a decoder's cache holds already.")
@click.option(
    "--dim", "dimensions", multiple=True, metavar="NAME=N", help="Size of another named dimension. Repeat it."
)
@click.option("--rank", "ranks", multiple=True, type=int, help="Only this rung. Repeat it.  [default: every rung]")
@click.option(
    "--form",
    type=click.Choice(GRAPH_FORMS),
    default="static",
    show_default=True,
    help="One graph per rung, or the one with the rank as an input.",
)
@click.option("--warmup", default=10, show_default=True, help="Untimed calls of each rung before the first timed one.")
@click.option("--repetitions", default=100, show_default=True, help="Timed calls of each rung, at least.")
@click.option("--min-time", "min_time_s", default=1.0, show_default=True, help="Timed seconds of each rung, at least.")
@click.option("--max-time", "max_time_s", default=120.0, show_default=True, help="Stop after this many seconds.")
@verb_options
def command(
    bundle: Path,
    output: Path | None,
    threads: int,
    share_weights: bool,
    provider: str,
    choice: EngineChoice,
    batch_size: int,
    sequence_length: int | None,
    past: int,
    dimensions: tuple[str, ...],
    ranks: tuple[int, ...],
    form: str,
    warmup: int,
    repetitions: int,
    min_time_s: float,
    max_time_s: float,
    as_json: bool,
) -> None:
    """Measure every rung of BUNDLE on this machine, on made-up inputs.

    A decoder reads --sequence tokens into an empty cache; with --past N it gives one token after N others.

    The rungs take turns in a shuffled order, so that whatever disturbs the machine disturbs all of them alike: ratios
    hold even where times do not.
    """
    from nsn_edge.bundle import Bundle
    from nsn_edge.runtimes.engines import OnnxRuntimeEngine
    from nsn_edge.runtimes.profiling import MeasureSettings, ProfileSettings, profile_bundle
    from nsn_edge.runtimes.profiling.inputs import PAST_LENGTH

    measure = MeasureSettings(warmup=warmup, min_repetitions=repetitions, min_time_s=min_time_s, max_time_s=max_time_s)
    sizes = {**({PAST_LENGTH: past} if past else {}), **_sizes(dimensions)}
    engine = choice.make(lambda: OnnxRuntimeEngine(threads, provider, share_weights))
    with progress_bar() as progress:
        opened = Bundle.open(bundle, progress=progress)
        if sequence_length is None:
            sequence_length = 1 if past else min(DEFAULT_SEQUENCE, opened.manifest.task.max_length or DEFAULT_SEQUENCE)
        settings = ProfileSettings(batch_size, sequence_length, sizes, form, measure)
        profile = profile_bundle(opened, engine, settings, ranks=ranks or None, progress=progress)
    if output is not None:
        profile.save(output)
    emit(profile.to_json(), lambda console: render(console, profile), as_json)
    if output is not None and not as_json:
        click.echo(f"written to {output}")


def render(console: Console, profile: Profile) -> None:
    """The rungs as a table, the machine, and what makes the numbers less than sure."""
    from nsn_edge.runtimes.profiling import host_summary

    settings = profile.settings
    metrics = sorted({name for rung in profile.rungs for name in rung.quality})
    headings = ("rank", "FLOPs", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "mean ± std ms", "cv", "× dense", "load ms")
    table = Table()
    for heading in (*headings, *metrics):
        table.add_column(heading, justify="right")
    for rung in reversed(profile.rungs):
        latency = rung.latency
        relative = profile.relative_to_dense(rung)
        table.add_row(
            f"{rung.rank} (dense)" if rung.dense else str(rung.rank),
            f"{rung.flops_fraction:.1%}",
            *(_ms(value) for value in (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms)),
            f"{_ms(latency.mean_ms)} ± {latency.std_ms:.{_decimals(latency.mean_ms)}f}",
            f"{latency.cv:.1%}",
            "–" if relative is None else f"{relative:.2f}",
            _ms(rung.load_ms),
            *(f"{rung.quality[name]:.3f}" if name in rung.quality else "–" for name in metrics),
        )
    console.print(table)
    fewest = min(rung.latency.n for rung in profile.rungs)
    threads = f"threads {settings['threads']}, " if "threads" in settings else ""
    others = "".join(f", {name} {size}" for name, size in settings["dimensions"].items())
    console.print(
        f"{profile.model}, {settings['form']} graphs, {settings['engine']}, {threads}"
        f"batch {settings['batch_size']}, sequence {settings['sequence_length']}{others}, "
        f"{fewest} repetitions or more",
        markup=False,
    )
    if profile.peak_memory_mb is not None:
        console.print(f"peak memory of this process: {profile.peak_memory_mb:.0f} MB, all rungs loaded", markup=False)
    console.print(f"measured on: {host_summary(profile.host)}", markup=False)
    for warning in profile.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")


def _ms(value: float) -> str:
    return f"{value:.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    """Three significant digits, more or less."""
    return 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3


def _sizes(dimensions: tuple[str, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for text in dimensions:
        name, equals, size = text.partition("=")
        if not (name and equals and size.isascii() and size.isdigit()):
            raise UsageError(f"cannot read --dim {text!r}", "write it as NAME=N, for example --dim past_length=16")
        sizes[name] = int(size)
    return sizes
