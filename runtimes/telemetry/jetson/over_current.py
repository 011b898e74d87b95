"""Whether the board's over-current protection acted: `/sys/class/hwmon/*/{name,oc1_event_cnt..oc3_event_cnt}`, the
chip named `soctherm_oc`. The counters hold all events since boot, so only their growth says something about now."""

from __future__ import annotations

from pathlib import Path

from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

_COUNTERS = ("oc1_event_cnt", "oc2_event_cnt", "oc3_event_cnt")


class OverCurrent:
    """Compares the counters with those of the reading before."""

    def __init__(self, root: Path, files: SensorFiles) -> None:
        self._folder = root / "sys/class/hwmon"
        self._files = files
        self._before: dict[str, float] = {}

    def acted(self) -> bool | None:
        """Whether a counter grew since it last answered. None while there is nothing to compare: at the first reading,
        without such a chip, or after the counters began anew."""
        compared: list[bool] = []
        for name, count in self._counts().items():
            before = self._before.get(name)
            self._before[name] = count
            if before is not None and count >= before:
                compared.append(count > before)
        return any(compared) if compared else None

    def _counts(self) -> dict[str, float]:
        counts: dict[str, float] = {}
        for chip in self._files.folders(self._folder):
            if self._files.text(chip / "name") == "soctherm_oc":
                for name in _COUNTERS:
                    count = self._files.number(chip / name)
                    if count is not None:
                        counts[name] = counts.get(name, 0.0) + count
        return counts
