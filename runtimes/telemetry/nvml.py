"""NVIDIA GPUs through NVML: power, energy, temperature, clocks, memory. Needs the package nvidia-ml-py.

    with NvmlGpu.open() as gpu:            open while measuring
        gpu.energy_mj(), gpu.power_mw()    None for what this GPU does not tell

    NvmlTelemetry().read()                 open for one reading, and not at all while the GPU sleeps

Any call may answer that it is not supported (laptops and Jetson boards: most of them): that metric is left alone from
then on, and the others are kept. A GPU that fell off the bus answers nothing any more. An open handle keeps a laptop's
GPU awake, hence the second class. https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from nsn_edge.errors import EngineError, MissingDependencyError
from nsn_edge.runtimes.telemetry.base import Clock, Reading
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

_THROTTLING = 0x08 | 0x20 | 0x40 | 0x80
"""Clock event reasons: slowdown by hardware, heat (by software and hardware), power brake. A power cap (0x4) is how a
GPU works at full load, and no throttling."""

_NOT_HERE = {"NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_FUNCTION_NOT_FOUND", "NVML_ERROR_NO_PERMISSION"}
"""Errors that stay: this metric will never answer."""

_GONE = {"NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNINITIALIZED"}
"""Errors after which nothing answers."""


class NvmlGpu:
    """One GPU. A context manager: it holds NVML open. Not for several threads at once."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """
        Args:
            nvml: the module `pynvml`, initialised.
            handle: of the device.
        """
        self._nvml, self._handle = nvml, handle
        self._disabled: set[str] = set()
        self._lost = False

    @classmethod
    def open(cls, index: int = 0, nvml: Any = None) -> NvmlGpu:
        """Start NVML and find a GPU.

        Args:
            index: as NVML numbers them, which need not be as CUDA does.
            nvml: the module `pynvml`; imported by default.

        Raises:
            MissingDependencyError: nvidia-ml-py is not installed.
            EngineError: there is no driver, or no such GPU.
        """
        nvml = nvml or _import_nvml()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise EngineError(f"NVML does not start: {error}", "is the NVIDIA driver installed and loaded?") from error
        try:
            return cls(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError as error:
            nvml.nvmlShutdown()
            raise EngineError(f"NVML has no GPU {index}: {error}", "nvidia-smi lists those it has") from error

    def __enter__(self) -> NvmlGpu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of NVML. Closing twice is no error."""
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                self._lost = True  # there is nothing left to shut down

    @property
    def lost(self) -> bool:
        """Whether the GPU is gone: from then on every answer is None."""
        return self._lost

    @property
    def disabled(self) -> frozenset[str]:
        """Calls that this GPU does not support, as far as they were tried."""
        return frozenset(self._disabled)

    def name(self) -> str | None:
        """As the driver calls it."""
        name = self._ask("nvmlDeviceGetName")
        return name.decode(errors="replace") if isinstance(name, bytes) else name  # bytes before nvidia-ml-py 12

    def driver(self) -> str | None:
        """The driver's version."""
        version = self._ask("nvmlSystemGetDriverVersion", of_device=False)
        return version.decode(errors="replace") if isinstance(version, bytes) else version

    def power_mw(self) -> float | None:
        """Power of the board; the mean of the last second from Ampere on."""
        return _number(self._ask("nvmlDeviceGetPowerUsage"))

    def energy_mj(self) -> float | None:
        """Energy since the driver was loaded, from Volta on. It moves on every 20 to 100 ms: measure for a second or
        more."""
        return _number(self._ask("nvmlDeviceGetTotalEnergyConsumption"))

    def temperature_c(self) -> float | None:
        """Of the die."""
        return _number(self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU))

    def slowdown_c(self) -> float | None:
        """Where the GPU begins to slow down by itself."""
        kind = self._nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return _number(self._ask("nvmlDeviceGetTemperatureThreshold", kind))

    def throttling(self) -> bool | None:
        """Whether heat or power slow it down now."""
        new, old = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        reasons = self._ask(new if hasattr(self._nvml, new) and new not in self._disabled else old)
        return None if reasons is None else bool(reasons & _THROTTLING)

    def sm_clock_mhz(self) -> float | None:
        """The clock of the multiprocessors."""
        return _number(self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM))

    def memory_used_bytes(self) -> int | None:
        """By all processes together; None on boards that share their memory with the processor."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.used)

    def bus_id(self) -> str | None:
        """The PCI address as `/sys/bus/pci/devices` has it, `0000:01:00.0`."""
        info = self._ask("nvmlDeviceGetPciInfo")
        if info is None:
            return None
        text = info.busId.decode(errors="replace") if isinstance(info.busId, bytes) else str(info.busId)
        domain, _, rest = text.lower().partition(":")
        return f"{domain[-4:]}:{rest}"  # NVML writes the domain with eight digits

    def _ask(self, name: str, *arguments: Any, of_device: bool = True) -> Any:
        """What a call answers; None for what is not supported, fails, or is gone."""
        if self._lost or self._handle is None or name in self._disabled:
            return None
        call: Callable[..., Any] | None = getattr(self._nvml, name, None)
        if call is None:  # an older nvidia-ml-py
            self._disabled.add(name)
            return None
        try:
            return call(self._handle, *arguments) if of_device else call(*arguments)
        except self._nvml.NVMLError as error:
            if any(error.value == getattr(self._nvml, code, None) for code in _NOT_HERE):
                self._disabled.add(name)
            elif any(error.value == getattr(self._nvml, code, None) for code in _GONE):
                self._lost = True
            return None


class NvmlTelemetry:
    """A GPU as a source of telemetry: temperature, its limit, throttling."""

    def __init__(self, index: int = 0, root: Path = Path("/"), clock: Clock = time.monotonic, nvml: Any = None) -> None:
        """
        Args:
            index: of the GPU, as NVML numbers them.
            root: where `sys/` is.
            clock: monotonic seconds.
            nvml: the module `pynvml`; imported by default.

        Raises:
            MissingDependencyError: nvidia-ml-py is not installed.
        """
        self._index, self._clock = index, clock
        self._nvml = nvml or _import_nvml()
        self._devices = root / "sys/bus/pci/devices"
        self._files = SensorFiles(clock)
        self._bus_id: str | None = None

    def read(self) -> Reading:
        """What the GPU tells; nothing while it sleeps, is lost or has no driver."""
        nothing = Reading(self._clock())
        if self._bus_id is not None:
            status = self._files.text(self._devices / self._bus_id / "power/runtime_status")
            if status in ("suspended", "suspending"):
                return nothing
        try:
            gpu = NvmlGpu.open(self._index, self._nvml)
        except EngineError:
            return nothing
        with gpu:
            self._bus_id = self._bus_id or gpu.bus_id()
            return Reading(
                time_s=self._clock(),
                temperature_c=gpu.temperature_c(),
                temperature_limit_c=gpu.slowdown_c(),
                throttling=gpu.throttling(),
            )


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise MissingDependencyError("nvidia-ml-py", "nvml", "reading an NVIDIA GPU's power and energy") from error
    return pynvml


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
