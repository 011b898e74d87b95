"""A log that jtop (jetson-stats) wrote on a Jetson, read as telemetry.

What is taken: `System-Time` (the time of day, which may pass midnight), `<zone>-CURR_TEMP` of the best zone that is on
(an offline zone says -256 or -256000), the lowest `<zone>-SW_THROTTLING_TEMP`, and `VDD_IN-IN_POWER` where the board
has that rail; the rails of an AGX board do not add up to its input power, so there the power is unknown. Every rail's
`<rail>-IN_POWER` is kept by its name. Such a log tells nothing of a battery.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nsn_edge.errors import TraceError
from nsn_edge.runtimes.telemetry.base import Reading
from nsn_edge.runtimes.telemetry.sysfs import parse_number
from nsn_edge.runtimes.telemetry.zones import is_usable, preference

_TIME = "System-Time"
_TEMPERATURE = "-CURR_TEMP"
_LIMIT = "-SW_THROTTLING_TEMP"
_RAIL = "-IN_POWER"
_BOARD_POWER = "VDD_IN-IN_POWER"
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
        power_mw = parse_number(row.get(_BOARD_POWER))
        readings.append(
            Reading(
                time_s=time_s - start_s,
                temperature_c=_temperature_c(row),
                temperature_limit_c=_limit_c(row),
                power_mw=max(power_mw, 0.0) if power_mw is not None else None,
                rails_mw=_rails_mw(row),
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
    """A rail that reads a little below zero is one without load."""
    rails = {column.removesuffix(_RAIL): parse_number(cell) for column, cell in row.items() if column.endswith(_RAIL)}
    return {rail: max(power_mw, 0.0) for rail, power_mw in rails.items() if power_mw is not None}


def _by_zone(row: Mapping[str, str], suffix: str) -> dict[str, float]:
    values = {
        column.removesuffix(suffix): parse_number(cell) for column, cell in row.items() if column.endswith(suffix)
    }
    return {zone: value for zone, value in values.items() if value is not None and is_usable(zone)}


def _temperature_c(row: Mapping[str, str]) -> float | None:
    zones = _by_zone(row, _TEMPERATURE)
    best = min(map(preference, zones), default=None)
    return max((value for zone, value in zones.items() if preference(zone) == best), default=None)


def _limit_c(row: Mapping[str, str]) -> float | None:
    return min((limit for limit in _by_zone(row, _LIMIT).values() if limit > 0.0), default=None)
