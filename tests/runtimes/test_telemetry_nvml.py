"""NVML: what a GPU tells, what it does not support, and what is left when it is gone."""

from __future__ import annotations

import sys

import pytest
from fake_nvml import FakeNvml, error

from nsn_edge.errors import EngineError, MissingDependencyError
from nsn_edge.runtimes.telemetry import NvmlGpu, NvmlTelemetry

POWER, ENERGY = "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"


def test_a_gpu_that_tells_everything() -> None:
    nvml = FakeNvml()
    with NvmlGpu.open(nvml=nvml) as gpu:
        assert gpu.name() == "NVIDIA RTX A500 Laptop GPU"
        assert gpu.driver() == "580.95.05"
        assert (gpu.power_mw(), gpu.energy_mj()) == (12_345.0, 1_000_000.0)
        assert (gpu.temperature_c(), gpu.slowdown_c(), gpu.sm_clock_mhz()) == (61.0, 93.0, 1410.0)
        assert gpu.memory_used_bytes() == 500_000_000
        assert gpu.bus_id() == "0000:01:00.0"
        assert nvml.open == 1
    assert nvml.open == 0
    gpu.close()
    assert gpu.power_mw() is None


@pytest.mark.parametrize(
    ("reasons", "throttling"),
    [(0x0, False), (0x1, False), (0x4, False), (0x8, True), (0x20, True), (0x40, True), (0x80, True), (0x44, True)],
)
def test_a_power_cap_is_no_throttling(reasons: int, throttling: bool) -> None:
    nvml = FakeNvml(nvmlDeviceGetCurrentClocksEventReasons=reasons)
    assert NvmlGpu.open(nvml=nvml).throttling() is throttling


@pytest.mark.parametrize("code", ["NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "NO_PERMISSION"])
def test_a_metric_that_is_not_supported_is_asked_once(code: str) -> None:
    nvml = FakeNvml(**{ENERGY: error(code)})
    gpu = NvmlGpu.open(nvml=nvml)
    assert [gpu.energy_mj() for _ in range(3)] == [None] * 3
    assert nvml.calls[ENERGY] == 1
    assert gpu.disabled == {ENERGY}
    assert gpu.power_mw() == 12_345.0
    assert not gpu.lost


def test_a_passing_error_is_asked_again() -> None:
    nvml = FakeNvml(**{POWER: error("TIMEOUT")})
    gpu = NvmlGpu.open(nvml=nvml)
    assert gpu.power_mw() is None
    nvml.answers[POWER] = 9_000
    assert gpu.power_mw() == 9_000.0


@pytest.mark.parametrize("code", ["GPU_IS_LOST", "RESET_REQUIRED"])
def test_a_gpu_that_fell_off_the_bus(code: str) -> None:
    nvml = FakeNvml(**{POWER: error(code)})
    with NvmlGpu.open(nvml=nvml) as gpu:
        assert gpu.power_mw() is None
        assert gpu.lost
        assert gpu.temperature_c() is None
        assert "nvmlDeviceGetTemperature" not in nvml.calls


def test_bindings_that_lack_a_call_or_answer_bytes() -> None:
    nvml = FakeNvml(nvmlDeviceGetName=b"Tesla T4", nvmlDeviceGetCurrentClocksThrottleReasons=0x20)
    del nvml.answers["nvmlDeviceGetCurrentClocksEventReasons"], nvml.answers[ENERGY]
    gpu = NvmlGpu.open(nvml=nvml)
    assert gpu.name() == "Tesla T4"
    assert gpu.throttling() is True  # by the older name
    assert gpu.energy_mj() is None
    assert gpu.disabled == {ENERGY}


@pytest.mark.parametrize("code", ["LIBRARY_NOT_FOUND", "DRIVER_NOT_LOADED"])
def test_without_a_driver(code: str) -> None:
    with pytest.raises(EngineError, match=r"NVML does not start: .+driver"):
        NvmlGpu.open(nvml=FakeNvml(init=error(code)))


def test_a_gpu_that_is_not_there() -> None:
    nvml = FakeNvml()
    with pytest.raises(EngineError, match=r"NVML has no GPU 3: .+nvidia-smi"):
        NvmlGpu.open(3, nvml)
    assert nvml.open == 0


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'nsn-edge\[nvml\]'"):
        NvmlGpu.open()
    with pytest.raises(MissingDependencyError):
        NvmlTelemetry()


@pytest.mark.parametrize(("source", "on_mains"), [(0, True), (1, False), (2, False), (error("NOT_SUPPORTED"), None)])
def test_who_feeds_the_gpu(source: object, on_mains: bool | None) -> None:
    """An adapter that is too weak (2) lets the battery pay."""
    assert NvmlGpu.open(nvml=FakeNvml(nvmlDeviceGetPowerSource=source)).on_mains() is on_mains


@pytest.mark.parametrize(
    ("computing", "drawing", "in_use"),
    [
        ([1], [], True),
        ([], [1], True),
        ([], [], False),
        (error("NOT_SUPPORTED"), [1], True),
        (error("UNKNOWN"), [], None),
    ],
)
def test_whether_anybody_uses_the_gpu(computing: object, drawing: object, in_use: bool | None) -> None:
    nvml = FakeNvml(nvmlDeviceGetComputeRunningProcesses=computing, nvmlDeviceGetGraphicsRunningProcesses=drawing)
    assert NvmlGpu.open(nvml=nvml).in_use() is in_use


def test_what_is_not_supported_is_remembered_by_who_opens_it_again() -> None:
    nvml, disabled = FakeNvml(**{ENERGY: error("NOT_SUPPORTED")}), set[str]()
    for _ in range(3):
        with NvmlGpu.open(nvml=nvml, disabled=disabled) as gpu:
            assert gpu.energy_mj() is None
    assert nvml.calls[ENERGY] == 1
