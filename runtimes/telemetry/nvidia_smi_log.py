"""A log of nvidia-smi, read as telemetry.

    nvidia-smi --query-gpu=timestamp,temperature.gpu,power.draw,utilization.gpu,clocks.sm --format=csv -l 1 > log.csv

With units in the cells or without (`nounits`), but with its header. What a GPU does not tell is `[N/A]`, `[Not
Supported]`, `[Unknown Error]` or `[GPU is lost]`: unknown. Of several GPUs the first one's rows are taken. The clock
may be set while it logs: where it runs backwards, time goes on by the step before.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nsn_edge.errors import TraceError
from nsn_edge.runtimes.telemetry.base import Reading

_TIME = "timestamp"
_STAMP = re.compile(r"(\d{4})/(\d{2})/(\d{2}) (\d{2}):(\d{2}):(\d{2}(?:\.\d+)?)", re.ASCII)
_HEADING = re.compile(r"([a-z_.0-9]+)(?: \[(.+)\])?", re.ASCII)
_CELL = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([A-Za-z%]*)", re.ASCII)
_UNKNOWN = re.compile(r"\[.*\]|N/A|ERR!|Unknown Error|", re.ASCII)
_IDENTITY = ("uuid", "gpu_uuid", "pci.bus_id", "gpu_bus_id", "index", "serial", "gpu_serial")

_HEAT, _MARGIN = ("temperature.gpu",), ("temperature.gpu.tlimit",)
_POWER = ("power.draw", "power.draw.average", "power.draw.instant")
_LOAD = ("utilization.gpu",)
_CLOCK = ("clocks.current.sm", "clocks.sm", "clocks.current.graphics", "clocks.gr")
_UNITS = {**dict.fromkeys(_HEAT + _MARGIN, ""), **dict.fromkeys(_POWER, "W")} | {
    **dict.fromkeys(_LOAD, "%"),
    **dict.fromkeys(_CLOCK, "MHz"),
}
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_SLOWDOWNS = tuple(
    f"{prefix}.{name}"
    for prefix in ("clocks_event_reasons", "clocks_throttle_reasons")
    for name in ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
)
_SLOWED = 0x08 | 0x20 | 0x40 | 0x80
_KNOWN = {*_UNITS, *_REASONS, *_SLOWDOWNS}
_HINT = "log it with: nvidia-smi --query-gpu=timestamp,temperature.gpu,power.draw --format=csv -l 1"


def is_nvidia_smi_header(header: Sequence[str]) -> bool:
    """Whether these are the columns of such a log."""
    return "time_s" not in header and any(_name(heading) in _KNOWN for heading in header)


def is_nvidia_smi_row(cells: Sequence[str]) -> bool:
    """Whether this is a row of such a log: its time stands first."""
    return _STAMP.fullmatch(cells[0]) is not None


def parse(
    path: Path, header: tuple[int, Sequence[str]], body: Sequence[tuple[int, Sequence[str]]]
) -> list[tuple[int, Reading]]:
    """The rows as readings, with times from 0, each with its line.

    Lines of another length are messages of nvidia-smi or a line that was cut; a log that was begun anew repeats its
    header. Both are skipped, and what is missing then is a gap.

    Args:
        path: for the messages.
        header: its line, and the headings.
        body: lines and cells.

    Raises:
        TraceError: there is no time, or a cell or a unit makes no sense.
    """
    header_line, headings = header
    names = [_name(heading) for heading in headings]
    if _TIME not in names:
        raise TraceError(f"{path}, line {header_line}: the log lacks the column {_TIME}", _HINT)
    for name, heading in zip(names, headings, strict=True):
        unit = _unit(heading)
        if unit is not None and _UNITS.get(name, unit) != unit:
            raise TraceError(
                f"{path}, line {header_line}: {name} is in {unit}, not in {_UNITS[name] or 'degrees C'}", _HINT
            )
    rows = [
        (line, dict(zip(names, cells, strict=True)))
        for line, cells in body
        if len(cells) == len(names) and list(cells) != list(headings)
    ]
    identity = next((name for name in _IDENTITY if name in names), None)
    if identity is not None and rows:
        first = rows[0][1][identity]
        rows = [row for row in rows if row[1][identity] == first]
    if not rows:
        raise TraceError(f"{path} has a header and no rows", _HINT)
    times_s = _times_s([_stamp_s(path, line, cells) for line, cells in rows])
    return [
        (line, _Row(f"{path}, line {line}", cells).reading(time_s))
        for (line, cells), time_s in zip(rows, times_s, strict=True)
    ]


def _name(heading: str) -> str:
    match = _HEADING.fullmatch(heading)
    return match[1] if match else heading


def _unit(heading: str) -> str | None:
    match = _HEADING.fullmatch(heading)
    return match[2] if match else None


def _stamp_s(path: Path, line: int, cells: Mapping[str, str]) -> float:
    match = _STAMP.fullmatch(cells[_TIME])
    try:
        if match is None:
            raise ValueError
        year, month, day, hour, minute = (int(match[group]) for group in range(1, 6))
        # The time of some place: only differences are used, so any zone will do.
        moment = datetime.datetime(year, month, day, hour, minute, tzinfo=datetime.timezone.utc)
    except ValueError:
        raise TraceError(
            f"{path}, line {line}: {_TIME} is {cells[_TIME][:40]!r}, not YYYY/MM/DD HH:MM:SS", _HINT
        ) from None
    return moment.timestamp() + float(match[6])


def _times_s(stamps_s: Sequence[float]) -> list[float]:
    times_s, step_s = [0.0], 1.0
    for before_s, stamp_s in itertools.pairwise(stamps_s):
        step_s = stamp_s - before_s if stamp_s >= before_s else step_s
        times_s.append(times_s[-1] + step_s)
    return times_s


class _Row:
    def __init__(self, at: str, cells: Mapping[str, str]) -> None:
        self._at, self._cells = at, cells

    def reading(self, time_s: float) -> Reading:
        heat_c, margin_c = self._number(_HEAT), self._number(_MARGIN)
        power_w = self._number(_POWER)
        power_mw = None if power_w is None else max(power_w, 0.0) * 1e3
        return Reading(
            time_s,
            temperature_c=heat_c,
            temperature_limit_c=None if heat_c is None or margin_c is None else heat_c + margin_c,
            throttling=self._throttling(),
            power_mw=power_mw,
            gpu_load_pct=self._number(_LOAD),
            gpu_mhz=self._number(_CLOCK),
            rails_mw={} if power_mw is None else {f"gpu{self._cells.get('index', '0')}": power_mw},
        )

    def _number(self, names: Sequence[str]) -> float | None:
        """Of the first of these columns that knows one."""
        for name in names:
            cell = self._cells.get(name, "")
            if _UNKNOWN.fullmatch(cell):
                continue
            match = _CELL.fullmatch(cell)
            if match is None:
                raise TraceError(f"{self._at}: {name} is {cell[:40]!r}, not a number", "was the file changed?")
            if match[2] not in ("", _UNITS[name]):
                raise TraceError(f"{self._at}: {name} is in {match[2]}, not in {_UNITS[name] or 'degrees C'}", _HINT)
            return float(match[1])
        return None

    def _throttling(self) -> bool | None:
        for name in _REASONS:
            cell = self._cells.get(name, "")
            if re.fullmatch(r"0x[0-9a-fA-F]+", cell):
                return bool(int(cell, 16) & _SLOWED)
        states = [self._cells[name] for name in _SLOWDOWNS if name in self._cells]
        if "Active" in states:
            return True
        return False if states and all(state == "Not Active" for state in states) else None
