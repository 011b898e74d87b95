"""Profiles and comparisons as tables for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from nsn_edge.runtimes.profiling import Comparison, DeviceProfile, Profile

_UNKNOWN = "–"


def render_profile(console: Console, document: DeviceProfile) -> None:
    """Each configuration's rungs as a table, the machine, and what makes the numbers less than sure."""
    from nsn_edge.runtimes.profiling import host_summary

    configurations = document.configurations
    # What holds for all of them is said once, at the end.
    of_all = set.intersection(*(set(profile.warnings) for profile in configurations)) if configurations else set()
    for profile in configurations:
        _render_configuration(console, profile, of_all, titled=len(configurations) > 1)
    for warning in configurations[0].warnings if configurations else ():
        if warning in of_all:
            console.print(f"[yellow]warning:[/] {escape(warning)}")
    for failed in document.failed:
        from nsn_edge.runtimes.profiling.result import configuration_name

        name = configuration_name(failed.configuration)
        console.print(f"[red]not measured:[/] {escape(name)}: {escape(failed.error)}")
    console.print(f"measured on: {host_summary(document.host) or 'unknown'}", markup=False)
    if document.device:
        console.print(f"device key: {document.device}", markup=False)


def _render_configuration(console: Console, profile: Profile, of_all: set[str], *, titled: bool) -> None:
    from nsn_edge.runtimes.profiling.result import configuration_name

    settings = profile.settings
    metrics = sorted({name for rung in profile.rungs for name in rung.quality})
    energy = any(rung.energy_mj is not None for rung in profile.rungs)
    headings = ("rank", "FLOPs", "p50 ms", "p90 ms", "p99 ms", "mean ± std ms", "cv", "× dense")
    table = Table(title=configuration_name(profile.configuration) if titled else None, title_justify="left")
    for heading in (*headings, *(("mJ",) if energy else ()), "load ms", "first ms", "+ MB", *metrics):
        table.add_column(heading, justify="right")
    for rung in reversed(profile.rungs):
        latency = rung.latency
        relative = profile.relative_to_dense(rung)
        table.add_row(
            f"{rung.rank} (dense)" if rung.dense else str(rung.rank),
            f"{rung.flops_fraction:.1%}",
            *(_ms(value) for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)),
            f"{_ms(latency.mean_ms)} ± {latency.std_ms:.{_decimals(latency.mean_ms)}f}",
            f"{latency.cv:.1%}",
            _UNKNOWN if relative is None else f"{relative:.2f}",
            *((_ms(rung.energy_mj),) if energy else ()),
            *(_ms(value) for value in (rung.load_ms, rung.first_run_ms)),
            _UNKNOWN if rung.memory_mb is None else f"{rung.memory_mb:.1f}",
            *(f"{rung.quality[name]:.3f}" if name in rung.quality else _UNKNOWN for name in metrics),
        )
    console.print(table)
    fewest = min(rung.latency.n for rung in profile.rungs)
    threads = f"threads {settings['threads']}, " if "threads" in settings else ""
    console.print(
        f"{profile.model}, {settings.get('engine')}, {threads}{configuration_name(profile.configuration)}, "
        f"{fewest} repetitions or more",
        markup=False,
    )
    for line in _about(profile):
        console.print(line, markup=False)
    for warning in profile.warnings:
        if warning not in of_all:
            console.print(f"[yellow]warning:[/] {escape(warning)}")


def _about(profile: Profile) -> list[str]:
    lines = []
    if profile.peak_memory_mb is not None:
        memory = profile.memory
        whose = "" if memory is None or memory.peak_is_own else ", of all configurations until then"
        before = "" if memory is None or memory.before_mb is None else f"; {memory.before_mb:.0f} MB before loading"
        on_gpu = "" if memory is None or memory.device_mb is None else f"; {memory.device_mb:.0f} MB on the GPU"
        lines.append(
            f"peak memory of this process: {profile.peak_memory_mb:.0f} MB, all rungs loaded{whose}{before}{on_gpu}"
        )
    if profile.energy is not None and profile.energy.kind is not None:
        idle = "" if profile.energy.idle_mw is None else f"idle {profile.energy.idle_mw / 1e3:.1f} W; "
        lines.append(f"energy of a call: {idle}{profile.energy.method}")
    if (seen := profile.conditions) is not None:
        verdict = {True: "yes", False: "no", None: "cannot be told"}[seen.steady]
        temperatures = [sample.temperature_c for sample in seen.samples if sample.temperature_c is not None]
        heat = f"{temperatures[0]:.0f} to {temperatures[-1]:.0f} °C, " if temperatures else "no thermometer, "
        mode = f"power mode {seen.power_mode}, " if seen.power_mode else ""
        lines.append(f"conditions: {mode}{heat}{seen.duration_s:.0f} s; steady: {verdict}")
    return lines


def render_comparison(console: Console, comparison: Comparison, a: Path, b: Path) -> None:
    """A row per rung and configuration, and what is not alike."""
    from nsn_edge.runtimes.profiling.result import configuration_name

    table = Table()
    energy = any(rung.energy_ratio is not None for rung in comparison.rungs)
    table.add_column("configuration")
    for heading in ("rank", "A p50 ms", "B p50 ms", "B / A", "by chance", *(("mJ B / A",) if energy else ()), "B is"):
        table.add_column(heading, justify="left" if heading == "B is" else "right")
    colours = {"faster": "green", "slower": "red"}
    last = None
    for rung in comparison.rungs:
        name = configuration_name(rung.configuration)
        colour = colours.get(rung.verdict)
        table.add_row(
            "" if name == last else escape(name),
            f"{rung.rank} (dense)" if rung.dense else str(rung.rank),
            _ms(rung.a_p50_ms),
            _ms(rung.b_p50_ms),
            f"{rung.ratio:.3f}",
            f"{rung.low:.3f} to {rung.high:.3f}",
            *((_UNKNOWN if rung.energy_ratio is None else f"{rung.energy_ratio:.3f}",) if energy else ()),
            f"[{colour}]{rung.verdict}[/]" if colour else rung.verdict,
        )
        last = name
    console.print(table)
    console.print(f"A: {a}; B: {b}; {comparison.a.model}", markup=False)
    methods = sorted({rung.method for rung in comparison.rungs})
    console.print(
        f"by chance: 95 % of such ratios, by {' and '.join(methods)}; changes of up to "
        f"{comparison.least_change:.0%} are called noise",
        markup=False,
    )
    if comparison.common_change is not None:
        console.print(
            f"every rung changed alike, by {comparison.common_change - 1:+.0%}: perhaps the machine did, not the model",
            markup=False,
        )
    for difference in comparison.differences:
        console.print(f"differs: {difference}", markup=False)
    for left_out in comparison.left_out:
        console.print(f"not compared: {left_out}", markup=False)


def _ms(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    """Three significant digits, more or less."""
    return 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
