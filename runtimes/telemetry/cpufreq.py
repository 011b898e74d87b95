"""Clock of the processor: `/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq`, in kHz.

https://www.kernel.org/doc/html/latest/admin-guide/pm/cpufreq.html
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from nsn_edge.runtimes.telemetry.base import Clock, Reading
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

FOLDER = "sys/devices/system/cpu/cpufreq"

MOST_POLICIES = 32
"""Cores that are asked: a server has hundreds of the same, and each file costs some microseconds a second."""


class LinuxCpuClock:
    """How fast the fastest core runs."""

    def __init__(self, root: Path = Path("/"), clock: Clock = time.monotonic) -> None:
        """
        Args:
            root: where `sys/` is.
            clock: monotonic seconds.
        """
        self._folder = root / FOLDER
        self._clock = clock
        self._files = SensorFiles(clock)

    def read(self) -> Reading:
        """`cpu_mhz`; None where no core tells. Cores that are offline answer 0 or `<unknown>`, and do not count."""
        policies = self._files.folders(self._folder, "policy")[:MOST_POLICIES]
        clocks_khz = [self._files.number(policy / "scaling_cur_freq") for policy in policies]
        fastest_khz = max((khz for khz in clocks_khz if khz is not None and khz > 0.0), default=None)
        return Reading(self._clock(), cpu_mhz=None if fastest_khz is None else fastest_khz / 1e3)

    @property
    def refusals(self) -> Mapping[Path, int]:
        """Files that did not answer lately, and with which error."""
        return self._files.refusals
