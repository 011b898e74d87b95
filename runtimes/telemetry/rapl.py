"""Energy of the processor: `/sys/class/powercap/intel-rapl:<n>/{name,energy_uj,max_energy_range_uj}`, in microjoules.

Intel's RAPL counters, which AMD's processors have under the same name. One zone per package (`package-0`), on some
laptops one for the whole platform (`psys`); the zones below a package (`intel-rapl:0:0`) are part of it and not asked.
The counters wrap, at 262 kJ on many processors: after 40 minutes at 100 W. Since Linux 5.10 only root may read them,
as they tell about what others compute (CVE-2020-8694).
https://www.kernel.org/doc/html/latest/power/powercap/powercap.html
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

from nsn_edge.runtimes.telemetry.base import Clock, Reading
from nsn_edge.runtimes.telemetry.energy import EnergyMeter
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

FOLDER = "sys/class/powercap"

_TOP_ZONE = re.compile(r"intel-rapl:\d+", re.ASCII)
_LARGEST_W = 2000.0
"""No package draws more. A counter that fell by more than that explains did not wrap: it began anew after a suspend."""

_SHORTEST_S = 0.05
"""The counters move every millisecond: over less than this a power would be noise."""


class _Zone:
    def __init__(self) -> None:
        self.meter = EnergyMeter(_LARGEST_W)
        self.power_mw: float | None = None
        self._since: tuple[float, float] | None = None
        """When the power was last taken, and the joules until then."""

    def take(self, value_j: float, now_s: float, wraps_at_j: float | None) -> None:
        self.meter.add(value_j, now_s, wraps_at_j)
        if self._since is None:
            self._since = now_s, self.meter.total_j
        elif now_s - self._since[0] >= _SHORTEST_S:
            self.power_mw = (self.meter.total_j - self._since[1]) / (now_s - self._since[0]) * 1e3
            self._since = now_s, self.meter.total_j


class LinuxRapl:
    """What the processor's packages draw."""

    def __init__(self, root: Path = Path("/"), clock: Clock = time.monotonic) -> None:
        """
        Args:
            root: where `sys/` is.
            clock: monotonic seconds.
        """
        self._folder = root / FOLDER
        self._clock = clock
        self._files = SensorFiles(clock)
        self._zones: dict[str, _Zone] = {}

    def read(self) -> Reading:
        """`energy_j` of all packages together since the first reading, or of the platform where no package is known;
        and from the second reading on the mean power since the one before, by zone, as rails.

        A package that does not answer makes the sum unknown. The power is no `power_mw`: that is the device's.
        """
        now = self._clock()
        answered: dict[str, _Zone] = {}
        silent = False
        for folder in self._files.folders(self._folder, "intel-rapl:"):
            if not _TOP_ZONE.fullmatch(folder.name):
                continue
            name = self._files.text(folder / "name") or folder.name
            value_uj = self._files.number(folder / "energy_uj")
            if value_uj is None or value_uj < 0.0:
                silent = silent or _is_package(name)
                continue
            range_uj = self._files.number(folder / "max_energy_range_uj")
            zone = answered[name] = self._zones.setdefault(name, _Zone())
            zone.take(value_uj / 1e6, now, range_uj / 1e6 if range_uj is not None and range_uj > 0.0 else None)
        counted = [zone for name, zone in answered.items() if _is_package(name)] or list(answered.values())
        return Reading(
            now,
            energy_j=sum(zone.meter.total_j for zone in counted) if counted and not silent else None,
            rails_mw={name: zone.power_mw for name, zone in answered.items() if zone.power_mw is not None},
        )

    @property
    def refusals(self) -> Mapping[Path, int]:
        """Files that did not answer lately, and with which error."""
        return self._files.refusals


def _is_package(name: str) -> bool:
    return name.startswith("package")
