"""The columns of a trace, both ways: a row's cells to a reading, and a reading to a row's cells.

    time_s,battery_pct,on_mains,temperature_c,power_mw
    0,80,1,45.5,
    5,80,0,46.0,7400

An empty cell is an unknown value. Other columns are left alone. `docs/telemetry.md` has the table for people.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsn_edge.errors import TraceError
from nsn_edge.runtimes.telemetry.base import Reading, Work

REQUIRED_COLUMNS = ("time_s", "battery_pct", "on_mains", "temperature_c")

_LARGEST = 1e12
_HEAT = (-100.0, 250.0)
_NUMBERS = {
    "battery_pct": (0.0, 100.0),
    "temperature_c": _HEAT,
    "temperature_limit_c": _HEAT,
    "power_mw": (0.0, _LARGEST),
    "energy_j": (0.0, _LARGEST),
    "battery_j": (0.0, _LARGEST),
    "gpu_load_pct": (0.0, 100.0),
    "gpu_mhz": (0.0, 1e6),
    "cpu_mhz": (0.0, 1e6),
    "wall_s": (0.0, _LARGEST),
}
"""Fields of a reading, and what their cells may say."""
_FLAGS = ("on_mains", "throttling", "over_current")
_RANGES = {**_NUMBERS, "time_s": (-_LARGEST, _LARGEST), "arrivals_per_s": (0.0, 1e9), "waiting": (0.0, 1e9)}

COLUMNS = (
    *REQUIRED_COLUMNS,
    *(name for name in _NUMBERS if name not in REQUIRED_COLUMNS),
    "arrivals_per_s",
    "waiting",
    "power_mode",
    "rails_mw",
    "over_current",
    "throttling",
)
"""Of a recorded trace. The last cell is a single digit: a line that was cut inside it is unknown there, never wrong."""

_UNIT = re.compile(r"[mun]?s|min|h|pct|percent|ratio|m?c|f|k|[kmu]?wh?|[kmu]?j|[kmg]?hz", re.ASCII)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_UNKNOWN = "an unknown value is an empty cell"
_RAILS = "write them as NAME=MILLIWATTS;NAME=MILLIWATTS"


def check_units(at: str, header: Sequence[str]) -> None:
    """Refuse a quantity that is there in another unit alone: `power_w` would be left alone, and the power be unknown.

    Args:
        at: where the header stands.
        header: the columns.

    Raises:
        TraceError: a column tells one of our quantities in a unit that we do not read.
    """
    ours = {_quantity(name): name for name in reversed(COLUMNS)}
    read = {_quantity(name) for name in header if name in COLUMNS}
    for name in header:
        if name not in COLUMNS and _UNIT.fullmatch(name.rpartition("_")[2]):
            quantity = _quantity(name)
            if quantity in ours and quantity not in read:
                raise TraceError(f"{at}: the column {name} is in a unit that is not read", f"write {ours[quantity]}")


def _quantity(column: str) -> str:
    return column.rpartition("_")[0]


def parse_rows(rows: Sequence[tuple[str, Mapping[str, str]]]) -> tuple[Reading, ...]:
    """Readings, in the order of the rows.

    Args:
        rows: where each stands, for the messages, and its cells by column.

    Raises:
        TraceError: a cell is not what its column holds, or time runs backwards.
    """
    readings: list[Reading] = []
    for at, cells in rows:
        reading = _Row(at, cells).reading()
        if readings and reading.time_s < readings[-1].time_s:
            raise TraceError(
                f"{at}: time_s runs backwards from {readings[-1].time_s:g} to {reading.time_s:g}",
                "sort the rows by time",
            )
        readings.append(reading)
    return tuple(readings)


def format_row(cells: Sequence[str]) -> str:
    """A line of CSV with its end."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def cells_of(reading: Reading) -> list[str]:
    """A reading as the cells of `COLUMNS`."""
    work = reading.work or Work()
    cells = {name: _number(getattr(reading, name)) for name in ("time_s", *_NUMBERS)}
    for name in _FLAGS:
        flag = getattr(reading, name)
        cells[name] = "" if flag is None else str(int(flag))
    cells["arrivals_per_s"], cells["waiting"] = _number(work.arrivals_per_s), _number(work.waiting)
    cells["power_mode"] = _text(reading.power_mode or "")
    cells["rails_mw"] = ";".join(
        f"{re.sub('[;=]', '_', _text(rail))}={_number(power_mw)}" for rail, power_mw in reading.rails_mw.items()
    )
    return [cells[name] for name in COLUMNS]


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _text(value: str) -> str:
    """On one line, as a cell is read back: without surrounding blanks."""
    return " ".join(value.split())


@dataclass(frozen=True)
class _Row:
    """A row's cells by column, and where it stands, for the messages."""

    at: str
    cells: Mapping[str, str]

    def reading(self) -> Reading:
        time_s = self.number("time_s")
        if time_s is None:
            raise TraceError(f"{self.at}: time_s is empty", "every row needs its time in seconds")
        known: dict[str, Any] = {name: self.number(name) for name in _NUMBERS}
        known |= {name: self.flag(name) for name in _FLAGS}
        return Reading(
            time_s,
            **known,
            power_mode=self.cells.get("power_mode") or None,
            rails_mw=self.rails(),
            work=self.work(),
        )

    def number(self, column: str) -> float | None:
        cell = self.cells.get(column, "")
        return self.parse(column, cell, *_RANGES[column]) if cell else None

    def parse(self, what: str, cell: str, low: float, high: float) -> float:
        if not _NUMBER.fullmatch(cell):
            raise TraceError(f"{self.at}: {what} is {cell[:40]!r}, not a number", _UNKNOWN)
        value = float(cell)
        if not low <= value <= high:
            raise TraceError(f"{self.at}: {what} is {cell[:40]}, outside {low:g}..{high:g}", _UNKNOWN)
        return value

    def flag(self, column: str) -> bool | None:
        cell = self.cells.get(column, "")
        if cell not in ("", "0", "1"):
            raise TraceError(f"{self.at}: {column} is {cell[:40]!r}, not 0 or 1", _UNKNOWN)
        return cell == "1" if cell else None

    def rails(self) -> dict[str, float]:
        rails: dict[str, float] = {}
        for pair in filter(None, self.cells.get("rails_mw", "").split(";")):
            rail, equals, cell = pair.partition("=")
            if not equals or not rail.strip():
                raise TraceError(f"{self.at}: rails_mw holds {pair[:40]!r}", _RAILS)
            rails[rail.strip()] = self.parse(f"rail {rail.strip()[:40]}", cell.strip(), 0.0, _LARGEST)
        return rails

    def work(self) -> Work | None:
        arrivals_per_s, waiting = self.number("arrivals_per_s"), self.number("waiting")
        if arrivals_per_s is None and waiting is None:
            return None
        if waiting is not None and not waiting.is_integer():
            raise TraceError(f"{self.at}: waiting is {waiting:g}, not a whole number", "it counts requests")
        return Work(arrivals_per_s=arrivals_per_s, waiting=None if waiting is None else int(waiting))
