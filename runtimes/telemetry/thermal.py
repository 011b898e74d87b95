"""Temperature and throttling on Linux: `/sys/class/thermal/{thermal_zone*,cooling_device*}`, millidegrees C.

The best kind of zone that answers is used (see `zones`), so gated zones behind a working `tj` are never asked.
https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-thermal
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nsn_edge.runtimes.telemetry.base import Clock, Reading
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles
from nsn_edge.runtimes.telemetry.zones import is_aggregate, is_usable, preference, throttling_limit_c

_COLDEST_C, _HOTTEST_C = -60.0, 200.0  # outside, no silicon reports itself

_Zone = tuple[str, Path]


class LinuxThermal:
    """The chip's temperature, the limit its own trip points set, and whether it throttles now."""

    def __init__(self, root: Path = Path("/"), clock: Clock = time.monotonic) -> None:
        """
        Args:
            root: where `sys/` is.
            clock: monotonic seconds.
        """
        self._folder = root / "sys/class/thermal"
        self._clock = clock
        self._files = SensorFiles(clock)
        self._trips: dict[_Zone, list[tuple[str, float]]] = {}

    def read(self) -> Reading:
        """Temperature, limit and throttling; None for each that the device does not tell."""
        zones = self._zones()
        temperature_c, source = self._hottest_of_best(zones)
        limit_c = None
        if source is not None:
            relevant = zones if is_aggregate(source[0]) else [source]
            limit_c = throttling_limit_c([trip for zone in relevant for trip in self._trip_points(zone)])
        return Reading(
            time_s=self._clock(),
            temperature_c=temperature_c,
            temperature_limit_c=limit_c,
            throttling=self._throttling(),
        )

    @property
    def refusals(self) -> Mapping[Path, int]:
        """Files that did not answer lately, and with which error."""
        return self._files.refusals

    def _zones(self) -> list[_Zone]:
        """Usable zones, the best kind first."""
        typed = [(self._files.text(path / "type"), path) for path in self._files.folders(self._folder, "thermal_zone")]
        zones = [(zone_type, path) for zone_type, path in typed if zone_type is not None and is_usable(zone_type)]
        return sorted(zones, key=lambda zone: preference(zone[0]))

    def _hottest_of_best(self, zones: Sequence[_Zone]) -> tuple[float | None, _Zone | None]:
        for _, equals in itertools.groupby(zones, key=lambda zone: preference(zone[0])):
            answers: list[tuple[float, _Zone]] = []
            for zone in equals:
                milli_c = self._files.number(zone[1] / "temp")
                if milli_c is not None and _COLDEST_C <= milli_c / 1e3 <= _HOTTEST_C:
                    answers.append((milli_c / 1e3, zone))
            if answers:
                return max(answers)
        return None, None

    def _trip_points(self, zone: _Zone) -> list[tuple[str, float]]:
        """A zone's trip points in degrees C. They are the board's design, so they are read until all have answered."""
        if zone in self._trips:
            return self._trips[zone]
        read = []
        for number in itertools.count():
            kind = self._files.text(zone[1] / f"trip_point_{number}_type")
            if kind is None:
                break
            read.append((kind, self._files.number(zone[1] / f"trip_point_{number}_temp")))
        trips = [(kind, milli_c / 1e3) for kind, milli_c in read if milli_c is not None]
        if len(trips) == len(read):
            self._trips[zone] = trips
        return trips

    def _throttling(self) -> bool | None:
        """Jetson's `*-throttle-alert` cooling devices are at work exactly while the chip is slowed down."""
        states = [
            self._files.number(device / "cur_state")
            for device in self._files.folders(self._folder, "cooling_device")
            if (self._files.text(device / "type") or "").endswith("-throttle-alert")
        ]
        if any(state is not None and state > 0.0 for state in states):
            return True
        return False if states and None not in states else None
