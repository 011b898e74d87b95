"""A telemetry trace: rows of readings from a file, to be simulated or replayed as a source.

    # lines that begin with a hash are comments
    time_s,battery_pct,on_mains,temperature_c,power_mw
    0,80,1,45.5,
    5,80,0,46.0,7400

`trace_columns` says what a row may hold. Logs of other tools are recognised: of jtop (`jtop_log`) and nvidia-smi
(`nvidia_smi_log`) by their headers, of tegrastats by its first line (`jetson.tegrastats_log`).

Where rows are missing, a row stands for `MAX_AGE_S`, or three steps of the trace if those are longer; then everything
is unknown until the next row, as it would have been on the device.
"""

from __future__ import annotations

import bisect
import csv
import io
import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from nsn_edge.errors import TraceError
from nsn_edge.runtimes.telemetry import jtop_log, nvidia_smi_log
from nsn_edge.runtimes.telemetry.base import Clock, Reading
from nsn_edge.runtimes.telemetry.jetson import tegrastats_log
from nsn_edge.runtimes.telemetry.trace_columns import REQUIRED_COLUMNS, check_units, parse_rows

MAX_AGE_S = 10.0
"""How long a reading may be used on a device, by default."""
_STEPS = 3.0


@dataclass(frozen=True)
class TelemetryTrace:
    """Readings in the order of time."""

    name: str
    """For people: the file's name."""
    readings: tuple[Reading, ...]
    """At least one; `time_s` never falls."""
    lines: tuple[int, ...] = field(default=(), compare=False)
    """Of the file, one per reading, for messages; empty for a trace that is from no file."""

    gaps: tuple[tuple[float, float], ...] = field(default=(), compare=False)
    """Where rows were missing: from when on everything is unknown, and until when."""

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
    """Read a trace in this project's format, or a log of jtop, nvidia-smi or tegrastats.

    A last line that was cut, as by a kill, is left out: one without its end that holds fewer cells than the header.

    Raises:
        TraceError: the file is missing, empty or not CSV, lacks a column, or has a cell that is not a number, lies out
            of range or takes time back. It names the file, the line and the column.
    """
    path = Path(path)
    if tegrastats_log.is_tegrastats_log(path):
        return load_tegrastats_log(path)
    (header_line, header), *body = _read_rows(path)
    if nvidia_smi_log.is_nvidia_smi_row(header):
        raise TraceError(
            f"{path}, line {header_line}: a log of nvidia-smi without its header", "log it without noheader"
        )
    if repeated := [column for column in header if header.count(column) > 1]:
        raise TraceError(f"{path}, line {header_line}: two columns are named {repeated[0]!r}", "name each column once")
    if not body:
        raise TraceError(f"{path} has a header and no rows", "a trace has at least one row below its header")
    if nvidia_smi_log.is_nvidia_smi_header(header):
        return _trace(path, nvidia_smi_log.parse(path, (header_line, header), body))
    for line, cells in body:
        if len(cells) != len(header):
            raise TraceError(
                f"{path}, line {line}: {len(cells)} cells under a header of {len(header)}",
                "was the file cut? an unknown value is an empty cell",
            )
    table = [(line, dict(zip(header, cells, strict=True))) for line, cells in body]
    if jtop_log.is_jtop_header(header):
        return _trace(path, zip((line for line, _ in table), jtop_log.parse(path, table), strict=True))
    check_units(f"{path}, line {header_line}", header)
    if missing := [column for column in REQUIRED_COLUMNS if column not in header]:
        raise TraceError(
            f"{path}, line {header_line}: the trace lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
            f"it has {', '.join(header)}; leave the cells of an unknown value empty",
        )
    readings = parse_rows([(f"{path}, line {line}", cells) for line, cells in table])
    return _trace(path, zip((line for line, _ in table), readings, strict=True))


def load_tegrastats_log(path: Path | str, interval_s: float = 1.0) -> TelemetryTrace:
    """Read a log of tegrastats, of any generation.

    Args:
        path: what `tegrastats --logfile` wrote.
        interval_s: between lines that do not tell their time, as JetPack 4's do not.

    Raises:
        TraceError: the file is missing, or a line in it is none of tegrastats. It names the file and the line.
    """
    path = Path(path)
    return _trace(path, tegrastats_log.parse(path, interval_s))


def _trace(path: Path, rows: Iterable[tuple[int, Reading]]) -> TelemetryTrace:
    """The trace of these rows, with a reading that knows nothing where a gap begins; it bears the line that ends it."""
    rows = list(rows)
    steps_s = [after.time_s - before.time_s for (_, before), (_, after) in itertools.pairwise(rows)]
    stands_s = max(MAX_AGE_S, _STEPS * statistics.median([step for step in steps_s if step > 0.0] or [0.0]))
    filled, gaps = rows[:1], []
    for (_, before), (line, after) in itertools.pairwise(rows):
        begin_s = before.time_s + stands_s
        if after.time_s > begin_s:
            filled.append((line, Reading(begin_s)))
            gaps.append((begin_s, after.time_s))
        filled.append((line, after))
    lines, readings = zip(*filled, strict=True)
    return TelemetryTrace(path.name, readings, lines, tuple(gaps))


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and stripped cells, header first, without blank lines, comments, and a last line that was cut."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            text = stream.read()
        reader = csv.reader(io.StringIO(text, newline=""))
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}", "name a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} is not a CSV text file: {error}", "name a CSV file") from error
    rows = [(line, cells) for line, cells in lines if any(cells) and not cells[0].startswith("#")]
    if not rows:
        raise TraceError(f"{path} is empty", f"a trace begins with the header {','.join(REQUIRED_COLUMNS)}")
    if len(rows) > 2 and not text.endswith(("\n", "\r")) and len(rows[-1][1]) < len(rows[0][1]):
        del rows[-1]
    return rows
