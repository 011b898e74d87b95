"""Everything that a Jetson tells in files, as one reading. No program is waited for, no privileges are needed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from nsn_edge.runtimes.telemetry.base import Clock, Reading
from nsn_edge.runtimes.telemetry.jetson.gpu import GpuFiles
from nsn_edge.runtimes.telemetry.jetson.ina3221 import PowerRails
from nsn_edge.runtimes.telemetry.jetson.over_current import OverCurrent
from nsn_edge.runtimes.telemetry.jetson.power_mode import PowerMode, Run, run_program
from nsn_edge.runtimes.telemetry.jetson.rails import board_power_mw
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles
from nsn_edge.runtimes.telemetry.thermal import LinuxThermal


class JetsonSensors:
    """Heat and throttling, power rails, GPU, over-current, power mode."""

    def __init__(self, root: Path = Path("/"), clock: Clock = time.monotonic, run: Run = run_program) -> None:
        """
        Args:
            root: where `sys/`, `etc/`, `var/` and `usr/` are.
            clock: monotonic seconds.
            run: runs `nvpmodel -q` where the files do not name the power mode.
        """
        files = SensorFiles(clock)
        self._clock = clock
        self._thermal = LinuxThermal(root, clock)
        self._rails = PowerRails(root, files)
        self._gpu = GpuFiles(root, files)
        self._over_current = OverCurrent(root, files)
        self.power_mode = PowerMode(root, files, clock, run)
        self._ever: set[str] = set()

    def read(self) -> Reading:
        """What the files say now; None for each that they do not."""
        rails_mw = self._rails.read_mw()
        reading = replace(
            self._thermal.read(),
            time_s=self._clock(),
            power_mw=board_power_mw(rails_mw),
            rails_mw=rails_mw,
            gpu_load_pct=self._gpu.load_pct(),
            gpu_mhz=self._gpu.clock_mhz(),
            over_current=self._over_current.acted(),
            power_mode=self.power_mode.name(),
        )
        if reading.temperature_c is not None:
            self._ever.add("temperature_c")
        if rails_mw:
            self._ever.add("rails_mw")
        return reading

    def lacks(self) -> frozenset[str]:
        """What another source should be asked for: a temperature or rails that were never known, a load that has no
        file. A sensor that answered once and is silent now is asleep or broken, and asking it another way is no use."""
        lacking = {"temperature_c", "rails_mw"} - self._ever
        return frozenset(lacking if self._gpu.has_load() else lacking | {"gpu_load_pct"})
