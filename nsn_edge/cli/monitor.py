"""`nsn-edge monitor`: what this device's sensors say, live or from a trace."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from nsn_edge.cli.common import emit, verb_options
from nsn_edge.errors import UsageError

if TYPE_CHECKING:
    from nsn_edge.runtimes.telemetry import Reading

_SHORTEST_S, _LONGEST_S = 0.05, 86400.0
_YES_NO = {True: "yes", False: "no"}


@click.command(name="monitor")
@click.option("--interval", type=float, default=1.0, show_default=True, help="Seconds between two readings.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many readings. Default: at Ctrl-C.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="Show this trace, or a log of tegrastats, jtop or nvidia-smi, row by row, instead of this device.",
)
@click.option("--record", type=click.Path(path_type=Path), help="Write the readings to this new file, as a trace.")
@verb_options
def command(interval: float, count: int | None, trace: Path | None, record: Path | None, as_json: bool) -> None:
    """Show what this device's sensors say: battery, heat, power, energy, clocks.

    On a terminal a table that is renewed with each reading; elsewhere a line each. What a sensor does not tell is
    unknown: `nsn-edge doctor` says why. A recording is a trace for `simulate`, and whole but for its last line however
    it ends. Ctrl-C ends it well.
    """
    from nsn_edge.runtimes.telemetry import TraceWriter, reading_to_json

    shortest_s = _SHORTEST_S if trace is None else 0.0
    if not shortest_s <= interval <= _LONGEST_S:
        raise UsageError(f"the interval between readings is {shortest_s:g} to {_LONGEST_S:.0f} s, not {interval:g}")
    # Ctrl-C is how one ends it: nothing failed.
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        readings = stack.enter_context(_device(interval)) if trace is None else _replay(trace)
        writer = None if record is None else stack.enter_context(TraceWriter(record))
        display = stack.enter_context(_display(as_json))
        for number, reading in enumerate(readings, start=1):
            if writer is not None:
                writer.write(reading)
            emit(reading_to_json(reading), display(reading), as_json)
            if number == count:
                break
            time.sleep(interval)


@contextlib.contextmanager
def _device(interval_s: float) -> Iterator[Iterator[Reading]]:
    """This device, read in the background: a sensor that hangs does not stop the others from being shown."""
    from nsn_edge.runtimes.telemetry import Sampler, device_telemetry

    # Twice as often as it is shown, so that nothing shown is older than half an interval.
    with device_telemetry() as device, Sampler(device, interval_s / 2.0) as sampler:
        yield (sampler.read() for _ in itertools.count())


def _replay(path: Path) -> Iterator[Reading]:
    from nsn_edge.runtimes.telemetry import load_trace

    trace = load_trace(path)
    if trace.gaps:
        missing_s = sum(until_s - from_s for from_s, until_s in trace.gaps)
        click.echo(
            f"{path}: rows are missing for {missing_s:.0f} s in {len(trace.gaps)} places, unknown there", err=True
        )
    return iter(trace.readings)


@contextlib.contextmanager
def _display(as_json: bool) -> Iterator[Callable[[Reading], Callable[[Console], None]]]:
    """What draws a reading for people: in a table that is renewed on a terminal, as a line elsewhere."""
    if sys.stdout.isatty() and not as_json:
        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            yield lambda reading: lambda _: live.update(_table(reading), refresh=True)
        return
    started_s: list[float] = []

    def line(reading: Reading) -> Callable[[Console], None]:
        started_s.append(reading.time_s)
        del started_s[1:]
        return lambda _: click.echo(_line(reading, reading.time_s - started_s[0]))

    yield line


def _table(reading: Reading) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    unknown = []
    for name, value in _values(reading).items():
        if value is None:
            unknown.append(name)
        else:
            table.add_row(f"[bold]{name}[/]", escape(value))
    for rail, power_mw in reading.rails_mw.items():
        table.add_row(f"[dim]rail[/] {escape(rail)}", f"{power_mw / 1e3:.2f} W")
    table.add_row("[dim]oldest value[/]", f"[dim]{reading.age_s:.1f} s old[/]")
    if unknown:
        table.add_row("[dim]unknown[/]", f"[dim]{', '.join(unknown)}; nsn-edge doctor says why[/]")
    return table


def _line(reading: Reading, elapsed_s: float) -> str:
    known = [f"{name} {value}" for name, value in _values(reading).items() if value is not None]
    rails = [f"{rail} {power_mw / 1e3:.2f} W" for rail, power_mw in reading.rails_mw.items()]
    return f"{elapsed_s:.1f} s  {' | '.join(known + rails) or 'nothing is known'}"


def _values(reading: Reading) -> dict[str, str | None]:
    """By name, with units, in the order of the table; None for what is unknown."""

    def number(value: float | None, unit: str, digits: int = 0, scale: float = 1.0) -> str | None:
        return None if value is None else f"{value * scale:.{digits}f} {unit}"

    def flag(value: bool | None) -> str | None:
        return None if value is None else _YES_NO[value]

    heat = number(reading.temperature_c, "°C", 1)
    if heat is not None and reading.temperature_limit_c is not None:
        heat += f" of {reading.temperature_limit_c:.1f} °C"
    waiting = None if reading.work is None else reading.work.waiting
    arrivals = None if reading.work is None else reading.work.arrivals_per_s
    values = {
        "battery": number(reading.battery_pct, "%", 1),
        "energy left": number(reading.battery_j, "Wh", 2, 1 / 3600),
        "on mains": flag(reading.on_mains),
        "temperature": heat,
        "throttling": flag(reading.throttling),
        "over-current": flag(reading.over_current),
        "power": number(reading.power_mw, "W", 2, 1e-3),
        "energy": number(reading.energy_j, "J", 1),
        "GPU load": number(reading.gpu_load_pct, "%"),
        "GPU clock": number(reading.gpu_mhz, "MHz"),
        "processor clock": number(reading.cpu_mhz, "MHz"),
        "power mode": reading.power_mode,
    }
    if arrivals is not None:
        values["arrivals"] = number(arrivals, "per s", 1)
    if waiting is not None:
        values["waiting"] = str(waiting)
    return values
