"""How busy a Jetson's GPU is and at which clock, from the places where its kernels put that.

    load, in tenths of a percent   /sys/devices/gpu.0/load                  Nano, TX2, Xavier
                                   /sys/devices/platform/gpu.0/load         Xavier, Orin
                                   /sys/class/devfreq/<GPU>/device/load     where neither link exists
    clock, in Hz                   /sys/class/devfreq/<GPU>/cur_freq

    <GPU>    57000000.gpu (Nano)  17000000.gp10b (TX2)  17000000.gv11b (Xavier)
             17000000.ga10b (Orin, JetPack 5)  17000000.gpu (Orin, from JetPack 6)  gpu-gpc-0 (Thor)

Thor has no load file: there NVML tells (`NvmlTelemetry`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

_GPU = re.compile(r"[0-9a-f]+\.(gpu|g[a-z]\d\d[a-z])|gpu-gpc-\d+")

_LOADS = ("sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load")

_FASTEST_MHZ = 10_000.0


class GpuFiles:
    """The GPU's load and clock."""

    def __init__(self, root: Path, files: SensorFiles) -> None:
        self._root = root
        self._files = files

    def load_pct(self) -> float | None:
        """0..100, from the first place that answers."""
        for path in self._loads():
            per_mille = self._files.number(path)
            if per_mille is not None and 0.0 <= per_mille <= 1000.0:
                return per_mille / 10.0
        return None

    def has_load(self) -> bool:
        """Whether there is a file for it, answering or not: a GPU that is gated will answer again."""
        return any(path.exists() for path in self._loads())

    def clock_mhz(self) -> float | None:
        """The clock; of several clusters the fastest. A gated GPU's clock of 0 is none."""
        clocks = [self._files.number(device / "cur_freq") for device in self._devices()]
        known = [hz / 1e6 for hz in clocks if hz is not None and 0.0 < hz / 1e6 <= _FASTEST_MHZ]
        return max(known, default=None)

    def _loads(self) -> Iterator[Path]:
        yield from (self._root / name for name in _LOADS)
        yield from (device / "device/load" for device in self._devices())

    def _devices(self) -> list[Path]:
        return [path for path in self._files.folders(self._root / "sys/class/devfreq") if _GPU.fullmatch(path.name)]
