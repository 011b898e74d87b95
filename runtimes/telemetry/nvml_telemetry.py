"""An NVIDIA GPU as a source of telemetry, which never keeps a laptop's GPU awake.

Opening NVML wakes a GPU that sleeps, and a handle that is held keeps it awake; so does asking every second, as it falls
asleep some ten seconds after the last one let go. Where the kernel may put it to sleep (`power/control` is `auto`):

    runtime_status is suspended     NVML is not opened; the counted energy stands, the rest is unknown
    active, a process uses it       open, ask, close: it is awake anyway
    active, nobody uses it          open, ask, close, and leave it alone for `REST_S`

Elsewhere it cannot sleep, and NVML stays open, as opening it each second costs more than all the answers.
https://download.nvidia.com/XFree86/Linux-x86_64/580.95.05/README/dynamicpowermanagement.html
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from nsn_edge.errors import EngineError
from nsn_edge.runtimes.telemetry.base import Clock, Reading
from nsn_edge.runtimes.telemetry.energy import EnergyMeter
from nsn_edge.runtimes.telemetry.nvml import NvmlGpu, import_nvml
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

REST_S = 30.0
"""How long a GPU that nobody uses is left alone, and one whose driver does not answer."""

_NVIDIA, _DISPLAY = "0x10de", "0x03"
_ASLEEP = ("suspended", "suspending")


class NvmlTelemetry:
    """One GPU: heat, power, energy, load, clock, throttling. A context manager: it may hold NVML open. Not for several
    threads at once."""

    def __init__(
        self,
        index: int = 0,
        root: Path = Path("/"),
        clock: Clock = time.monotonic,
        nvml: Any = None,
        *,
        is_the_device: bool = True,
    ) -> None:
        """
        Args:
            index: of the GPU, as NVML numbers them.
            root: where `sys/` is.
            clock: monotonic seconds.
            nvml: the module `pynvml`; imported by default.
            is_the_device: whether its power may stand for the device's, `power_mw`; its rail is told either way.

        Raises:
            MissingDependencyError: nvidia-ml-py is not installed.
        """
        self._index, self._clock = index, clock
        self._is_the_device = is_the_device
        self._nvml = nvml or import_nvml()
        self._devices = root / "sys/bus/pci/devices"
        self._files = SensorFiles(clock)
        self._bus_id: str | None = None
        self._held: NvmlGpu | None = None
        self._disabled: set[str] = set()
        self._rests_until_s: float | None = None
        self._gone = False
        self._meter: EnergyMeter | None = None

    def __enter__(self) -> NvmlTelemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of NVML. Closing twice is no error, and reading afterwards opens it again."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    @property
    def disabled(self) -> frozenset[str]:
        """Calls that this GPU does not support, as far as they were tried."""
        return frozenset(self._disabled)

    @property
    def sleeps(self) -> bool:
        """Whether the GPU sleeps now, as the kernel knows without asking it."""
        return any(self._files.text(gpu / "power/runtime_status") in _ASLEEP for gpu in self._gpus())

    def read(self) -> Reading:
        """What the GPU tells; nothing but the counted energy while it sleeps or rests, nothing when it is lost or has
        no driver."""
        now = self._clock()
        if self._rests_until_s is not None and now < self._rests_until_s:
            return Reading(now) if self._gone else self._unasked(now)
        if self.sleeps:
            self.close()
            return self._unasked(now)
        try:
            gpu = self._held or NvmlGpu.open(self._index, self._nvml, self._disabled)
        except EngineError:
            self._gone, self._rests_until_s = True, now + REST_S
            return Reading(now)
        reading = self._ask(gpu)
        may_sleep = self._may_sleep()
        if gpu.lost or (may_sleep and not self._is_used(gpu, reading)):
            self._rests_until_s = now + REST_S
        self._gone = gpu.lost
        if gpu.lost or may_sleep is not False:
            self._held = None
            gpu.close()
        else:
            self._held = gpu
        return reading

    def _ask(self, gpu: NvmlGpu) -> Reading:
        self._bus_id = self._bus_id or gpu.bus_id()
        power_mw, energy_mj = gpu.power_mw(), gpu.energy_mj()
        now = self._clock()
        if energy_mj is not None:
            self._meter = self._meter or EnergyMeter()
            self._meter.add(energy_mj / 1e3, now)
        reading = Reading(
            now,
            temperature_c=gpu.temperature_c(),
            temperature_limit_c=gpu.slowdown_c(),
            throttling=gpu.throttling(),
            on_mains=gpu.on_mains(),
            power_mw=power_mw if self._is_the_device else None,
            energy_j=None if energy_mj is None or self._meter is None else self._meter.total_j,
            gpu_load_pct=gpu.load_pct(),
            gpu_mhz=gpu.sm_clock_mhz(),
            rails_mw={} if power_mw is None else {f"gpu{self._index}": power_mw},
        )
        return Reading(now) if gpu.lost else reading

    @staticmethod
    def _is_used(gpu: NvmlGpu, reading: Reading) -> bool:
        in_use = gpu.in_use()
        return bool(reading.gpu_load_pct) if in_use is None else in_use

    def _unasked(self, now: float) -> Reading:
        """A GPU that sleeps draws nothing worth counting, and one that rests will catch up: its counter stands."""
        return Reading(now, energy_j=None if self._meter is None else self._meter.total_j)

    def _gpus(self) -> list[Path]:
        """This GPU; before its address is known every NVIDIA GPU, as any of them may be the one."""
        if self._bus_id is not None:
            return [self._devices / self._bus_id]
        return [
            device
            for device in self._files.folders(self._devices)
            if self._files.text(device / "vendor") == _NVIDIA
            and (self._files.text(device / "class") or "").startswith(_DISPLAY)
        ]

    def _may_sleep(self) -> bool | None:
        """Whether the kernel may put it to sleep; None where it does not say."""
        controls = [self._files.text(gpu / "power/control") for gpu in self._gpus()]
        if "auto" in controls:
            return True
        return False if "on" in controls else None
