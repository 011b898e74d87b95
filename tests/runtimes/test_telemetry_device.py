"""All sensors of a device as one source, on laptops, desktops and boards."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_nvml import FakeNvml, error
from sensor_tree import HandClock, write_cpu_clock, write_gpu, write_jetson, write_rapl, write_supply, write_zone

from nsn_edge.runtimes.telemetry import (
    DeviceTelemetry,
    Fault,
    FaultyTelemetry,
    NoTelemetry,
    Reading,
    WallClock,
    chances,
    device_telemetry,
)


@pytest.fixture
def clock() -> HandClock:
    return HandClock(100.0)


def laptop(root: Path) -> Path:
    write_supply(
        root,
        "BAT0",
        {"type": "Battery", "status": "Discharging", "capacity": 50, "energy_now": 25e6, "energy_full": 50e6}
        | {"power_now": 15_000_000},
    )
    write_supply(root, "AC", {"type": "Mains", "online": 0})
    write_zone(root, 0, "acpitz", 40_000)
    write_zone(root, 1, "x86_pkg_temp", 70_000, [("passive", 100_000)])
    write_rapl(root, "0", "package-0", 1_000_000)
    write_cpu_clock(root, 0, 2_800_000)
    write_gpu(root, "active", "auto")
    return root


def test_a_laptop_with_a_gpu(tmp_path: Path, clock: HandClock) -> None:
    nvml = FakeNvml(nvmlDeviceGetPowerSource=1)
    with device_telemetry(laptop(tmp_path), clock, wall=lambda: 1e9, nvml=nvml) as source:
        assert list(source.parts) == ["battery", "thermal", "gpu", "rapl", "cpu clock", "wall clock"]
        source.read()
        clock.now_s += 1.0
        write_rapl(tmp_path, "0", "package-0", 21_000_000)
        nvml.answers["nvmlDeviceGetTotalEnergyConsumption"] = 1_009_000
        assert source.read() == Reading(
            101.0,
            battery_pct=50.0,
            on_mains=False,
            temperature_c=70.0,  # 30 degrees below its limit; the GPU is 32 below
            temperature_limit_c=100.0,
            throttling=False,
            power_mw=15_000.0,  # of the batteries, not of the GPU
            energy_j=29.0,  # of processor and GPU
            battery_j=25 * 3600.0,
            gpu_load_pct=37.0,
            gpu_mhz=1410.0,
            cpu_mhz=2800.0,
            rails_mw={"gpu0": 12_345.0, "package-0": 20_000.0},
            wall_s=1e9,
        )


def test_a_desktop_draws_what_its_gpu_says_and_heat_is_that_of_the_hotter_part(
    tmp_path: Path, clock: HandClock
) -> None:
    write_zone(tmp_path, 0, "x86_pkg_temp", 50_000, [("passive", 100_000)])
    reading = device_telemetry(tmp_path, clock, nvml=FakeNvml()).read()
    assert (reading.power_mw, reading.on_mains) == (12_345.0, True)
    assert (reading.temperature_c, reading.temperature_limit_c) == (61.0, 93.0)


def test_without_a_gpu_or_its_driver_the_rest_is_known(tmp_path: Path, clock: HandClock) -> None:
    nvml = FakeNvml(init=error("LIBRARY_NOT_FOUND"))
    for source in (device_telemetry(laptop(tmp_path), clock, nvml=nvml), device_telemetry(tmp_path, clock)):
        reading = source.read()
        assert (reading.temperature_c, reading.cpu_mhz, reading.gpu_mhz) == (70.0, 2800.0, None)


def test_a_bare_machine_knows_the_time(tmp_path: Path, clock: HandClock) -> None:
    assert device_telemetry(tmp_path, clock, wall=lambda: 5.0).read() == Reading(100.0, wall_s=5.0)


def test_a_jetson_asks_its_board(tmp_path: Path, clock: HandClock) -> None:
    write_jetson(tmp_path, 6)
    write_zone(tmp_path, 0, "tj-thermal", 51_250, [("passive", 99_000)])
    write_cpu_clock(tmp_path, 0, 1_510_400)
    with device_telemetry(tmp_path, clock) as source:
        assert next(iter(source.parts)) == "jetson"
        assert "thermal" not in source.parts
        reading = source.read()
    assert (reading.temperature_c, reading.temperature_limit_c, reading.cpu_mhz) == (51.25, 99.0, 1510.4)


def test_on_a_board_the_gpus_power_is_not_the_devices(tmp_path: Path, clock: HandClock) -> None:
    write_jetson(tmp_path, 7)
    with device_telemetry(tmp_path, clock, nvml=FakeNvml()) as source:
        reading = source.read()
    assert (reading.power_mw, reading.gpu_load_pct, reading.rails_mw) == (None, 37.0, {"gpu0": 12_345.0})


def test_everything_is_closed_even_where_closing_fails(clock: HandClock) -> None:
    closed = []

    class Held(NoTelemetry):
        def __init__(self, name: str) -> None:
            super().__init__(clock)
            self.name = name

        def close(self) -> None:
            closed.append(self.name)
            if self.name == "b":
                raise OSError("gone already")

    source = DeviceTelemetry({name: Held(name) for name in "abc"}, clock)
    with pytest.raises(OSError, match="gone already"):
        source.close()
    assert sorted(closed) == ["a", "b", "c"]


def test_faults_of_every_kind_in_every_part_are_survived(tmp_path: Path, clock: HandClock) -> None:
    """No exception, no value that cannot be, none older than it may be."""
    real = device_telemetry(laptop(tmp_path), clock, nvml=FakeNvml())
    quiet = {kind: chance for kind, chance in chances(0.06).items() if kind is not Fault.KILLS}
    broken = {
        name: FaultyTelemetry(part, quiet, seed, sleep=lambda seconds: setattr(clock, "now_s", clock.now_s + seconds))
        for seed, (name, part) in enumerate(real.parts.items())
    }
    source = DeviceTelemetry(broken, clock)
    energy_j = 0.0
    for _ in range(500):
        clock.now_s += 1.0
        reading = source.read()
        assert reading.time_s == clock.now_s
        assert 0.0 <= reading.age_s <= 6.0  # five seconds, and one for a part that is slow
        assert reading.temperature_c is None or -60.0 <= reading.temperature_c <= 200.0
        assert reading.power_mw is None or 0.0 <= reading.power_mw <= 1e7
        if reading.energy_j is not None:
            assert reading.energy_j >= energy_j
            energy_j = reading.energy_j
    assert set().union(*(part.injected for part in broken.values())) == set(quiet)


def test_the_time_of_day() -> None:
    assert WallClock(lambda: 3.0, lambda: 1e9).read() == Reading(3.0, wall_s=1e9)


def test_this_device_can_be_read_whatever_it_has() -> None:
    with device_telemetry() as source:
        reading = source.read()
    assert reading.wall_s is not None
    assert reading.wall_s > 1.6e9
