"""What a reading may say and still be believed. A driver that lost its sensor answers -256, 1e9 or worse.

The ranges are wide: nothing that a working device measures lies outside, so a value that does is unknown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nsn_edge.runtimes.telemetry.base import Reading

LARGEST_MW = 1e7
"""Ten kilowatts: no device that this runs on draws more."""

PLAUSIBLE = {
    "temperature_c": (-60.0, 200.0),
    "temperature_limit_c": (-60.0, 200.0),
    "power_mw": (0.0, LARGEST_MW),
    "energy_j": (0.0, 1e12),
    "battery_j": (0.0, 1e8),
    "gpu_mhz": (0.0, 20_000.0),
    "cpu_mhz": (1.0, 20_000.0),
    "wall_s": (0.0, 1e11),
}
"""Lowest and highest believable value by field. Percentages and numbers that are not finite are a `Reading`'s own."""


def believable(reading: Reading) -> Reading:
    """The reading, with every implausible number unknown."""
    wrong: dict[str, Any] = {}
    for name, (low, high) in PLAUSIBLE.items():
        value = getattr(reading, name)
        if value is not None and not low <= value <= high:
            wrong[name] = None
    if any(not 0.0 <= value <= LARGEST_MW for value in reading.rails_mw.values()):
        wrong["rails_mw"] = {rail: value for rail, value in reading.rails_mw.items() if 0.0 <= value <= LARGEST_MW}
    return replace(reading, **wrong) if wrong else reading
