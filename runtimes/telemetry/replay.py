"""A telemetry trace: rows of readings from a CSV file, to be simulated or replayed as a source.

    # lines that begin with a hash are comments
    time_s,battery_pct,on_mains,temperature_c,power_mw
    0,80,1,45.5,
    5,80,0,46.0,7400

| column                | meaning                                        | required |
|-----------------------|------------------------------------------------|----------|
| `time_s`              | seconds, never falling; never empty            | yes      |
| `battery_pct`         | 0..100                                         | yes      |
| `on_mains`            | 0 or 1                                         | yes      |
| `temperature_c`       | degrees C                                      | yes      |
| `temperature_limit_c` | where the device begins to throttle, degrees C | no       |
| `throttling`          | 0 or 1                                         | no       |
| `power_mw`            | milliwatts                                     | no       |

An empty cell is an unknown value. Other columns are left alone. A log of jtop is recognised by its header (`jtop_log`),
one of tegrastats by its first line (`jetson.tegrastats_log`).
"""

from __future__ import annotations

import bisect
import csv
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nsn_edge.errors import TraceError
from nsn_edge.runtimes.telemetry import jtop_log
from nsn_edge.runtimes.telemetry.base import Clock, Reading
from nsn_edge.runtimes.telemetry.jetson import tegrastats_log

REQUIRED_COLUMNS = ("time_s", "battery_pct", "on_mains", "temperature_c")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST = 1e12
_RANGES = {
    "time_s": (-_LARGEST, _LARGEST),
    "battery_pct": (0.0, 100.0),
    "temperature_c": (-100.0, 250.0),
    "temperature_limit_c": (-100.0, 250.0),
    "power_mw": (0.0, _LARGEST),
}


@dataclass(frozen=True)
class TelemetryTrace:
    """Readings in the order of time."""

    name: str
    """For people: the file's name."""
    readings: tuple[Reading, ...]
    """At least one; `time_s` never falls."""
    lines: tuple[int, ...] = field(default=(), compare=False)
    """Of the file, one per reading, for messages; empty for a trace that is from no file."""

    def __post_init__(self) -> None:
        if not self.readings:
            raise TraceError(f"{self.name} holds no readings", "a trace has at least one row below its header")

    def where(self, index: int) -> str:
        """The name and line of a reading, for messages."""
        return f"{self.name}, line {self.lines[index]}" if self.lines else f"{self.name}, reading {index + 1}"

    @property
    def duration_s(self) -> float:
        """From the first reading to the last."""
        return self.readings[-1].time_s - self.readings[0].time_s


class ReplaySource:
    """A trace as a telemetry source: the row that is due by the clock, counted from the first `read()`.

    The last row stands as long as the one before it did; then everything is unknown, as after a sensor's death.
    """

    def __init__(self, trace: TelemetryTrace, clock: Clock = time.monotonic) -> None:
        self._readings = trace.readings
        self._times = [reading.time_s for reading in trace.readings]
        self._clock = clock
        self._started_s: float | None = None

    def read(self) -> Reading:
        """The row due now, with the clock's time."""
        now = self._clock()
        if self._started_s is None:
            self._started_s = now
        trace_s = self._times[0] + now - self._started_s
        last_step_s = self._times[-1] - self._times[-2] if len(self._times) > 1 else 0.0
        if trace_s > self._times[-1] + last_step_s:
            return Reading(now)
        return replace(self._readings[max(bisect.bisect_right(self._times, trace_s) - 1, 0)], time_s=now)


