"""`nsn-edge simulate`: replay a telemetry trace through a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nsn_edge.cli.common import emit, progress_bar, verb_options
from nsn_edge.cli.scenario import draw, print_report, run_scenario
from nsn_edge.errors import EngineError, UsageError

if TYPE_CHECKING:
    from nsn_edge.bundle import Bundle
    from nsn_edge.progress import Progress
    from nsn_edge.runtimes.policy import RankPolicy
    from nsn_edge.runtimes.simulation import SimulationResult
    from nsn_edge.runtimes.telemetry import TelemetryTrace

_QUERIES_PER_ROW = 3


@click.command(name="simulate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--trace",
    "trace_path",
    type=click.Path(path_type=Path),
    help="CSV with the columns time_s, battery_pct, on_mains, temperature_c, or a log of jtop or tegrastats. "
    "Default: a scripted shift of twenty minutes in the field.",
)
@click.option(
    "--policy", "policy_path", type=click.Path(path_type=Path), help="TOML file. Default: the policy that ships."
)
@click.option(
    "--profile",
    "profile_path",
    type=click.Path(path_type=Path),
    help="What the rungs cost, from `nsn-edge profile`. Scenarios and some policies need it.",
)
@click.option(
    "--scenario",
    "scenario_path",
    type=click.Path(path_type=Path),
    help="TOML file with requests, heat, battery and load: the policy's decisions then change heat, battery and queue.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of a scenario's random requests."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the scenario into this SVG file.")
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    default=_QUERIES_PER_ROW,
    show_default=True,
    help="Real queries at each row of the trace.",
)
@click.option("--no-queries", is_flag=True, help="Simulate the policy alone: no engine is loaded.")
@verb_options
def command(
    bundle: Path,
    trace_path: Path | None,
    policy_path: Path | None,
    profile_path: Path | None,
    scenario_path: Path | None,
    seed: int,
    plot: Path | None,
    queries: int,
    no_queries: bool,
    as_json: bool,
) -> None:
    """Replay a telemetry trace through a policy, while the BUNDLE answers real queries at the rung of each moment.

    Prints the time at each rung, the switches with their reasons, and the switches per minute. The trace's time is
    virtual: twenty minutes take seconds.

    With --scenario nothing is loaded: requests, heat and battery are simulated from the profile, the policy's decisions
    change them, and the policy is held against every fixed rung and against an oracle that knows the future.
    """
    from nsn_edge.bundle import Bundle
    from nsn_edge.runtimes.data import DEFAULT_POLICY, FIELD_SHIFT_TRACE
    from nsn_edge.runtimes.policy import build_policy, load_costs, load_policy
    from nsn_edge.runtimes.simulation import load_scenario
    from nsn_edge.runtimes.telemetry import load_trace

    if plot is not None and scenario_path is None:
        raise UsageError("--plot draws a scenario, and none is named", "add --scenario FILE")
    if scenario_path is not None and profile_path is None:
        raise UsageError(
            "a scenario needs to know what the rungs cost",
            "nsn-edge profile BUNDLE -o profile.json, then --profile profile.json",
        )
    # The small files first: a typo in one must not wait for the hashing of a large bundle.
    policy_path = policy_path or DEFAULT_POLICY
    load_policy(policy_path)
    trace = load_trace(trace_path or FIELD_SHIFT_TRACE)
    scenario = None if scenario_path is None else load_scenario(scenario_path)
    with progress_bar() as progress:
        alone = no_queries or scenario is not None
        opened = Bundle.open(bundle, check_hashes=not alone, progress=progress)
        ladder = opened.manifest.ladder
        # The profile may be from any device: that is the one to simulate.
        costs = None if profile_path is None else load_costs(profile_path, ladder, model=opened.manifest.model)
        policy = build_policy(policy_path, ladder, costs)
        if scenario is not None and costs is not None:
            report = run_scenario(trace, scenario, costs, policy, seed, progress)
            document = report.to_json()
            if plot is not None:
                draw(document, plot)
            emit(document, lambda console: print_report(console, report), as_json)
            return
        result = _replay(trace, policy, opened, 0 if no_queries else queries, progress)
    emit(result.to_json(), lambda console: _print(console, result), as_json)
    if result.first_failure:
        raise EngineError(
            f"{result.failed_queries} of {result.queries} queries and {result.failed_switches} switches failed, "
            f"first: {result.first_failure}",
            "nsn-edge inspect checks the bundle's files",
        )


def _replay(
    trace: TelemetryTrace, policy: RankPolicy, bundle: Bundle, queries: int, progress: Progress
) -> SimulationResult:
    """The trace as it is; 0 queries load no engine."""
    from nsn_edge.corpus import documentation_corpus
    from nsn_edge.runtimes.session import EdgeSession
    from nsn_edge.runtimes.simulation import SessionQueries, simulate

    if not queries:
        return simulate(trace, policy, bundle.manifest.ladder, progress=progress)
    with EdgeSession.open(bundle) as session:
        asking = SessionQueries.for_bundle(session, documentation_corpus().held_out[:queries])
        return simulate(
            trace, policy, bundle.manifest.ladder, queries=asking, queries_per_row=queries, progress=progress
        )


def _print(console: Console, result: SimulationResult) -> None:
    minutes = result.duration_s / 60
    console.print(
        f"[bold]{escape(result.trace_name)}[/]: {len(result.timeline)} readings, {minutes:.1f} minutes; "
        f"policy {escape(str(result.policy.get('name', 'custom')))}"
    )
    console.print(_rungs(result))
    if result.switches:
        console.print(_switches(result))
    console.print(f"{len(result.switches)} switches, {result.switches_per_minute:.2f} per minute")
    if result.queries:
        console.print(f"{result.queries} queries, {result.failed_queries} failed")


def _rungs(result: SimulationResult) -> Table:
    table = Table(title="Time at each rung", title_justify="left")
    for heading in ("rank", "linear FLOPs", "time s", "share", "median ms"):
        table.add_column(heading, justify="right")
    for rung in reversed(result.ladder.rungs):
        seconds = result.time_at_rung_s[rung.rank]
        latency_ms = result.median_latency_ms(rung.rank)
        table.add_row(
            f"{rung.rank} (dense)" if rung.dense else str(rung.rank),
            f"{result.ladder.flops_fraction(rung.rank):.1%}",
            f"{seconds:.0f}",
            f"{seconds / result.duration_s:.0%}" if result.duration_s else "-",
            "-" if latency_ms is None else f"{latency_ms:.2f}",
        )
    return table


def _switches(result: SimulationResult) -> Table:
    table = Table(title="Switches", title_justify="left")
    for heading in ("time", "from", "to"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why")
    for switch in result.switches:
        minutes, seconds = divmod(round(switch.time_s), 60)
        arrow = "▼" if switch.to_rank < switch.from_rank else "▲"
        table.add_row(
            f"{minutes}:{seconds:02}", str(switch.from_rank), f"{arrow} {switch.to_rank}", escape(switch.reason)
        )
    return table
