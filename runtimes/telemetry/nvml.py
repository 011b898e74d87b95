"""NVIDIA GPUs through NVML: power, energy, temperature, clocks, memory. Needs the package nvidia-ml-py.

    with NvmlGpu.open() as gpu:            open while measuring
        gpu.energy_mj(), gpu.power_mw()    None for what this GPU does not tell

Any call may answer that it is not supported (laptops and Jetson boards: most of them): that metric is left alone from
then on, and the others are kept. A GPU that fell off the bus answers nothing any more. An open handle keeps a laptop's
GPU awake: as a source of telemetry use `NvmlTelemetry`. https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from nsn_edge.errors import EngineError, MissingDependencyError

_THROTTLING = 0x08 | 0x20 | 0x40 | 0x80
"""Clock event reasons: slowdown by hardware, heat (by software and hardware), power brake. A power cap (0x4) is how a
GPU works at full load, and no throttling."""

_AC = 0
"""Power source: the mains. 1 is the battery, 2 an adapter that is too weak."""

_NOT_HERE = {"NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_FUNCTION_NOT_FOUND", "NVML_ERROR_NO_PERMISSION"}
"""Errors that stay: this metric will never answer."""

_GONE = {
    "NVML_ERROR_GPU_IS_LOST",
    "NVML_ERROR_RESET_REQUIRED",
    "NVML_ERROR_UNINITIALIZED",
    "NVML_ERROR_DRIVER_NOT_LOADED",
    "NVML_ERROR_LIBRARY_NOT_FOUND",
}
"""Errors after which nothing answers."""


class NvmlGpu:
    """One GPU. A context manager: it holds NVML open. Not for several threads at once."""

    def __init__(self, nvml: Any, handle: Any, disabled: set[str] | None = None) -> None:
        """
        Args:
            nvml: the module `pynvml`, initialised.
            handle: of the device.
            disabled: calls that are known not to be supported; more are added to it.
        """
        self._nvml, self._handle = nvml, handle
        self._disabled = set() if disabled is None else disabled
        self._lost = False

    @classmethod
    def open(cls, index: int = 0, nvml: Any = None, disabled: set[str] | None = None) -> NvmlGpu:
        """Start NVML and find a GPU.

        Args:
            index: as NVML numbers them, which need not be as CUDA does.
            nvml: the module `pynvml`; imported by default.
            disabled: calls that are known not to be supported; more are added to it.

        Raises:
            MissingDependencyError: nvidia-ml-py is not installed.
            EngineError: there is no driver, or no such GPU.
        """
        nvml = nvml or import_nvml()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise EngineError(f"NVML does not start: {error}", "is the NVIDIA driver installed and loaded?") from error
        try:
            return cls(nvml, nvml.nvmlDeviceGetHandleByIndex(index), disabled)
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

    def load_pct(self) -> float | None:
        """Share of the last second or less in which anything ran on it."""
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        return None if rates is None else float(rates.gpu)

    def on_mains(self) -> bool | None:
        """Whether something else than a battery feeds it; an adapter that is too weak does not."""
        source = self._ask("nvmlDeviceGetPowerSource")
        return None if source is None else source == _AC

    def in_use(self) -> bool | None:
        """Whether any process computes or draws on it, and so keeps it awake."""
        counts = [self._ask("nvmlDeviceGetComputeRunningProcesses"), self._ask("nvmlDeviceGetGraphicsRunningProcesses")]
        if any(counts):
            return True
        return None if None in counts else False

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


def import_nvml() -> Any:
    """The module `pynvml`.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
    """
    try:
        import pynvml
    except ImportError as error:
        raise MissingDependencyError("nvidia-ml-py", "nvml", "reading an NVIDIA GPU's power and energy") from error
    return pynvml


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
