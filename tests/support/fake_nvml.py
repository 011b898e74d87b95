"""NVML without a GPU: the answers are given, the errors are those of the real bindings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml

_READINGS = {
    "nvmlDeviceGetName": "NVIDIA RTX A500 Laptop GPU",
    "nvmlSystemGetDriverVersion": "580.95.05",
    "nvmlDeviceGetPowerUsage": 12_345,
    "nvmlDeviceGetTotalEnergyConsumption": 1_000_000,
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetTemperatureThreshold": 93,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
    "nvmlDeviceGetClockInfo": 1410,
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37, memory=12),
    "nvmlDeviceGetPowerSource": 0,
    "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=4242)],
    "nvmlDeviceGetGraphicsRunningProcesses": [],
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=500_000_000),
    "nvmlDeviceGetPciInfo": SimpleNamespace(busId="00000000:01:00.0"),
}


class FakeNvml:
    """The module `pynvml` with one GPU. Every name that is not faked is the real one.

    `answers` are values by call, or an NVML error's number, wrapped in `error`. `calls` counts, per call.
    """

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {**_READINGS, **answers}
        self.calls: dict[str, int] = {}
        self.open = 0
        """How often it is open now."""
        self.inits = self.opened = 0
        """How often opening was tried, and how often it worked."""

    def __getattr__(self, name: str) -> Any:
        answers = self.__dict__.get("answers", {})
        if name not in answers:
            if name.startswith(("nvmlDevice", "nvmlSystem")):
                raise AttributeError(name)  # a call that these bindings do not have
            return getattr(pynvml, name)

        def call(*arguments: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            if not self.open:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
            return self._answer(answers[name])

        return call

    def nvmlInit(self) -> None:  # noqa: N802
        """Counted; fails if told so."""
        self.inits += 1
        self._answer(self.answers.get("init"))
        self.opened += 1
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        """Counted; fails if nothing is open, as the real one."""
        if not self.open:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:  # noqa: N802
        """There is GPU 0 alone."""
        if index != 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self._answer(self.answers.get("handle", "handle"))

    @staticmethod
    def rates(load_pct: int) -> SimpleNamespace:
        """The answer of `nvmlDeviceGetUtilizationRates`."""
        return SimpleNamespace(gpu=load_pct, memory=0)

    @staticmethod
    def _answer(value: Any) -> Any:
        if isinstance(value, pynvml.NVMLError):
            raise value
        return value


def error(name: str) -> pynvml.NVMLError:
    """An error by the end of its constant's name: `NOT_SUPPORTED`."""
    return pynvml.NVMLError(getattr(pynvml, f"NVML_ERROR_{name}"))