def load_trace(path: Path | str) -> TelemetryTrace:
    """Read a trace in this module's format, or a log of jtop or tegrastats.

    Raises:
        TraceError: the file is missing, empty or not CSV, lacks a column, or has a cell that is not a number, lies out
            of range or takes time back. It names the file, the line and the column.
    """
    path = Path(path)
    if tegrastats_log.is_tegrastats_log(path):
        return load_tegrastats_log(path)
    (header_line, header), *body = _read_rows(path)
    if repeated := [column for column in header if header.count(column) > 1]:
        raise TraceError(f"{path}, line {header_line}: two columns are named {repeated[0]!r}", "name each column once")
    if not body:
        raise TraceError(f"{path} has a header and no rows", "a trace has at least one row below its header")
    for line, cells in body:
        if len(cells) != len(header):
            raise TraceError(
                f"{path}, line {line}: {len(cells)} cells under a header of {len(header)}",
                "was the file cut? an unknown value is an empty cell",
            )
    lines = tuple(line for line, _ in body)
    table = [(line, dict(zip(header, cells, strict=True))) for line, cells in body]
    if jtop_log.is_jtop_header(header):
        return TelemetryTrace(path.name, jtop_log.parse(path, table), lines)
    if missing := [column for column in REQUIRED_COLUMNS if column not in header]:
        raise TraceError(
            f"{path}, line {header_line}: the trace lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
            f"it has {', '.join(header)}; leave the cells of an unknown value empty",
        )
    return TelemetryTrace(path.name, _readings([_Row(f"{path}, line {line}", cells) for line, cells in table]), lines)


def load_tegrastats_log(path: Path | str, interval_s: float = 1.0) -> TelemetryTrace:
    """Read a log of tegrastats, of any generation.

    Args:
        path: what `tegrastats --logfile` wrote.
        interval_s: between lines that do not tell their time, as JetPack 4's do not.

    Raises:
        TraceError: the file is missing, or a line in it is none of tegrastats. It names the file and the line.
    """
    path = Path(path)
    lines, readings = zip(*tegrastats_log.parse(path, interval_s), strict=True)
    return TelemetryTrace(path.name, readings, lines)


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and stripped cells, header first, without blank lines and comments."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}", "name a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} is not a CSV text file: {error}", "name a CSV file") from error
    rows = [(line, cells) for line, cells in lines if any(cells) and not cells[0].startswith("#")]
    if not rows:
        raise TraceError(f"{path} is empty", f"a trace begins with the header {','.join(REQUIRED_COLUMNS)}")
    return rows


@dataclass(frozen=True)
class _Row:
    """A row's cells by column, and where it stands, for the messages."""

    at: str
    cells: Mapping[str, str]

    def number(self, column: str) -> float | None:
        cell = self.cells.get(column, "")
        if not cell:
            return None
        if not _NUMBER.fullmatch(cell):
            raise TraceError(f"{self.at}: {column} is {cell[:40]!r}, not a number", "an unknown value is an empty cell")
        value = float(cell)
        low, high = _RANGES[column]
        if not low <= value <= high:
            raise TraceError(
                f"{self.at}: {column} is {cell[:40]}, outside {low:g}..{high:g}", "an unknown value is an empty cell"
            )
        return value

    def flag(self, column: str) -> bool | None:
        cell = self.cells.get(column, "")
        if cell not in ("", "0", "1"):
            raise TraceError(f"{self.at}: {column} is {cell[:40]!r}, not 0 or 1", "an unknown value is an empty cell")
        return cell == "1" if cell else None


def _readings(rows: Sequence[_Row]) -> tuple[Reading, ...]:
    readings: list[Reading] = []
    for row in rows:
        time_s = row.number("time_s")
        if time_s is None:
            raise TraceError(f"{row.at}: time_s is empty", "every row needs its time in seconds")
        if readings and time_s < readings[-1].time_s:
            raise TraceError(
                f"{row.at}: time_s runs backwards from {readings[-1].time_s:g} to {time_s:g}", "sort the rows by time"
            )
        readings.append(
            Reading(
                time_s=time_s,
                battery_pct=row.number("battery_pct"),
                on_mains=row.flag("on_mains"),
                temperature_c=row.number("temperature_c"),
                temperature_limit_c=row.number("temperature_limit_c"),
                throttling=row.flag("throttling"),
                power_mw=row.number("power_mw"),
            )
        )
    return tuple(readings)
