"""Which sensors tell of the device that an engine computes on: a GPU's own for an engine that runs there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from nsn_edge.errors import NsnEdgeError
from nsn_edge.runtimes.profiling.device import runs_on_gpu
from nsn_edge.runtimes.telemetry import Clock, Combined, NvmlGpu, Reading, TelemetrySource, linux_telemetry


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
def sensors_for(engine: Mapping[str, Any], clock: Clock = time.monotonic) -> Iterator[TelemetrySource]:
    """The sensors for an engine: the machine's own; for one that runs on a GPU first that GPU's, if NVML has it.

    Args:
        engine: `engine.describe()`.
        clock: monotonic seconds.
    """
    machine = linux_telemetry(clock=clock)
    with contextlib.ExitStack() as stack:
        source: TelemetrySource = machine
        if runs_on_gpu(engine):
            # On a Jetson, without a driver or without nvidia-ml-py there is no NVML, and the board's sensors tell.
            with contextlib.suppress(NsnEdgeError):
                source = Combined(GpuSensors(stack.enter_context(NvmlGpu.open()), clock), machine, clock=clock)
        yield source
