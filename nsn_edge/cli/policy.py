"""`nsn-edge policy`: read a policy file as the device will."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nsn_edge.cli.common import emit, verb_options
from nsn_edge.errors import UsageError

if TYPE_CHECKING:
    from nsn_edge.runtimes.policy.limiter import Rungs

_SCHEMA_VERSION = 1


@click.group(name="policy")
def command() -> None:
    """Policies: which rung runs at which battery, heat, deadline and load."""


@command.command(name="check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Say what it comes to with the rungs of this bundle.")
@click.option(
    "--profile", type=click.Path(path_type=Path), help="With --bundle: what they cost, from nsn-edge profile."
)
@verb_options
def check(file: Path, bundle: Path | None, profile: Path | None, as_json: bool) -> None:
    """Check a policy FILE and say what it does, in sentences.

    The first mistake is one line that names the file, the line and the key; exit code 2.
    """
    from nsn_edge.runtimes.policy import load_policy
    from nsn_edge.runtimes.policy.explain import explain, notes

    if profile is not None and bundle is None:
        raise UsageError("--profile has the costs of a bundle's rungs", "give --bundle BUNDLE, too")
    limits = load_policy(file)
    rungs, warnings = (None, []) if bundle is None else _rungs(file, bundle, profile)
    sentences = explain(limits, rungs)
    warnings += notes(limits, rungs)
    data: dict[str, Any] = {
        "schema_version": _SCHEMA_VERSION,
        "kind": "policy-check",
        "file": str(file),
        "policy": limits.to_json(),
        "sentences": [{"table": item.table, "text": item.text, "rank": item.rank} for item in sentences],
        "rungs": None if rungs is None else _rungs_json(rungs),
        "notes": warnings,
    }

    def render(console: Console) -> None:
        console.print(f"[bold]{escape(limits.name)}[/]: {escape(str(file))} is sound")
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for item in sentences:
            text = escape(item.text) + ("" if item.rank is None else f" [bold]-> rank {item.rank}[/]")
            table.add_row(escape(f"[{item.table}]") if item.table else "", text)
        console.print(table)
        if rungs is not None:
            console.print(_rungs_table(rungs))
        for note in warnings:
            console.print(f"note: {note}", markup=False)

    emit(data, render, as_json)


def _rungs(file: Path, path: Path, profile: Path | None) -> tuple[Rungs, list[str]]:
    """The bundle's rungs with their costs, and what is worth knowing about the profile.

    Raises:
        NsnEdgeError: the bundle or the profile is unsound, or the policy does not fit them.
    """
    from nsn_edge.bundle import Bundle
    from nsn_edge.runtimes.policy import build_policy, load_costs, load_policy
    from nsn_edge.runtimes.policy.limiter import Rungs
    from nsn_edge.runtimes.profiling import Profile, describe_host
    from nsn_edge.runtimes.profiling.device import same_device

    manifest = Bundle.open(path, check_hashes=False).manifest
    limits = load_policy(file)
    if limits.difficulty is not None:
        limits.difficulty.rungs(manifest.ladder)
    if profile is None:
        return Rungs(manifest.ladder, None, limits.unknown_max_flops), []
    costs = load_costs(profile, manifest.ladder, model=manifest.model)
    build_policy(file, manifest.ladder, costs)
    foreign = same_device(Profile.load(profile).host, describe_host())
    warnings = [f"the profile is from another device than this one: {foreign[0]}"] if foreign else []
    return Rungs(manifest.ladder, costs, limits.unknown_max_flops), warnings


def _rungs_json(rungs: Rungs) -> list[dict[str, Any]]:
    costs = rungs.costs
    return [
        {
            "rank": rung.rank,
            "flops_fraction": rungs.ladder.flops_fraction(rung.rank),
            "p50_ms": None if costs is None else costs.at(rung.rank).p50_ms,
            "p99_ms": None if costs is None else costs.at(rung.rank).p99_ms,
            "energy_mj": None if costs is None else costs.at(rung.rank).energy_mj,
            "quality": dict(rung.quality),
        }
        for rung in rungs.ladder.rungs
    ]


def _rungs_table(rungs: Rungs) -> Table:
    table = Table(title="Rungs", title_justify="left")
    for heading in ("rank", "linear FLOPs", "p50 ms", "p99 ms", "mJ"):
        table.add_column(heading, justify="right")
    table.add_column("quality")
    for row in reversed(_rungs_json(rungs)):
        numbers = [row[key] for key in ("p50_ms", "p99_ms", "energy_mj")]
        table.add_row(
            str(row["rank"]),
            f"{row['flops_fraction']:.1%}",
            *("-" if number is None else f"{number:.2f}" for number in numbers),
            ", ".join(f"{metric} {value:.4f}" for metric, value in row["quality"].items()) or "-",
        )
    return table
