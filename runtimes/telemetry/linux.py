"""Everything a Linux device tells about itself, as one source."""

from __future__ import annotations

import time
from pathlib import Path

from nsn_edge.runtimes.telemetry.base import Clock
from nsn_edge.runtimes.telemetry.battery import LinuxBattery
from nsn_edge.runtimes.telemetry.combine import Combined
from nsn_edge.runtimes.telemetry.thermal import LinuxThermal


def linux_telemetry(root: Path = Path("/"), clock: Clock = time.monotonic) -> Combined:
    """Batteries, mains and thermal zones under `root`; what the device lacks is unknown.

    Args:
        root: where `sys/` is.
        clock: monotonic seconds.
    """
    return Combined(LinuxBattery(root, clock), LinuxThermal(root, clock), clock=clock)
