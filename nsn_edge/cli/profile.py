"""`nsn-edge profile`: measure every rung on this machine; `profile compare`, `profile import-trtexec`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.cli.common import emit, progress_bar, verb_options
from nsn_edge.cli.engines import EngineChoice, engine_options
from nsn_edge.errors import NsnEdgeError, UsageError

if TYPE_CHECKING:
    from nsn_edge.bundle import Bundle
    from nsn_edge.runtimes.profiling import DeviceProfile, Keeper

DEFAULT_SEQUENCE = 128


class _WithVerbs(click.Command):
    """A command of its own that hands over to another one where its first argument is that one's name.

    Not a group: `profile BUNDLE` has options of its own, and a group would take them for its own.
    """

    others: dict[str, Callable[[], click.Command]]
    told: dict[str, str]

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] in self.others:
            other = self.others[args[0]]()
            return other.make_context(f"{info_name} {args[0]}", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("What else it does (each with its own --help)"):
            formatter.write_dl([(f"{ctx.info_name} {name}", told) for name, told in self.told.items()])


class _Numbers(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    """Whole numbers with commas between."""

    name = "N[,N...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isascii() and part.strip().lstrip("-").isdigit() for part in parts):
            self.fail(f"{value!r} is not a whole number, or several with commas between: 1,8", param, ctx)
        return tuple(int(part) for part in parts)


class _Forms(click.ParamType):  # type: ignore[type-arg]
    """Forms with commas between, or all."""

    name = "FORM[,FORM...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        forms = tuple(part.strip() for part in str(value).split(","))
        if forms == ("all",):
            return forms
        for form in forms:
            if form not in GRAPH_FORMS:
                self.fail(f"{form!r} is not one of {', '.join(GRAPH_FORMS)}, or all", param, ctx)
        return forms


@click.command(name="profile", cls=_WithVerbs)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The profile, a JSON file.  [default: profiles/DEVICE.json in the bundle]",
)
@click.option("--restart", is_flag=True, help="Forget what an interrupted run has kept.")
@click.option("--threads", default=1, show_default=True, help="Threads per inference; 0 takes every core.")
@click.option(
    "--share-weights",
    is_flag=True,
    help="Hold the weights once for all rungs: on the CPU mapped and not repacked, which is slower; with CUDA "
    "on the GPU. Export with --no-merge.",
)
@engine_options
@click.option("--provider", default="cpu", show_default=True, help="cpu, cuda, tensorrt, or auto.")
@click.option("--batch", "batch_sizes", type=_Numbers(), default="1", show_default=True, help="Sequences per call.")
@click.option(
    "--sequence",
    "sequence_lengths",
    type=_Numbers(),
    help=f"Tokens per sequence.  [default: {DEFAULT_SEQUENCE}, or the most the model takes; 1 with --past]",
)
@click.option("--past", default=0, show_default=True, help="Tokens that a decoder's cache holds already.")
@click.option(
    "--dim", "dimensions", multiple=True, metavar="NAME=N", help="Size of another named dimension. Repeat it."
)
@click.option("--rank", "ranks", multiple=True, type=int, help="Only this rung. Repeat it.  [default: every rung]")
@click.option(
    "--form",
    "forms",
    type=_Forms(),
    default="static",
    show_default=True,
    help=f"{', '.join(GRAPH_FORMS)}: one graph per rung (static), or one with the rank as an input; "
    "all: each that the bundle has.",
)
@click.option("--warmup", default=10, show_default=True, help="Untimed calls of each rung before the first timed one.")
@click.option("--repetitions", default=100, show_default=True, help="Timed calls of each rung, at least.")
@click.option("--min-time", "min_time_s", default=1.0, show_default=True, help="Timed seconds of each rung, at least.")
@click.option(
    "--max-time", "max_time_s", default=120.0, show_default=True, help="Stop a configuration after this many seconds."
)
@click.option(
    "--settle",
    "settle_s",
    default=0.0,
    show_default=True,
    help="First run until the temperature no longer rises, at most this many seconds.",
)
@click.option(
    "--energy-time",
    "energy_turn_s",
    default=1.0,
    show_default=True,
    help="Seconds of each turn that measures energy, where a sensor is; 0 leaves energy out.",
)
@verb_options
def command(
    bundle: Path,
    output: Path | None,
    restart: bool,
    threads: int,
    share_weights: bool,
    provider: str,
    choice: EngineChoice,
    batch_sizes: tuple[int, ...],
    sequence_lengths: tuple[int, ...] | None,
    past: int,
    dimensions: tuple[str, ...],
    ranks: tuple[int, ...],
    forms: tuple[str, ...],
    warmup: int,
    repetitions: int,
    min_time_s: float,
    max_time_s: float,
    settle_s: float,
    energy_turn_s: float,
    as_json: bool,
) -> None:
    """Measure every rung of BUNDLE on this machine, on made-up inputs.

    Several values with commas between (--batch 1,8 --sequence 32,128 --form static,gated) measure every combination.
    What is measured is kept after each: if it is interrupted, the same command goes on.

    A decoder reads --sequence tokens into an empty cache; with --past N it gives one token after N others.

    The rungs take turns in a shuffled order, so that whatever disturbs the machine disturbs all of them alike: ratios
    hold even where times do not.
    """
    from nsn_edge.bundle import Bundle
    from nsn_edge.cli.profile_tables import render_profile
    from nsn_edge.runtimes.engines import OnnxRuntimeEngine
    from nsn_edge.runtimes.profiling import (
        EnergySettings,
        MeasureSettings,
        ProfileSettings,
        grid,
        profile_device,
    )
    from nsn_edge.runtimes.profiling.inputs import PAST_LENGTH
    from nsn_edge.runtimes.profiling.sensors import sensors_for

    measure = MeasureSettings(warmup=warmup, min_repetitions=repetitions, min_time_s=min_time_s, max_time_s=max_time_s)
    sizes = {**({PAST_LENGTH: past} if past else {}), **_sizes(dimensions)}
    energy = EnergySettings(turn_s=energy_turn_s)
    engine = choice.make(lambda: OnnxRuntimeEngine(threads, provider, share_weights))
    with progress_bar() as progress:
        opened = Bundle.open(bundle, progress=progress)
        base = ProfileSettings(dimensions=sizes, measure=measure, energy=energy, settle_s=settle_s)
        cells = grid(
            base,
            forms=_forms(opened) if forms == ("all",) else forms,
            batch_sizes=batch_sizes,
            sequence_lengths=sequence_lengths or (_usual_length(opened, past),),
        )
        description = engine.describe()
        keeper = _keeper(opened, output, description, restart)
        with sensors_for(description) as source:
            try:
                profile = profile_device(
                    opened, engine, cells, ranks=ranks or None, keeper=keeper, source=source, progress=progress
                )
            except KeyboardInterrupt:
                if keeper is not None and keeper.partial.is_file():
                    click.echo(f"kept in {keeper.partial}: the same command goes on from there", err=True)
                raise
    emit(profile.to_json(), lambda console: render_profile(console, profile), as_json)
    if keeper is not None and not as_json:
        click.echo(f"written to {keeper.target}")
    if profile.failed:
        click.get_current_context().exit(1)


def _usual_length(bundle: Bundle, past: int) -> int:
    return 1 if past else min(DEFAULT_SEQUENCE, bundle.manifest.task.max_length or DEFAULT_SEQUENCE)


def _forms(bundle: Bundle) -> tuple[str, ...]:
    """Every form that the bundle has."""
    there = {artifact.form for artifact in bundle.manifest.artifacts if artifact.kind == "graph"}
    return tuple(form for form in GRAPH_FORMS if form in there)


def _keeper(bundle: Bundle, output: Path | None, engine: dict[str, Any], restart: bool) -> Keeper | None:
    """Where the profile goes. Nobody asked for a file in the bundle: one that cannot be written there is left out."""
    from nsn_edge.runtimes.profiling import Keeper, default_profile_path, describe_host

    if output is not None:
        target = output
        folder = target.absolute().parent
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise NsnEdgeError(f"cannot write {target}: no permission in {folder}", "name another file with -o")
        return Keeper(target, restart=restart)
    target = default_profile_path(bundle.path, describe_host(), engine)
    folder = target.parent if target.parent.exists() else bundle.path
    if not os.access(folder, os.W_OK | os.X_OK):
        click.echo(f"the profile is not kept: {folder} cannot be written; -o FILE writes it elsewhere", err=True)
        return None
    return Keeper(target, restart=restart)


def _sizes(dimensions: tuple[str, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for text in dimensions:
        name, equals, size = text.partition("=")
        if not (name and equals and size.isascii() and size.isdigit()):
            raise UsageError(f"cannot read --dim {text!r}", "write it as NAME=N, for example --dim past_length=16")
        sizes[name] = int(size)
    return sizes


@click.command(name="compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--least-change",
    default=0.03,
    show_default=True,
    help="Call smaller changes noise, as a share: between two runs of one program so much is usual.",
)
@verb_options
def compare_command(a: Path, b: Path, least_change: float, as_json: bool) -> None:
    """Compare profile B with profile A: two devices, engines or versions of one model.

    For each rung in each configuration that both have: the ratio of the medians, the band within which 95 % of such
    ratios lie by chance, and whether B is faster, slower, or within noise.
    """
    from nsn_edge.cli.profile_tables import render_comparison
    from nsn_edge.runtimes.profiling import compare

    comparison = compare(_load(a), _load(b), least_change=least_change)
    emit(comparison.to_json(), lambda console: render_comparison(console, comparison, a, b), as_json)


def _load(path: Path) -> DeviceProfile:
    from nsn_edge.runtimes.profiling import DeviceProfile

    return DeviceProfile.load(path)


@click.command(name="import-trtexec")
@click.argument("times", nargs=-1, required=True, metavar="RANK=FILE...")
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Whose graphs trtexec ran.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The profile, a JSON file.")
@click.option("--form", type=click.Choice(GRAPH_FORMS), default="static", show_default=True, help="Of the graphs.")
@click.option("--batch", "batch_size", default=1, show_default=True, help="Sequences per call, as in --shapes.")
@click.option("--sequence", "sequence_length", type=int, help="Tokens per sequence, as in --shapes.")
@click.option(
    "--warm-up",
    "warm_up_ms",
    default=200.0,
    show_default=True,
    help="trtexec's --warmUp in milliseconds: older ones write down these inferences, too, and they are left out.",
)
@click.option("--here", is_flag=True, help="trtexec ran on this machine: note it in the profile.")
@verb_options
def import_command(
    times: tuple[str, ...],
    bundle: Path,
    output: Path,
    form: str,
    batch_size: int,
    sequence_length: int | None,
    warm_up_ms: float,
    here: bool,
    as_json: bool,
) -> None:
    """Make a profile of times that trtexec took of a bundle's rungs.

    Each RANK=FILE is a rung and what `trtexec --loadEngine=ENGINE --exportTimes=FILE` wrote for it. Policies, reports
    and `profile compare` take the profile as any other; loading, memory and energy are unknown in it.
    """
    from nsn_edge.bundle import Bundle
    from nsn_edge.cli.profile_tables import render_profile
    from nsn_edge.runtimes.profiling import DeviceProfile, describe_host, profile_from_times, read_times

    opened = Bundle.open(bundle)
    read = {rank: read_times(path, warm_up_ms=warm_up_ms) for rank, path in _files(times).items()}
    profile = profile_from_times(
        opened,
        read,
        form=form,
        batch_size=batch_size,
        sequence_length=sequence_length,
        host=describe_host().to_json() if here else None,
    )
    profile.save(output)
    emit(profile.to_json(), lambda console: render_profile(console, DeviceProfile.of(profile)), as_json)
    if not as_json:
        click.echo(f"written to {output}")


def _files(times: tuple[str, ...]) -> dict[int, Path]:
    files: dict[int, Path] = {}
    for text in times:
        rank, equals, path = text.partition("=")
        if not (equals and path and rank.isascii() and rank.isdigit()):
            raise UsageError(f"cannot read {text!r}", "write RANK=FILE, for example 48=rank-048-times.json")
        if int(rank) in files:
            raise UsageError(f"rank {rank} is named twice", "one file for each rank")
        files[int(rank)] = Path(path)
    return files


_WithVerbs.others = {"compare": lambda: compare_command, "import-trtexec": lambda: import_command}
_WithVerbs.told = {
    "compare A B": "two profiles: each rung's ratio, and whether it is more than noise",
    "import-trtexec": "a profile from times that trtexec took",
}
