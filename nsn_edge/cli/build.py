"""`nsn-edge build`: TensorRT engines from a bundle, on the device or ahead of time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nsn_edge.bundle.engines import BACKENDS, PRECISIONS
from nsn_edge.cli.common import emit, progress_bar, verb_options
from nsn_edge.errors import UsageError

if TYPE_CHECKING:
    from nsn_edge.export.tensorrt.build import BuildPlan, BuiltEngine
    from nsn_edge.export.tensorrt.shapes import SizeRange

_SHORTCUTS = {"batch": "batch_size", "sequence": "sequence_length", "cache": "past_sequence_length"}


@click.command(name="build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    required=True,
    type=click.Choice(tuple(BACKENDS)),
    help="tensorrt: JetPack's, for the GPU that is here. tensorrt-rtx: for RTX GPUs, ahead of time, without one.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(("rung", "dynamic")),
    help="An engine per rung, or one for every rank, from the form sliced. Repeat it.  [default: rung]",
)
@click.option("--rank", "ranks", multiple=True, type=int, help="Only this rung. Repeat it.  [default: every rung]")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="What layers compute with; tf32 is float32 with 10 bits of mantissa.  [default: as the bundle's graphs]",
)
@click.option("--batch", metavar="MIN:OPT:MAX", help="Sequences per call.  [default: 1:1:8; 1 for decoders]")
@click.option(
    "--sequence",
    metavar="MIN:OPT:MAX",
    help="Tokens per sequence.  [default: 1:128:512, or what the model takes]",
)
@click.option(
    "--cache",
    metavar="MIN:OPT:MAX",
    help="Tokens that a decoder's cache holds.  [default: 0:128:1024, or what the model takes]",
)
@click.option("--dim", "dimensions", multiple=True, metavar="NAME=MIN:OPT:MAX", help="Another dimension. Repeat it.")
@click.option(
    "--decode-profile/--no-decode-profile",
    default=None,
    help="For decoders: a second profile for writing token by token.  [default: yes with tensorrt, no with "
    "tensorrt-rtx, which compiles for the shapes that come]",
)
@click.option(
    "--device",
    help="With tensorrt-rtx: sm86, ..., or sm80+ for this and later ones.  [default: the GPU here, or sm80+]",
)
@click.option("--engines", type=click.Path(path_type=Path), help="Where engines go.  [default: engines in the bundle]")
@click.option("--workspace-mb", type=int, help="Scratch memory that a layer may use.  [default: the library's]")
@click.option("--level", type=int, help="How hard the builder tries, 0 to 5.  [default: the library's]")
@click.option("--timing-cache/--no-timing-cache", default=True, show_default=True, help="Keep what TensorRT measured.")
@click.option("--force", is_flag=True, help="Build what is there and still good, too.")
@click.option("--skip-checks", is_flag=True, help="Do not ask whether memory and disk suffice.")
@click.option("--dry-run", is_flag=True, help="Print what would be built, and for which device.")
@verb_options
def command(
    bundle: Path,
    backend: str,
    kinds: tuple[str, ...],
    ranks: tuple[int, ...],
    precision: str | None,
    batch: str | None,
    sequence: str | None,
    cache: str | None,
    dimensions: tuple[str, ...],
    decode_profile: bool | None,
    device: str | None,
    engines: Path | None,
    workspace_mb: int | None,
    level: int | None,
    timing_cache: bool,
    force: bool,
    skip_checks: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build TensorRT engines of BUNDLE: one per rung, or one whose rank is an input.

    Engines are kept with a record of what they were built from, on and for. Those that are there and still good stay.
    """
    from nsn_edge.bundle import Bundle
    from nsn_edge.export.tensorrt.build import build, plan_build
    from nsn_edge.export.tensorrt.checks import Room
    from nsn_edge.export.tensorrt.library import Library
    from nsn_edge.export.tensorrt.plan import BuildConfig
    from nsn_edge.export.tensorrt.shapes import CACHE, dimension_names

    given = {"batch": batch, "sequence": sequence, "cache": cache}
    sizes = _sizes({_SHORTCUTS[name]: text for name, text in given.items() if text is not None}, dimensions)
    opened = Bundle.open(bundle)
    library = Library.load(BACKENDS[backend])
    if decode_profile is None:
        decode_profile = not library.is_rtx and CACHE in dimension_names(opened.manifest.inputs)
    config = BuildConfig(
        kinds=kinds or ("rung",),
        ranks=ranks,
        precision=precision,
        sizes=sizes,
        decode_profile=decode_profile,
        workspace_mb=workspace_mb,
        level=level,
    )
    plan = plan_build(opened, library, config, device=device, root=engines, force=force)
    if dry_run:
        emit(_plan_document(plan), lambda console: _print_plan(console, plan), as_json)
        return
    start = time.perf_counter()
    with progress_bar() as progress:
        room = None if skip_checks else Room.here(plan.folder)
        built = build(plan, timing_cache=timing_cache, room=room, progress=progress)
    seconds = time.perf_counter() - start
    emit(_document(plan, built, seconds), lambda console: _print_built(console, plan, built, seconds), as_json)


