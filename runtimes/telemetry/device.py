"""Everything that this device tells about itself, as one source: a Jetson, a laptop, a desktop, a server.

    with device_telemetry() as device, Sampler(device) as sampler:
        sampler.read()

Which sensors there are is found out by asking: what the device lacks is unknown, what comes later is found then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from nsn_edge.errors import MissingDependencyError
from nsn_edge.runtimes.telemetry.base import Clock, Reading, TelemetrySource
from nsn_edge.runtimes.telemetry.battery import LinuxBattery
from nsn_edge.runtimes.telemetry.combine import Combined
from nsn_edge.runtimes.telemetry.cpufreq import LinuxCpuClock
from nsn_edge.runtimes.telemetry.nvml_telemetry import NvmlTelemetry
from nsn_edge.runtimes.telemetry.rapl import LinuxRapl
from nsn_edge.runtimes.telemetry.thermal import LinuxThermal


class WallClock:
    """The time of day as a sensor: it tells how long a device slept, and when a shift ends."""

    def __init__(self, clock: Clock = time.monotonic, wall: Clock = time.time) -> None:
        """
        Args:
            clock: monotonic seconds.
            wall: seconds since 1970.
        """
        self._clock, self._wall = clock, wall

    def read(self) -> Reading:
        """A reading in which `wall_s` alone is known."""
        return Reading(self._clock(), wall_s=self._wall())


class DeviceTelemetry:
    """All sources of a device together (`Combined`). A context manager: some of them hold a handle or a program. Not
    for several threads at once: share a `Sampler`."""

    def __init__(self, parts: Mapping[str, TelemetrySource], clock: Clock = time.monotonic) -> None:
        """
        Args:
            parts: the sources by name, the preferred ones first; owned from here on.
            clock: monotonic seconds.
        """
        self.parts = MappingProxyType(dict(parts))
        """The sources by name."""
        self._combined = Combined(*parts.values(), clock=clock)

    def read(self) -> Reading:
        """What all of them know together. Never raises."""
        return self._combined.read()

    def close(self) -> None:
        """Close what can be closed. Closing twice is no error."""
        with contextlib.ExitStack() as stack:
            for source in self.parts.values():
                if callable(close := getattr(source, "close", None)):
                    stack.callback(close)

    def __enter__(self) -> DeviceTelemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def device_telemetry(
    root: Path = Path("/"), clock: Clock = time.monotonic, *, wall: Clock = time.time, nvml: Any = None
) -> DeviceTelemetry:
    """The sensors of this device.

    On a Jetson the board's own (`jetson_telemetry`), elsewhere thermal zones and the processor's energy counters; on
    both batteries, an NVIDIA GPU (where nvidia-ml-py is installed), the processor's clock and the time of day.

    Args:
        root: where `sys/` and the other folders are.
        clock: monotonic seconds.
        wall: seconds since 1970.
        nvml: the module `pynvml`; imported by default where `root` is this device's own.
    """
    from nsn_edge.runtimes.telemetry.jetson import jetson_telemetry

    parts: dict[str, TelemetrySource] = {"battery": LinuxBattery(root, clock)}
    jetson = jetson_telemetry(root, clock)
    if jetson is not None:
        parts = {"jetson": jetson, **parts}
    else:
        parts["thermal"] = LinuxThermal(root, clock)
    if nvml is not None or root == Path("/"):
        with contextlib.suppress(MissingDependencyError):
            # On a board whose input has no sensor its GPU's power would pass for all of it.
            parts["gpu"] = NvmlTelemetry(0, root, clock, nvml, is_the_device=jetson is None)
    if jetson is None:
        parts["rapl"] = LinuxRapl(root, clock)
    parts["cpu clock"] = LinuxCpuClock(root, clock)
    parts["wall clock"] = WallClock(clock, wall)
    return DeviceTelemetry(parts, clock)
