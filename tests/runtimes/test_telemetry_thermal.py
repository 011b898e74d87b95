"""Thermal zones, from trees with the names that real devices use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sensor_tree import HandClock, write_cooling, write_supply, write_zone

from nsn_edge.runtimes.telemetry import LinuxThermal, Reading, linux_telemetry
from nsn_edge.runtimes.telemetry.zones import throttling_limit_c

NANO = {"AO-therm": 39500, "CPU-therm": 36500, "GPU-therm": 36000, "PLL-therm": 34000, "PMIC-Die": 100000}
ORIN_JP5 = {"CPU-therm": 51000, "GPU-therm": 49000, "CV0": "", "SOC0": 48000, "SOC1": 47500, "tj-thermal": 51250}
ORIN_JP6 = {
    "cpu-thermal": 51000,
    "gpu-thermal": 49000,
    "cv0-thermal": "-256000",
    "soc0-thermal": 48,
    "tj-thermal": 51250,
}
THOR = {"tj": 36031, "soc012": 36062, "cpu": 35250, "soc345": 35900, "gpu": ""}
LAPTOP = {"acpitz": 20000, "x86_pkg_temp": 61000, "iwlwifi_1": 99000, "INT3400 Thermal": 20000}
PI = {"cpu-thermal": 47236}
ARM_BOARD = {"soc-thermal": 45000, "gpu-thermal": 52000}
UNNAMED = {"acpitz": 41000, "B0D4": 44000, "pmic_therm": 100000}


def read(root: Path) -> Reading:
    return LinuxThermal(root, clock=lambda: 7.0).read()


@pytest.mark.parametrize(
    ("zones", "expected_c"),
    [
        (NANO, 36.5),
        (ORIN_JP5, 51.25),
        (ORIN_JP6, 51.25),
        (THOR, 36.031),
        (LAPTOP, 61.0),
        (PI, 47.236),
        (ARM_BOARD, 52.0),
        (UNNAMED, 44.0),
        ({"PMIC-Die": 100000, "thermal-fan-est": 40000}, None),
        ({}, None),
    ],
    ids=["nano", "orin-jp5", "orin-jp6", "thor", "laptop", "pi", "arm", "unnamed", "placeholders", "none"],
)
def test_the_best_zone_by_type(tmp_path: Path, zones: dict[str, object], expected_c: float | None) -> None:
    for reverse in (False, True):
        for index, (zone_type, temp) in enumerate(sorted(zones.items(), reverse=reverse)):
            write_zone(tmp_path, index, zone_type, temp)
        assert read(tmp_path).temperature_c == expected_c, "indices must not matter"


@pytest.mark.parametrize("temp", ["-256", "-256000", "NaN", "", "500000", "-70000", "hot"])
def test_an_offline_aggregate_gives_way_to_the_cpu(tmp_path: Path, temp: str) -> None:
    write_zone(tmp_path, 0, "tj-thermal", temp)
    write_zone(tmp_path, 1, "cpu-thermal", 50000)
    assert read(tmp_path).temperature_c == 50.0


def test_a_gated_zone_behind_a_working_one_is_never_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zone(tmp_path, 0, "tj", 36031)
    gpu = write_zone(tmp_path, 1, "gpu", "")
    (gpu / "temp").unlink()
    os.mkfifo(gpu / "temp")
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(str(path)) or real(path, *rest))
    assert read(tmp_path).temperature_c == 36.031
    assert str(gpu / "temp") not in opened


def test_all_zones_gated_is_unknown(tmp_path: Path) -> None:
    for index, zone_type in enumerate(("tj", "cpu", "gpu")):
        zone = write_zone(tmp_path, index, zone_type, "")
        (zone / "temp").unlink()
        os.mkfifo(zone / "temp")
    assert read(tmp_path) == Reading(7.0)


def test_limits_are_read_and_the_aggregate_has_the_lowest_of_all(tmp_path: Path) -> None:
    write_zone(tmp_path, 0, "tj-thermal", 60000, [("active", 51000), ("critical", 104500)])
    write_zone(tmp_path, 1, "cpu-thermal", 59000, [("critical", 104500), ("hot", 101000), ("passive", 99000)])
    write_zone(tmp_path, 2, "gpu-thermal", 58000, [("passive", 99500)])
    write_zone(tmp_path, 3, "PMIC-Die", 100000, [("passive", 1000)])
    assert read(tmp_path).temperature_limit_c == 99.0


def test_another_parts_limit_is_not_the_packages(tmp_path: Path) -> None:
    write_zone(tmp_path, 0, "x86_pkg_temp", 60000, [("passive", 0), ("passive", -274000)])
    write_zone(tmp_path, 1, "acpitz", 30000, [("passive", 55000)])
    reading = read(tmp_path)
    assert reading.temperature_c == 60.0
    assert reading.temperature_limit_c is None


def test_limits_of_two_boards_differ() -> None:
    assert throttling_limit_c([("passive", 99.0), ("critical", 104.5)]) == 99.0
    assert throttling_limit_c([("passive", 112.0), ("critical", 117.5)]) == 112.0
    assert throttling_limit_c([("hot", 101.0), ("critical", 104.5), ("active", 50.0)]) == 101.0
    assert throttling_limit_c([("critical", 104.5)]) == 104.5
    assert throttling_limit_c([("active", 50.0)]) is None


def test_a_trip_point_that_could_not_be_read_is_asked_again(tmp_path: Path) -> None:
    zone = write_zone(tmp_path, 0, "cpu", 60000, [("passive", 99000)])
    (zone / "trip_point_0_temp").write_text("")
    source = LinuxThermal(tmp_path, clock=lambda: 7.0)
    assert source.read().temperature_limit_c is None
    (zone / "trip_point_0_temp").write_text("99000")
    assert source.read().temperature_limit_c == 99.0


@pytest.mark.parametrize(
    ("states", "expected"),
    [([0, 0], False), ([0, 1], True), ([3], True), (["", 1], True), (["", 0], None), ([""], None), ([], None)],
)
def test_throttle_alerts(tmp_path: Path, states: list[object], expected: bool | None) -> None:
    write_zone(tmp_path, 0, "tj", 60000)
    write_cooling(tmp_path, 0, "pwm-fan", 3)
    for index, state in enumerate(states, start=1):
        write_cooling(tmp_path, index, f"{'cpu' if index % 2 else 'gpu'}-throttle-alert", state)
    assert read(tmp_path).throttling is expected


def test_everything_of_a_linux_device_together(tmp_path: Path) -> None:
    clock = HandClock()
    source = linux_telemetry(tmp_path, clock)
    assert source.read() == Reading(1000.0)
    write_zone(tmp_path, 0, "cpu-thermal", 50000, [("passive", 85000)])
    write_supply(tmp_path, "BAT0", {"type": "Battery", "status": "Discharging", "capacity": 33})
    clock.now_s = 1001.0
    assert source.read() == Reading(
        1001.0, battery_pct=33.0, on_mains=False, temperature_c=50.0, temperature_limit_c=85.0
    )


def test_this_machine_can_be_read_whatever_it_has() -> None:
    reading = linux_telemetry().read()
    assert reading.battery_pct is None or 0.0 <= reading.battery_pct <= 100.0
