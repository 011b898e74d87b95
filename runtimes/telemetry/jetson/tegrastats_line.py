"""One line of tegrastats, of any generation.

    RAM 534/3964MB (lfb 98x4MB) ... CPU [16%@204,off,...] ... GR3D_FREQ 0%@76 ... CPU@36.5C ... POM_5V_IN 1022/1022
    05-17-2026 10:00:33 RAM 4280/125773MB ... GR3D_FREQ @[0,0,0] ... tj@36.031C ... VDD_GPU 0mW/0mW
    09-01-2026 09:25:18 RAM 5739/7546MB ... GR3D_FREQ 33% cpu@50C/50C ... VDD_IN 9761mW/9761mW/9761mW

What makes it a trap: a load without its `%` is unknown; a gated zone is left out or says -256; the newest releases add
a second temperature and a third power; rails are called `GPU` and `CPU` on an AGX Xavier, like other fields; without
privileges rails are missing; the last line of a dying tegrastats is cut, so that `RAM 534/3964MB` may end as
`RAM 534/39`, which looks like a rail. A field counts only where its own end is seen: whatever is cut off a line, the
fields found in the rest are those of the whole line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from nsn_edge.runtimes.telemetry.base import Reading
from nsn_edge.runtimes.telemetry.jetson.rails import NOT_CONNECTED, board_power_mw, rail_power_mw
from nsn_edge.runtimes.telemetry.zones import hottest_of_best, is_usable

LONGEST_LINE = 8192
"""Characters. Real lines have some 500; what is longer is not one."""

_BEGIN = re.compile(r"\s*(?:(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d)\s+)?RAM \d{1,7}/\d{1,7}MB(?=\s|$)", re.ASCII)
_CORES = re.compile(r"(?<!\S)(?:CPU|cpu) \[([^\[\]]*)\](?:@(\d{1,5})(?=\s))?", re.ASCII)
_CORE_CLOCK = re.compile(r"\d{1,3}%@(\d{1,5})", re.ASCII)
_GPU = re.compile(r"(?<!\S)GR3D(?:_FREQ)? (?:(\d{1,3})%)?(?:@(?:(\d{1,5})|\[([\d,]{1,80})\]))?(?=\s)", re.ASCII)
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w-]*)@(-?\d{1,3}(?:\.\d{1,6})?)C(?=[\s/]|$)", re.ASCII)
_RAIL = re.compile(
    r"(?<!\S)([A-Za-z]\w*) (-?\d{1,7})(?:mW)?/-?\d{1,7}(?:mW)?(?:/-?\d{1,7}(?:mW)?)?(?=\s|$)",
    re.ASCII,
)

_NO_RAILS = frozenset({"RAM", "SWAP", "IRAM", NOT_CONNECTED})
"""Cut before their unit, these fields look like rails."""

_ESTIMATES = frozenset({"thermal"})
"""`thermal@36.25C` is the fan's estimate (`thermal-fan-est`), not a sensor."""

_COLDEST_C, _HOTTEST_C = -60.0, 200.0  # outside, no silicon reports itself; -256 is a zone that is off
_FASTEST_MHZ = 10_000.0


@dataclass(frozen=True)
class TegrastatsLine:
    """What a line says; what it does not say is None or missing."""

    local_time: datetime | None = None
    """The device's wall clock, in a time zone that the line does not name."""
    cpu_mhz: float | None = None
    """Of the fastest core that is on."""
    gpu_load_pct: float | None = None
    """0..100."""
    gpu_mhz: float | None = None
    """Of the fastest GPU cluster; a gated one has none."""
    temperatures_c: Mapping[str, float] = field(default_factory=dict, hash=False)
    """By zone, of those of the chip that are on; never the PMIC's placeholder of 100."""
    rails_mw: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Power now by rail, not the average that stands beside it."""

    def reading(self, time_s: float, age_s: float = 0.0) -> Reading:
        """As telemetry.

        Args:
            time_s: monotonic seconds.
            age_s: how long ago the line came.
        """
        return Reading(
            time_s=time_s,
            temperature_c=hottest_of_best(self.temperatures_c),
            power_mw=board_power_mw(self.rails_mw),
            gpu_load_pct=self.gpu_load_pct,
            gpu_mhz=self.gpu_mhz,
            cpu_mhz=self.cpu_mhz,
            rails_mw=self.rails_mw,
            age_s=age_s,
        )


def parse_line(text: str) -> TegrastatsLine | None:
    """Read a line.

    Args:
        text: with its line break, if it has one: a field that only the line break ends counts as cut without it.

    Returns:
        None where this is no line of tegrastats, which begins with `RAM`, or with a date and `RAM`.
    """
    begin = _BEGIN.match(text) if len(text) <= LONGEST_LINE else None
    if begin is None:
        return None
    gpu_load_pct, gpu_mhz = _gpu(text)
    return TegrastatsLine(
        local_time=_local_time(begin[1]),
        cpu_mhz=_cpu_mhz(text),
        gpu_load_pct=gpu_load_pct,
        gpu_mhz=gpu_mhz,
        temperatures_c=_temperatures_c(text),
        rails_mw=_rails_mw(text),
    )


def _local_time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.strptime(text, "%m-%d-%Y %H:%M:%S")
    except ValueError:  # the 31st of February, or the year 0
        return None


def _cpu_mhz(text: str) -> float | None:
    cores = _CORES.search(text)
    if cores is None:
        return None
    clocks = [float(clock[1]) for core in cores[1].split(",") if (clock := _CORE_CLOCK.fullmatch(core.strip()))]
    if cores[2]:  # one clock for all, on the oldest
        clocks.append(float(cores[2]))
    return _fastest(clocks)


def _gpu(text: str) -> tuple[float | None, float | None]:
    """Load in percent and clock in MHz."""
    gpu = _GPU.search(text)
    if gpu is None:
        return None, None
    load_pct = float(gpu[1]) if gpu[1] else None
    clocks = [gpu[2]] if gpu[2] else (gpu[3] or "").split(",")
    return load_pct if load_pct is None or load_pct <= 100.0 else None, _fastest(
        [float(clock) for clock in clocks if clock and len(clock) <= 5]
    )


def _fastest(clocks_mhz: list[float]) -> float | None:
    return max((clock for clock in clocks_mhz if 0.0 < clock <= _FASTEST_MHZ), default=None)


def _temperatures_c(text: str) -> dict[str, float]:
    """The first mention of each zone counts: in `cpu@50C/51C` that is the temperature now."""
    found: dict[str, float] = {}
    for zone, figure in _TEMPERATURE.findall(text):
        if is_usable(zone) and zone not in _ESTIMATES and _COLDEST_C <= float(figure) <= _HOTTEST_C:
            found.setdefault(zone, float(figure))
    return found


def _rails_mw(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, figure in _RAIL.findall(text):
        power_mw = rail_power_mw(float(figure))
        if power_mw is not None and name not in _NO_RAILS:
            found.setdefault(name, power_mw)
    return found
