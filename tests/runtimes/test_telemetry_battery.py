"""Batteries and mains, from trees as real devices have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sensor_tree import write_supply

from nsn_edge.runtimes.telemetry import LinuxBattery, Reading


def read(root: Path) -> Reading:
    return LinuxBattery(root, clock=lambda: 7.0).read()


def battery(root: Path, name: str = "BAT0", **files: object) -> Path:
    return write_supply(root, name, {"type": "Battery", **files})


def test_a_device_without_supplies_knows_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == Reading(7.0)


def test_a_laptop_on_battery(tmp_path: Path) -> None:
    battery(tmp_path, status="Discharging", capacity=63, energy_now=31_000_000, energy_full=50_000_000, power_now=9e6)
    write_supply(tmp_path, "AC", {"type": "Mains", "online": 0})
    assert read(tmp_path) == Reading(7.0, battery_pct=63.0, on_mains=False, power_mw=9000.0, battery_j=31 * 3600.0)


@pytest.mark.parametrize("current_ua", [-1_500_000, 1_500_000])
def test_the_sign_of_the_current_means_nothing(tmp_path: Path, current_ua: int) -> None:
    battery(tmp_path, status="Discharging", capacity=50, current_now=current_ua, voltage_now=8_000_000)
    assert read(tmp_path).power_mw == pytest.approx(12_000.0)


def test_a_charging_battery_says_nothing_of_the_devices_power(tmp_path: Path) -> None:
    battery(tmp_path, status="Charging", capacity=50, power_now=20_000_000)
    assert read(tmp_path).power_mw is None


@pytest.mark.parametrize(
    ("statuses", "online", "expected"),
    [
        (["Discharging"], [], False),
        (["Charging"], [], True),
        (["Full"], [], True),
        (["Not charging"], [], True),
        (["Unknown"], [], None),
        ([], [], None),
        ([], [1], True),
        ([], [2], True),
        ([], [0], False),
        ([], [0, 1], True),
        (["Unknown"], [0], False),
        (["Unknown"], [1], True),
        (["Full"], [0], False),
        (["Not charging", "Discharging"], [0], False),
        (["Charging", "Discharging"], [1], True),
        # Plugged into something too weak: the battery pays.
        (["Discharging"], [1], False),
    ],
)
def test_who_pays(tmp_path: Path, statuses: list[str], online: list[int], expected: bool | None) -> None:
    for index, status in enumerate(statuses):
        battery(tmp_path, f"BAT{index}", status=status, capacity=50)
    for index, value in enumerate(online):
        write_supply(tmp_path, f"ucsi{index}", {"type": "USB", "online": value})
    assert read(tmp_path).on_mains is expected


def test_several_batteries_are_added_up_by_energy(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", status="Unknown", capacity=100, energy_now=20e6, energy_full=20e6)
    battery(tmp_path, "BAT1", status="Discharging", capacity=20, energy_now=12e6, energy_full=60e6)
    assert read(tmp_path).battery_pct == pytest.approx(100 * (20 + 12) / (20 + 60))


def test_charge_becomes_energy_by_the_voltage(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", capacity=100, charge_now=2e6, charge_full=2e6, voltage_min_design=10e6)
    battery(tmp_path, "BAT1", capacity=0, energy_now=0, energy_full=60e6)
    assert read(tmp_path).battery_pct == pytest.approx(25.0)


def test_batteries_of_unknown_size_count_equally(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", capacity=100, energy_now=20e6, energy_full=20e6)
    battery(tmp_path, "BAT1", capacity=20)
    assert read(tmp_path).battery_pct == pytest.approx(60.0)


def test_without_capacity_the_charge_counts(tmp_path: Path) -> None:
    battery(tmp_path, charge_now=900_000, charge_full=3_000_000)
    assert read(tmp_path).battery_pct == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("capacity", "expected"), [("103", 100.0), ("0", 0.0), ("-1", None), ("", None), ("nan", None), ("full", None)]
)
def test_odd_capacities(tmp_path: Path, capacity: str, expected: float | None) -> None:
    battery(tmp_path, status="Discharging", capacity=capacity)
    assert read(tmp_path).battery_pct == expected


def test_a_size_of_zero_is_not_divided_by(tmp_path: Path) -> None:
    battery(tmp_path, status="Discharging", charge_now=0, charge_full=0)
    assert read(tmp_path).battery_pct is None


def test_the_batteries_of_mice_are_not_ours(tmp_path: Path) -> None:
    write_supply(tmp_path, "hidpp_battery_0", {"type": "Battery", "scope": "Device", "capacity": 5, "status": "Full"})
    assert read(tmp_path) == Reading(7.0)


def test_an_empty_bay_is_no_battery(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", present=1, status="Discharging", capacity=80)
    battery(tmp_path, "BAT1", present=0, status="Unknown", capacity=0)
    assert read(tmp_path).battery_pct == 80.0


def test_a_ups_is_a_battery(tmp_path: Path) -> None:
    write_supply(tmp_path, "ups", {"type": "UPS", "status": "Discharging", "capacity": 44})
    assert read(tmp_path) == Reading(7.0, battery_pct=44.0, on_mains=False)


def test_power_of_one_silent_battery_makes_the_sum_unknown(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", status="Discharging", capacity=80, power_now=5e6)
    battery(tmp_path, "BAT1", status="Discharging", capacity=80)
    assert read(tmp_path).power_mw is None


def test_a_battery_that_vanishes_is_unknown_the_next_time(tmp_path: Path) -> None:
    folder = battery(tmp_path, status="Discharging", capacity=80)
    source = LinuxBattery(tmp_path, clock=lambda: 7.0)
    assert source.read().battery_pct == 80.0
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert source.read() == Reading(7.0)


def test_a_battery_whose_every_file_is_a_folder(tmp_path: Path) -> None:
    for name in ("status", "capacity", "energy_now"):
        (battery(tmp_path) / name).mkdir()
    assert read(tmp_path) == Reading(7.0)


# --- energy left ----------------------------------------------------------------------------------------------------


def test_energy_left_in_several_batteries_is_added_up(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", status="Unknown", energy_now=20e6, energy_full=20e6)
    battery(tmp_path, "BAT1", status="Discharging", energy_now=12e6, energy_full=60e6)
    assert read(tmp_path).battery_j == pytest.approx(32 * 3600.0)


@pytest.mark.parametrize(
    ("files", "left_wh"),
    [
        ({"energy_now": 30e6}, 30.0),
        ({"charge_now": 2e6, "voltage_min_design": 10e6, "voltage_now": 12e6}, 20.0),
        ({"charge_now": 2e6, "voltage_now": 12e6}, 24.0),
        ({"charge_now": 2e6}, None),
        ({"energy_full": 50e6, "capacity": 40}, 20.0),
        ({"charge_full": 4e6, "voltage_min_design": 10e6, "capacity": 25}, 10.0),
        ({"energy_now": 30e6, "charge_now": 2e6, "charge_full": 4e6, "voltage_now": 12e6}, 30.0),
        ({"capacity": 40}, None),
        ({"energy_now": -1}, None),
        ({"energy_now": 0, "energy_full": 50e6}, 0.0),
    ],
)
def test_energy_left_from_what_a_battery_tells(tmp_path: Path, files: dict[str, object], left_wh: float | None) -> None:
    battery(tmp_path, status="Discharging", **files)
    assert read(tmp_path).battery_j == (None if left_wh is None else pytest.approx(left_wh * 3600.0))


def test_one_battery_that_does_not_say_makes_the_energy_unknown(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", energy_now=20e6, energy_full=20e6)
    battery(tmp_path, "BAT1", capacity=50)
    assert read(tmp_path).battery_j is None
    assert read(tmp_path).battery_pct == pytest.approx(75.0)