def _sizes(shortcuts: dict[str, str], dimensions: tuple[str, ...]) -> dict[str, SizeRange]:
    from nsn_edge.export.tensorrt.shapes import SizeRange

    texts = dict(shortcuts)
    for item in dimensions:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UsageError(f"--dim {item!r} is not NAME=MIN:OPT:MAX")
        texts[name] = text
    return {name: SizeRange.parse(text) for name, text in texts.items()}


def _plan_document(plan: BuildPlan) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "build-plan",
        **plan.to_json(),
        "engines": [
            {**engine.job.to_json(), "file": str(engine.path), "build": engine.kept is None, "reason": engine.reason}
            for engine in plan.engines
        ],
    }


def _document(plan: BuildPlan, built: list[BuiltEngine], seconds: float) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "build",
        **plan.to_json(),
        "seconds": seconds,
        "engines": [
            {
                **engine.job.to_json(),
                "file": str(made.stored.path),
                "built": made.built,
                "reason": made.reason,
                "build_s": made.stored.record.build_s,
                "size_bytes": made.stored.record.size_bytes,
                "sha256": made.stored.record.sha256,
            }
            for engine, made in zip(plan.engines, built, strict=True)
        ],
    }


def _headline(plan: BuildPlan) -> str:
    gpu = plan.device.sm if plan.device.is_kind else f"{plan.device.name} ({plan.device.sm})"
    return f"{plan.library.title} {plan.library.version}, for {gpu}"


def _print_plan(console: Console, plan: BuildPlan) -> None:
    console.print(_headline(plan), markup=False)
    table = Table()
    for heading in ("engine", "graph", "profile", "ranks", "inputs, least to largest", "about", ""):
        table.add_column(heading, justify="right" if heading in ("ranks", "about") else "left")
    for engine in plan.engines:
        job = engine.job
        for number, profile in enumerate(job.profiles):
            low, high = profile.rank_range
            shapes = list(profile.inputs.items())
            shown = ", ".join(f"{name} {list(r.min)}..{list(r.max)}" for name, r in shapes[:2])
            more = f" and {len(shapes) - 2} more" if len(shapes) > 2 else ""
            first = number == 0
            table.add_row(
                escape(job.stem) if first else "",
                escape(job.artifact.path) if first else "",
                profile.name,
                str(low) if low == high else f"{low}..{high}",
                escape(shown + more),
                f"{job.expected_bytes / 1e6:.0f} MB" if first else "",
                ("stays" if engine.kept else escape(f"build: {engine.reason}")) if first else "",
            )
    console.print(table)
    console.print(f"engines go to {plan.folder}; nothing was built", markup=False)


def _print_built(console: Console, plan: BuildPlan, built: list[BuiltEngine], seconds: float) -> None:
    console.print(_headline(plan), markup=False)
    table = Table()
    for heading in ("engine", "profiles", "size", "built in", ""):
        table.add_column(heading, justify="left" if heading in ("engine", "") else "right")
    for made in built:
        record = made.stored.record
        table.add_row(
            escape(made.stored.path.stem),
            str(len(record.profiles)),
            f"{record.size_bytes / 1e6:.1f} MB",
            f"{record.build_s:.1f} s" if made.built else "",
            escape(f"built: {made.reason}") if made.built else "stays",
        )
    console.print(table)
    size = sum(made.stored.record.size_bytes for made in built)
    number = f"{len(built)} engine{'' if len(built) == 1 else 's'}"
    console.print(f"{plan.folder}: {size / 1e6:.1f} MB, {number}, {seconds:.1f} s", markup=False)
