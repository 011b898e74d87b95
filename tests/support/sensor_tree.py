"""Sensor files of real devices under a temporary root, and a clock that tests turn by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class HandClock:
    """A monotonic clock that stands until it is moved."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def write_supply(root: Path, name: str, files: Mapping[str, object]) -> Path:
    """`/sys/class/power_supply/<name>` with these files."""
    return _write(root / "sys/class/power_supply" / name, files)


def write_zone(
    root: Path, index: int, zone_type: str, temp: object, trips: list[tuple[str, int]] | None = None
) -> Path:
    """A thermal zone; `temp` and the trip points in millidegrees."""
    files: dict[str, object] = {"type": zone_type, "temp": temp}
    for number, (kind, milli_c) in enumerate(trips or []):
        files |= {f"trip_point_{number}_type": kind, f"trip_point_{number}_temp": milli_c}
    return _write(root / f"sys/class/thermal/thermal_zone{index}", files)


def write_cooling(root: Path, index: int, kind: str, state: object) -> Path:
    """A cooling device and its current state."""
    return _write(root / f"sys/class/thermal/cooling_device{index}", {"type": kind, "cur_state": state})


def _write(folder: Path, files: Mapping[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    return folder
