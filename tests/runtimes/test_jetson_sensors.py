"""A Jetson's sensor files: what each generation gives, and every fault that the real ones are known for."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest
from jetson_trees import (
    BOARDS,
    GatedFile,
    agx_orin_jp6,
    orin_nano_jp5,
    thor_r38,
    write_file,
    write_gpu,
    write_hwmon,
    write_ina3221,
    write_ina3221x,
)
from sensor_tree import HandClock, write_cooling, write_zone

from nsn_edge.runtimes.telemetry import Reading
from nsn_edge.runtimes.telemetry.jetson import JetsonSensors
from nsn_edge.runtimes.telemetry.jetson.rails import board_power_mw, rail_power_mw

EXPECTED = {
    "nano-jp4": Reading(
        7.0,
        temperature_c=36.5,
        temperature_limit_c=97.0,
        power_mw=1022.0,
        gpu_load_pct=51.2,
        gpu_mhz=76.8,
        power_mode="5W",
        rails_mw={"POM_5V_IN": 1022.0, "POM_5V_GPU": 0.0, "POM_5V_CPU": 204.0},
    ),
    "tx2-jp4": Reading(
        7.0,
        temperature_c=43.0,
        temperature_limit_c=95.5,
        power_mw=5297.0,
        gpu_load_pct=0.0,
        gpu_mhz=114.75,
        power_mode="MAXN",
        rails_mw={
            "VDD_SYS_GPU": 182.0,
            "VDD_SYS_SOC": 730.0,
            "VDD_4V0_WIFI": 0.0,
            "VDD_IN": 5297.0,
            "VDD_SYS_CPU": 1917.0,
            "VDD_SYS_DDR": 1241.0,
        },
    ),
    "agx-xavier-jp4": Reading(
        7.0,
        temperature_c=37.5,
        temperature_limit_c=86.0,
        gpu_load_pct=0.5,
        gpu_mhz=318.75,
        power_mode="MODE_15W",
        rails_mw={"GPU": 0.0, "CPU": 311.0, "SOC": 932.0, "CV": 0.0, "VDDRQ": 621.0, "SYS5V": 1482.0},
    ),
    "orin-nano-jp5": Reading(
        7.0,
        temperature_c=48.875,
        temperature_limit_c=99.0,
        throttling=False,
        power_mw=5300.0,
        gpu_load_pct=84.3,
        gpu_mhz=611.0,
        power_mode="15W",
        rails_mw={"VDD_IN": 5300.0, "VDD_CPU_GPU_CV": 773.0, "VDD_SOC": 1424.0},
    ),
    "agx-orin-jp6": Reading(
        7.0,
        temperature_c=66.0,
        temperature_limit_c=112.0,
        throttling=False,
        gpu_load_pct=98.0,
        gpu_mhz=1185.75,
        power_mode="MAXN",
        rails_mw={
            "VDD_GPU_SOC": 22680.32,
            "VDD_CPU_CV": 0.0,
            "VIN_SYS_5V0": 14716.8,
            "VDDQ_VDD2_1V8AO": 7022.4,
        },
    ),
    "thor-r38": Reading(
        7.0,
        temperature_c=36.031,
        temperature_limit_c=104.0,
        throttling=False,
        power_mode="120W",
        rails_mw={"VDD_GPU": 0.0, "VDD_CPU_SOC_MSS": 4923.0, "VIN_SYS_5V0": 4327.0},
    ),
}


def read(root: Path) -> Reading:
    return JetsonSensors(root, clock=lambda: 7.0).read()


@pytest.mark.parametrize("board", BOARDS)
def test_every_generation_is_read_whole(tmp_path: Path, board: str) -> None:
    assert read(BOARDS[board](tmp_path)) == EXPECTED[board]


def test_no_jetson_knows_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == Reading(7.0)


# The rails.


def test_a_rail_that_is_no_input_never_counts_as_the_board() -> None:
    recorded = EXPECTED["agx-xavier-jp4"].rails_mw
    assert recorded["SYS5V"] < sum(power for name, power in recorded.items() if name != "SYS5V")
    assert board_power_mw(recorded) is None, "SYS5V is below the sum of the others: it cannot be their input"
    assert board_power_mw({"VDD_GPU_SOC": 3205.0, "VDD_CPU_CV": 4405.0, "VIN_SYS_5V0": 4767.0}) is None
    assert board_power_mw({}) is None
    assert board_power_mw({"VDD_IN": 0.0, "VDD_SOC": 5.0}) == 0.0


@pytest.mark.parametrize(
    ("measured_mw", "expected_mw"),
    [(None, None), (-392.0, 0.0), (0.0, 0.0), (17.5, 17.5), (float("nan"), None), (float("inf"), None), (1e7, None)],
)
def test_a_rail_at_rest_is_zero_and_nonsense_is_unknown(measured_mw: float | None, expected_mw: float | None) -> None:
    assert rail_power_mw(measured_mw) == expected_mw


def test_chips_are_found_by_name_whatever_their_numbers(tmp_path: Path) -> None:
    orin_nano_jp5(tmp_path)
    sensors = JetsonSensors(tmp_path, clock=lambda: 7.0)
    before = sensors.read().rails_mw
    hwmon = tmp_path / "sys/class/hwmon"
    (hwmon / "hwmon3").rename(hwmon / "hwmon0x")
    (hwmon / "hwmon0").rename(hwmon / "hwmon3")
    (hwmon / "hwmon0x").rename(hwmon / "hwmon12")
    assert sensors.read().rails_mw == before, "the driver was bound again"
    assert read(tmp_path).rails_mw == before, "another boot"


def test_rails_are_found_through_the_driver_where_the_class_is_missing(tmp_path: Path) -> None:
    chip = write_ina3221(tmp_path, 4, {"VDD_IN": (5000, 1000)})
    place = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4"
    place.parent.mkdir(parents=True)
    shutil.move(chip, place)
    write_file(tmp_path / "sys/bus/i2c/drivers/ina3221/bind", "")
    assert read(tmp_path).power_mw == 5000.0


def test_an_unconnected_channel_and_the_sum_of_shunts_are_no_rails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(Path(path).name) or real(path, *rest))
    write_ina3221(tmp_path, 0, {"NC1": (5000, 100), "VDD_SOC": (5000, 100), "NC2": (5000, 100)})
    write_ina3221x(tmp_path, "1-0041", {"NC": 300, "VDD_CPU": 100})
    assert read(tmp_path).rails_mw == {"VDD_SOC": 500.0, "VDD_CPU": 100.0}
    asked = [name for name in opened if name.endswith("_input")]
    assert asked == ["in2_input", "curr2_input", "in_power1_input"], "each costs the bus"


@pytest.mark.parametrize("missing", ["in1_input", "curr1_input", "in1_label"])
@pytest.mark.parametrize("fault", ["absent", "empty", "NaN", "-256", "1e999"])
def test_a_rail_without_one_of_its_figures_is_unknown_and_the_others_stay(
    tmp_path: Path, missing: str, fault: str
) -> None:
    chip = write_ina3221(tmp_path, 0, {"VDD_IN": (5000, 1000), "VDD_SOC": (5000, 100)})
    if fault == "absent":
        (chip / missing).unlink()
    else:
        (chip / missing).write_text("" if fault == "empty" else fault)
    reading = read(tmp_path)
    assert reading.power_mw is None
    assert reading.rails_mw["VDD_SOC"] == 500.0
    assert "VDD_IN" not in reading.rails_mw


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINVAL, errno.EIO, errno.ENODATA, errno.EACCES, errno.ENOENT])
def test_files_that_refuse_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    orin_nano_jp5(tmp_path)
    real = os.open

    def refuse(path: os.PathLike[str] | str, *rest: int) -> int:
        if Path(path).name in ("curr1_input", "load", "cur_freq", "temp", "oc1_event_cnt"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    reading = read(tmp_path)
    assert reading.temperature_c is reading.power_mw is reading.gpu_load_pct is reading.gpu_mhz is None
    assert reading.rails_mw == {"VDD_CPU_GPU_CV": 773.0, "VDD_SOC": 1424.0}
    assert reading.power_mode == "15W"


# Gated zones.


def test_a_gated_file_answers_eagain_and_only_os_read_says_so(tmp_path: Path) -> None:
    with GatedFile(tmp_path / "temp"):
        descriptor = os.open(tmp_path / "temp", os.O_RDONLY | os.O_NONBLOCK)
        try:
            with pytest.raises(BlockingIOError):
                os.read(descriptor, 1)
        finally:
            os.close(descriptor)


def test_gated_sensors_are_unknown_and_there_is_no_retry_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thor_r38(tmp_path)
    thermal = tmp_path / "sys/class/thermal"
    gated = [thermal / f"thermal_zone{index}/temp" for index in range(5)]
    gated.append(tmp_path / "sys/class/devfreq/gpu-gpc-0/cur_freq")
    gated.append(tmp_path / "sys/class/hwmon/hwmon6/curr1_input")
    asked = dict.fromkeys(map(str, gated), 0)
    real = os.open

    def count(path: os.PathLike[str] | str, *rest: int) -> int:
        if str(path) in asked:
            asked[str(path)] += 1
        return real(path, *rest)

    clock = HandClock()
    sensors = JetsonSensors(tmp_path, clock)
    with contextlib.ExitStack() as held:
        for path in gated:
            held.enter_context(GatedFile(path))
        monkeypatch.setattr(os, "open", count)
        for _ in range(60):
            reading = sensors.read()
            assert reading.temperature_c is reading.temperature_limit_c is reading.gpu_mhz is None
            assert set(reading.rails_mw) == {"VDD_CPU_SOC_MSS", "VIN_SYS_5V0"}
            clock.now_s += 1.0
    assert set(asked.values()) == {12}, "60 readings, a gated file is asked again every 5 s"


def test_a_zone_that_wakes_up_is_known_again(tmp_path: Path) -> None:
    thor_r38(tmp_path)
    clock = HandClock()
    sensors = JetsonSensors(tmp_path, clock)
    temp = tmp_path / "sys/class/thermal/thermal_zone0/temp"
    with GatedFile(temp):
        assert sensors.read().temperature_c == 35.25, "the cpu's, while tj is gated"
    temp.unlink()
    temp.write_text("40000")
    clock.now_s += 6.0
    assert sensors.read().temperature_c == 40.0


@pytest.mark.parametrize("offline", ["-256", "-256000", "", "NaN"])
def test_offline_zones_and_the_pmic_are_never_a_temperature(tmp_path: Path, offline: str) -> None:
    for index, kind in enumerate(("tj-thermal", "cpu-thermal", "gpu-thermal", "cv0-thermal", "soc0-thermal")):
        write_zone(tmp_path, index, kind, offline)
    write_zone(tmp_path, 9, "PMIC-Die", 100000)
    assert read(tmp_path).temperature_c is None


def test_a_throttle_alert_is_throttling_now(tmp_path: Path) -> None:
    agx_orin_jp6(tmp_path)
    assert read(tmp_path).throttling is False, "a hot surface alone is no throttling"
    write_cooling(tmp_path, 0, "gpu-throttle-alert", 1)
    assert read(tmp_path).throttling is True


# Over-current.


def test_over_current_is_what_happened_since_the_reading_before(tmp_path: Path) -> None:
    chip = write_hwmon(tmp_path, 1, "soctherm_oc", {"oc1_event_cnt": 3, "oc2_event_cnt": 0, "oc3_event_cnt": 7})
    write_hwmon(tmp_path, 2, "other", {"oc1_event_cnt": 0})
    sensors = JetsonSensors(tmp_path, clock=lambda: 7.0)

    def after(**counts: object) -> bool | None:
        for name, count in counts.items():
            (chip / f"{name}_event_cnt").write_text(str(count))
        return sensors.read().over_current

    assert after() is None, "events since boot say nothing of now"
    assert after() is False
    assert after(oc3=8) is True
    assert after() is False
    assert after(oc1="") is False, "the others answer"
    assert after(oc1=4) is True, "it was silent, and has grown meanwhile"
    assert after(oc1=0, oc2="", oc3=0) is None, "the counters began anew"
    assert after(oc1=1) is True
    shutil.rmtree(chip)
    assert after() is None


# The GPU.


@pytest.mark.parametrize(
    "devfreq",
    ["57000000.gpu", "17000000.gp10b", "17000000.gv11b", "17000000.ga10b", "17000000.gpu", "gpu-gpc-0"],
)
def test_the_gpus_clock_by_every_name(tmp_path: Path, devfreq: str) -> None:
    write_gpu(tmp_path, devfreq, 918000000)
    write_gpu(tmp_path, "15340000.vic", 729600000)
    write_gpu(tmp_path, "gpu-nvd-0", 1692000000)
    assert read(tmp_path).gpu_mhz == 918.0


@pytest.mark.parametrize(
    "place",
    ["sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load", "sys/class/devfreq/17000000.gpu/device/load"],
)
def test_the_gpus_load_in_every_place(tmp_path: Path, place: str) -> None:
    write_gpu(tmp_path, "17000000.gpu", 0, 335, place)
    reading = read(tmp_path)
    assert reading.gpu_load_pct == 33.5
    assert reading.gpu_mhz is None, "a gated GPU's 0 is no clock"


@pytest.mark.parametrize("load", ["-1", "1001", "NaN", "", "busy", "-256"])
def test_a_load_that_cannot_be_is_unknown(tmp_path: Path, load: str) -> None:
    write_gpu(tmp_path, "17000000.gpu", 918000000, load, "sys/devices/gpu.0/load")
    assert read(tmp_path).gpu_load_pct is None


# What other sources should be asked for.


def test_what_is_lacking(tmp_path: Path) -> None:
    sensors = JetsonSensors(tmp_path, clock=lambda: 7.0)
    assert sensors.lacks() == {"temperature_c", "rails_mw", "gpu_load_pct"}
    write_zone(tmp_path, 0, "tj", 40000)
    write_gpu(tmp_path, "17000000.gpu", 0, "", "sys/devices/gpu.0/load")
    sensors.read()
    assert sensors.lacks() == {"rails_mw"}, "a load that does not answer now has its place"
    write_ina3221(tmp_path, 0, {"VDD_SOC": (5000, 100)})
    sensors.read()
    shutil.rmtree(tmp_path / "sys/class/hwmon")
    sensors.read()
    assert not sensors.lacks(), "what was known once is asleep or broken"
