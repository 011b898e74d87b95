"""`nsn-edge simulate --scenario`: the policy beside fixed rungs and the oracle, as tables and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nsn_edge.atomic import atomic_write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsn_edge.progress import Progress
    from nsn_edge.runtimes.policy import RankPolicy, RungCosts
    from nsn_edge.runtimes.simulation import Outcome, Report, Scenario
    from nsn_edge.runtimes.telemetry import TelemetryTrace

_MOST_SWITCHES = 40
_SHORT = {"temperature": "heat"}


def run_scenario(
    trace: TelemetryTrace,
    scenario: Scenario,
    costs: RungCosts,
    policy: RankPolicy,
    seed: int,
    progress: Progress,
) -> Report:
    """Lay the scenario on the trace and let the policy live through it."""
    from nsn_edge.runtimes.simulation import compare, lay_out

    return compare(lay_out(trace, scenario, costs, seed=seed), policy, progress)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Write the plot in one step."""
    from nsn_edge.report.scenario import scenario_svg

    atomic_write_bytes(path, scenario_svg(document).encode())


def print_report(console: Console, report: Report) -> None:
    """Tables for people."""
    outcome = report.outcome
    world = outcome.world
    console.print(
        f"[bold]{escape(world.scenario.name)}[/] on {escape(world.trace.name)}: {outcome.duration_s / 60:.1f} minutes, "
        f"{outcome.arrived} requests, seed {world.seed}; policy {escape(str(outcome.policy.get('name', 'custom')))}"
    )
    console.print(_device(report))
    console.print(_table(report))
    oracle, fraction = report.yardsticks.oracle.quality_per_request, report.oracle_fraction
    if fraction is not None:
        console.print(
            f"The policy reaches {fraction:.1%} of the oracle's quality of {oracle:.4f}, above which no policy that "
            "keeps the limits can be."
        )
    best = report.yardsticks.best_fixed
    if best is not None and outcome.quality_per_request is not None and best.quality_per_request is not None:
        gap = outcome.quality_per_request - best.quality_per_request
        console.print(f"Against the best fixed rung, rank {best.policy['rank']}: {gap:+.4f}.")
    elif best is None:
        console.print("No fixed rung keeps the limits.")
    needless_s = report.yardsticks.needless_seconds_above(outcome)
    if outcome.seconds_above_limit:
        console.print(
            f"{outcome.seconds_above_limit:.1f} s above the limit, {needless_s:.1f} s of them where the most frugal "
            "rung would have kept it."
        )
    if outcome.switches:
        console.print(_switches(report))


def _device(report: Report) -> str:
    world = report.outcome.world
    heat = f"{world.thermal.resistance_c_per_w:.2f} C/W, time constant {world.thermal.time_constant_s:.0f} s"
    if world.fit is not None:
        heat += (
            f" (fitted to {world.fit.fitted_rows} rows; {world.fit.held_out_rmse_c:.2f} C off on the "
            f"{world.fit.held_out_rows} rows after them)"
        )
    limit = "no temperature limit" if world.limit_c is None else f"limit {world.limit_c:g} C"
    joules = "joules are modelled" if world.energy_is_modelled else "joules as profiled"
    return f"Device: {heat}; {limit}; {joules}"


def _table(report: Report) -> Table:
    table = Table(title="The policy and every fixed rung", title_justify="left")
    table.add_column("", no_wrap=True)
    headings = ("quality", "missed", "p50/p95/p99 ms", "J/answer", "sw/min", "hot s", "left")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("breaks", no_wrap=True)
    best = report.yardsticks.best_fixed
    table.add_row("policy", *_cells(report.outcome), style="bold")
    for rank, outcome in reversed(report.yardsticks.fixed.items()):
        table.add_row(f"rank {rank}" + (" (best)" if outcome is best else ""), *_cells(outcome))
    return table


def _cells(outcome: Outcome) -> tuple[str, ...]:
    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        cell(outcome.quality_per_request, ".4f"),
        f"{outcome.miss_fraction:.2%}",
        "/".join(cell(outcome.latency_percentile_ms(percent), ".0f") for percent in (50, 95, 99)),
        cell(outcome.joules_per_answer, ".3f"),
        f"{outcome.switches_per_minute:.2f}",
        f"{outcome.seconds_above_limit:.1f}",
        "-" if outcome.battery_left_pct is None else f"{outcome.battery_left_pct:.1f} %",
        "nothing"
        if not outcome.broken
        else "[red]" + ", ".join(_SHORT.get(key, key) for key in outcome.broken) + "[/]",
    )


def _switches(report: Report) -> Table:
    switches = report.outcome.switches
    shown = switches[:_MOST_SWITCHES]
    title = "Switches" if len(shown) == len(switches) else f"The first {len(shown)} of {len(switches)} switches"
    table = Table(title=title, title_justify="left")
    for heading in ("time", "from", "to"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why")
    start_s = float(report.outcome.world.time_s[0])
    for switch in shown:
        minutes, seconds = divmod(round(switch.time_s - start_s), 60)
        arrow = "▼" if switch.to_rank < switch.from_rank else "▲"
        table.add_row(
            f"{minutes}:{seconds:02}", str(switch.from_rank), f"{arrow} {switch.to_rank}", escape(switch.reason)
        )
    return table
