"""A GPU as a source of telemetry: it is never woken, never kept awake, and survived when it goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_nvml import FakeNvml, error
from sensor_tree import HandClock, write_gpu

from nsn_edge.runtimes.telemetry import NvmlTelemetry, Reading
from nsn_edge.runtimes.telemetry.nvml_telemetry import REST_S

POWER, ENERGY = "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"
FULL = Reading(
    1000.0,
    temperature_c=61.0,
    temperature_limit_c=93.0,
    throttling=False,
    on_mains=True,
    power_mw=12_345.0,
    energy_j=0.0,
    gpu_load_pct=37.0,
    gpu_mhz=1410.0,
    rails_mw={"gpu0": 12_345.0},
)
IDLE = {"nvmlDeviceGetComputeRunningProcesses": [], "nvmlDeviceGetGraphicsRunningProcesses": []}


@pytest.fixture
def clock() -> HandClock:
    return HandClock(1000.0)


def calls(nvml: FakeNvml) -> int:
    return sum(nvml.calls.values())


def test_everything_it_tells(tmp_path: Path, clock: HandClock) -> None:
    nvml = FakeNvml()
    assert NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml).read() == FULL
    assert nvml.open == 0  # where nothing says that it cannot sleep, it is let go


def test_energy_counts_from_the_first_reading_and_never_falls(tmp_path: Path, clock: HandClock) -> None:
    nvml = FakeNvml()
    source = NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml)
    seen = []
    for millijoules in (1_000_000, 1_004_000, 500, 2_500, 1e15, 4_500):  # the driver is loaded anew; it lies once
        nvml.answers[ENERGY] = millijoules
        seen.append(source.read().energy_j)
        clock.now_s += 1.0
    assert seen == [0.0, 4.0, 4.0, 6.0, 6.0, 6.0]


@pytest.mark.parametrize("status", ["suspended", "suspending"])
def test_a_gpu_that_sleeps_is_not_woken_not_even_by_the_first_reading(
    tmp_path: Path, clock: HandClock, status: str
) -> None:
    nvml = FakeNvml()
    device = write_gpu(tmp_path, status, "auto")
    source = NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml)
    for _ in range(5):
        assert source.read() == Reading(clock.now_s)
        clock.now_s += 100.0
    assert (nvml.opened, calls(nvml)) == (0, 0)
    (device / "power/runtime_status").write_text("active\n")
    assert source.read().temperature_c == 61.0
    (device / "power/runtime_status").write_text(f"{status}\n")
    asked = calls(nvml)
    clock.now_s += 100.0
    assert source.read() == Reading(clock.now_s, energy_j=0.0)  # what it drew stays drawn
    assert calls(nvml) == asked


def test_a_gpu_that_is_used_is_read_each_time_and_let_go(tmp_path: Path, clock: HandClock) -> None:
    nvml = FakeNvml()
    write_gpu(tmp_path, "active", "auto")
    source = NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml)
    for _ in range(3):
        assert source.read().temperature_c == 61.0
        assert nvml.open == 0
        clock.now_s += 1.0


@pytest.mark.parametrize("load", [0, error("NOT_SUPPORTED")])
@pytest.mark.parametrize("processes", [[], error("NOT_SUPPORTED")])
def test_a_gpu_that_nobody_uses_is_left_alone_so_that_it_can_fall_asleep(
    tmp_path: Path, clock: HandClock, processes: object, load: object
) -> None:
    nvml = FakeNvml(**dict.fromkeys(IDLE, processes))
    nvml.answers["nvmlDeviceGetUtilizationRates"] = load if isinstance(load, Exception) else nvml.rates(load)
    write_gpu(tmp_path, "active", "auto")
    source = NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml)
    assert source.read().temperature_c == 61.0
    asked = calls(nvml)
    while clock.now_s < 1000.0 + REST_S - 1.0:
        clock.now_s += 1.0
        assert source.read() == Reading(clock.now_s, energy_j=0.0)
    assert (calls(nvml), nvml.open) == (asked, 0)
    clock.now_s += 1.0
    assert source.read().temperature_c == 61.0


def test_a_busy_gpu_that_hides_its_processes_is_read(tmp_path: Path, clock: HandClock) -> None:
    nvml = FakeNvml(**dict.fromkeys(IDLE, error("NOT_SUPPORTED")))
    write_gpu(tmp_path, "active", "auto")
    source = NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml)
    for _ in range(3):
        assert source.read().temperature_c == 61.0
        clock.now_s += 1.0


def test_where_it_cannot_sleep_nvml_is_opened_once(tmp_path: Path, clock: HandClock) -> None:
    nvml = FakeNvml(**IDLE)
    write_gpu(tmp_path, "active", "on")
    with NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml) as source:
        for _ in range(3):
            assert source.read().temperature_c == 61.0
            clock.now_s += 1.0
        assert (nvml.opened, nvml.open) == (1, 1)
    assert nvml.open == 0
    source.close()


def test_a_metric_that_is_not_supported_is_disabled_and_the_others_are_kept(tmp_path: Path, clock: HandClock) -> None:
    """Laptops and Orin: almost everything."""
    nvml = FakeNvml(**{name: error("NOT_SUPPORTED") for name in (POWER, ENERGY, "nvmlDeviceGetPowerSource")})
    source = NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml)
    for _ in range(4):
        reading = source.read()
        assert (reading.power_mw, reading.energy_j, reading.on_mains, reading.rails_mw) == (None, None, None, {})
        assert (reading.temperature_c, reading.gpu_load_pct) == (61.0, 37.0)
    assert nvml.calls[POWER] == nvml.calls[ENERGY] == 1
    assert source.disabled == {POWER, ENERGY, "nvmlDeviceGetPowerSource"}


@pytest.mark.parametrize("control", ["on", "auto"])
@pytest.mark.parametrize("code", ["GPU_IS_LOST", "RESET_REQUIRED", "DRIVER_NOT_LOADED", "UNINITIALIZED"])
def test_a_gpu_that_is_lost_and_comes_back(tmp_path: Path, clock: HandClock, code: str, control: str) -> None:
    nvml = FakeNvml()
    write_gpu(tmp_path, "active", control)
    source = NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml)
    assert source.read() == FULL
    nvml.answers[POWER] = error(code)
    for _ in range(3):
        clock.now_s += 1.0
        assert source.read() == Reading(clock.now_s)
    assert nvml.calls[POWER] == 2, "a GPU that is gone is not asked each second"
    assert nvml.open == 0
    nvml.answers[POWER] = 9_000
    clock.now_s += REST_S
    assert source.read().power_mw == 9_000.0


@pytest.mark.parametrize("code", ["LIBRARY_NOT_FOUND", "DRIVER_NOT_LOADED"])
def test_without_a_driver_it_is_unknown_and_tried_again_now_and_then(
    tmp_path: Path, clock: HandClock, code: str
) -> None:
    nvml = FakeNvml(init=error(code))
    source = NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml)
    for _ in range(20):
        assert source.read() == Reading(clock.now_s)
        clock.now_s += 1.0
    assert nvml.inits == 1
    nvml.answers["init"] = None
    clock.now_s += REST_S
    assert source.read().temperature_c == 61.0


@pytest.mark.parametrize("reasons", [0x8, 0x20, 0x40, 0x80])
def test_throttling_by_heat_and_by_the_power_brake(tmp_path: Path, clock: HandClock, reasons: int) -> None:
    nvml = FakeNvml(nvmlDeviceGetCurrentClocksEventReasons=reasons)
    assert NvmlTelemetry(root=tmp_path, clock=clock, nvml=nvml).read().throttling is True
