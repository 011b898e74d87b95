"""A log that jtop (jetson-stats) wrote on a Jetson, read as telemetry.

What is taken: `System-Time` (the time of day, which may pass midnight), `<zone>-CURR_TEMP` of the best zone that is on
(an offline zone says -256 or -256000), the lowest `<zone>-SW_THROTTLING_TEMP`, every rail's `<rail>-IN_POWER` by its
name, and the board's power where one of them is its input (`VDD_IN`): the rails of an AGX board do not add up to that.
Besides `IGPU<n>-CURR_LOAD` (percent), `IGPU<n>-CURR_FREQ` and `CPU<n>-CURR_FREQ` (MHz), of the busiest and the fastest,
and `NVPMODEL-POWER_MODE`. Such a log tells nothing of a battery.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nsn_edge.errors import TraceError
from nsn_edge.runtimes.telemetry.base import Reading
from nsn_edge.runtimes.telemetry.jetson.rails import board_power_mw, rail_power_mw
from nsn_edge.runtimes.telemetry.sysfs import parse_number
from nsn_edge.runtimes.telemetry.zones import hottest_of_best, is_usable

_TIME = "System-Time"
_TEMPERATURE = "-CURR_TEMP"
_LIMIT = "-SW_THROTTLING_TEMP"
_RAIL = "-IN_POWER"
_MODE = "NVPMODEL-POWER_MODE"
_GPU_LOAD = re.compile(r"IGPU\d+-CURR_LOAD", re.ASCII)
_GPU_CLOCK = re.compile(r"IGPU\d+-CURR_FREQ", re.ASCII)
_CPU_CLOCK = re.compile(r"CPU\d+-CURR_FREQ", re.ASCII)
_FASTEST_MHZ = 10_000.0
_DAY_S = 86400.0


def is_jtop_header(header: Sequence[str]) -> bool:
    """Whether these are the columns of a jtop log."""
    return _TIME in header and any(column.endswith(_TEMPERATURE) for column in header)


def parse(path: Path, table: Sequence[tuple[int, Mapping[str, str]]]) -> tuple[Reading, ...]:
    """The rows as readings, with times from 0.

    Args:
        path: for the messages.
        table: line number and cells by column, at least one row.

    Raises:
        TraceError: a row's time of day is not readable.
    """
    readings: list[Reading] = []
    start_s = previous_s = _time_of_day_s(path, *table[0])
    for line, row in table:
        time_s = _time_of_day_s(path, line, row)
        while time_s < previous_s - _DAY_S / 2:  # past midnight
            time_s += _DAY_S
        if time_s < previous_s:
            raise TraceError(f"{path}, line {line}: {_TIME} runs backwards to {row[_TIME]}", "sort the rows by time")
        previous_s = time_s
        rails_mw = _rails_mw(row)
        readings.append(
            Reading(
                time_s=time_s - start_s,
                temperature_c=_temperature_c(row),
                temperature_limit_c=_limit_c(row),
                power_mw=board_power_mw(rails_mw),
                gpu_load_pct=_largest(row, _GPU_LOAD, 0.0, 100.0),
                gpu_mhz=_largest(row, _GPU_CLOCK, 1.0, _FASTEST_MHZ),
                cpu_mhz=_largest(row, _CPU_CLOCK, 1.0, _FASTEST_MHZ),
                power_mode=mode if (mode := row.get(_MODE)) not in ("", "-") else None,
                rails_mw=rails_mw,
            )
        )
    return tuple(readings)


def _time_of_day_s(path: Path, line: int, row: Mapping[str, str]) -> float:
    match = re.fullmatch(r"(\d{1,2}):(\d{2}):(\d{2}(?:\.\d+)?)", row[_TIME], re.ASCII)
    if match is None:
        raise TraceError(f"{path}, line {line}: {_TIME} is {row[_TIME]!r}, not HH:MM:SS", "log with jtop's own logger")
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600.0 + int(minutes) * 60.0 + float(seconds)


def _rails_mw(row: Mapping[str, str]) -> dict[str, float]:
    rails = {
        column.removesuffix(_RAIL): rail_power_mw(parse_number(cell))
        for column, cell in row.items()
        if column.endswith(_RAIL)
    }
    return {rail: power_mw for rail, power_mw in rails.items() if power_mw is not None}


def _largest(row: Mapping[str, str], columns: re.Pattern[str], low: float, high: float) -> float | None:
    """The largest believable number in the columns so named."""
    numbers = [parse_number(cell) for column, cell in row.items() if columns.fullmatch(column)]
    return max((number for number in numbers if number is not None and low <= number <= high), default=None)


def _by_zone(row: Mapping[str, str], suffix: str) -> dict[str, float]:
    values = {
        column.removesuffix(suffix): parse_number(cell) for column, cell in row.items() if column.endswith(suffix)
    }
    return {zone: value for zone, value in values.items() if value is not None and is_usable(zone)}


def _temperature_c(row: Mapping[str, str]) -> float | None:
    return hottest_of_best(_by_zone(row, _TEMPERATURE))


def _limit_c(row: Mapping[str, str]) -> float | None:
    return min((limit for limit in _by_zone(row, _LIMIT).values() if limit > 0.0), default=None)
