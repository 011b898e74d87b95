"""Which sensors tell of the device that an engine computes on: a GPU's own for an engine that runs there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from nsn_edge.errors import NsnEdgeError
from nsn_edge.runtimes.profiling.device import runs_on_gpu
from nsn_edge.runtimes.telemetry import Clock, DeviceTelemetry, NvmlGpu, Reading, TelemetrySource, device_telemetry


class GpuSensors:
    """An NVIDIA GPU whose NVML is held open: while it is being measured it is awake anyway."""

    def __init__(self, gpu: NvmlGpu, clock: Clock = time.monotonic) -> None:
        self._gpu, self._clock = gpu, clock

    def read(self) -> Reading:
        """Energy and power of its board, heat, clock."""
        energy_mj = self._gpu.energy_mj()
        return Reading(
            time_s=self._clock(),
            temperature_c=self._gpu.temperature_c(),
            temperature_limit_c=self._gpu.slowdown_c(),
            throttling=self._gpu.throttling(),
            power_mw=self._gpu.power_mw(),
            energy_j=None if energy_mj is None else energy_mj / 1e3,
            gpu_mhz=self._gpu.sm_clock_mhz(),
        )


@contextlib.contextmanager
def sensors_for(engine: Mapping[str, Any], clock: Clock = time.monotonic) -> Iterator[DeviceTelemetry]:
    """The sensors for an engine: the machine's own, but for its GPU if the engine does not run there; the GPU's first,
    if it does and NVML has it. A Jetson's board comes before either.

    Args:
        engine: `engine.describe()`.
        clock: monotonic seconds.
    """
    with contextlib.ExitStack() as stack:
        parts = dict(stack.enter_context(device_telemetry(clock=clock)).parts)
        parts.pop("gpu", None)
        if runs_on_gpu(engine):
            first = {"jetson": parts.pop("jetson")} if "jetson" in parts else {}
            # Without a driver or without nvidia-ml-py there is no NVML, and the machine's sensors tell.
            with contextlib.suppress(NsnEdgeError):
                first["gpu"] = GpuSensors(stack.enter_context(NvmlGpu.open()), clock)
            parts = {**first, **parts}
        yield DeviceTelemetry(parts, clock)


def energy_sensor(source: TelemetrySource) -> TelemetrySource:
    """The part of a source that tells of energy: the first with a counter of it, else the first with power. While
    energy is measured it is asked often, and asking all the others would cost what is to be measured."""
    parts: Mapping[str, TelemetrySource] = getattr(source, "parts", {})
    for name in ("energy_j", "power_mw"):
        for part in parts.values():
            with contextlib.suppress(Exception):  # a sensor may raise anything
                if getattr(part.read(), name) is not None:
                    return part
    return source
