"""A whole Jetson as one source: files first, programs only for what the files do not give."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fake_jtop import ORIN_NANO, FakeJtop
from jetson_trees import (
    BOARDS,
    TEGRASTATS_LINES,
    agx_orin_jp6,
    orin_nano_jp5,
    thor_r38,
    write_identity,
    write_ina3221,
    write_program,
)
from sensor_tree import HandClock, write_supply, write_zone

from nsn_edge.runtimes.telemetry import Combined, LinuxBattery, Reading
from nsn_edge.runtimes.telemetry.jetson import JetsonSensors, JtopSource, TegrastatsSource, jetson_telemetry
from nsn_edge.runtimes.telemetry.jetson.telemetry import PATIENCE_S, first_known


def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("it never came to hold")


def test_no_jetson_is_none(tmp_path: Path) -> None:
    assert jetson_telemetry(tmp_path) is None
    write_zone(tmp_path, 0, "x86_pkg_temp", 50000)
    assert jetson_telemetry(tmp_path) is None


@pytest.mark.parametrize("board", BOARDS)
def test_the_files_are_enough_on_every_generation_and_no_program_is_started(tmp_path: Path, board: str) -> None:
    BOARDS[board](tmp_path)
    write_program(tmp_path, "usr/bin/tegrastats", f"touch {tmp_path}/started")
    clock = HandClock()
    with jetson_telemetry(tmp_path, clock, jtop=FakeJtop(RuntimeError("not asked"))) as source:
        for _ in range(20):
            reading = source.read()
            assert replace(reading, over_current=None) == replace(
                JetsonSensors(tmp_path, clock).read(), over_current=None
            )
            clock.now_s += 1.0
        assert source.fallbacks == ()
    assert not (tmp_path / "started").exists()


def bare_orin(root: Path) -> Path:
    """A container: the device tree and nothing else."""
    write_identity(root, "NVIDIA Orin Nano Developer Kit", "nvidia,tegra234", release=None)
    return root


def test_tegrastats_gives_what_the_files_do_not_and_the_files_win(tmp_path: Path) -> None:
    bare_orin(tmp_path)
    write_zone(tmp_path, 0, "tj-thermal", 41000, [("passive", 99000)])
    write_program(tmp_path, "usr/bin/tegrastats", f"echo '{TEGRASTATS_LINES['orin-nano-jp5']}'; exec sleep 1000")
    clock = HandClock()
    with jetson_telemetry(tmp_path, clock) as source:
        for _ in range(5):
            assert source.read().rails_mw == {}
            clock.now_s += 1.0
        assert source.fallbacks == (), "drivers may come late: a little patience"
        source.read()
        (tegrastats,) = source.fallbacks
        assert isinstance(tegrastats, TegrastatsSource)
        assert tegrastats.wait(60.0)
        clock.now_s += 2.0
        reading = source.read()
        assert (reading.temperature_c, reading.temperature_limit_c) == (41.0, 99.0), "the files'"
        assert (reading.power_mw, reading.gpu_load_pct, reading.gpu_mhz) == (17946.0, 84.0, 713.0)
        assert reading.rails_mw == {"VDD_IN": 17946.0, "VDD_CPU_GPU_CV": 8896.0, "VDD_SOC": 3923.0}
        assert reading.age_s == 2.0
        assert reading.time_s == clock.now_s
    assert source.fallbacks == ()
    assert source.read().power_mw is None, "closed: the files alone"


def test_jtop_comes_last(tmp_path: Path) -> None:
    bare_orin(tmp_path)
    write_program(tmp_path, "usr/bin/tegrastats", f"echo '{TEGRASTATS_LINES['tx2-unprivileged']}'; exec sleep 1000")
    hang = threading.Event()
    clock = HandClock()
    with jetson_telemetry(tmp_path, clock, jtop=FakeJtop([ORIN_NANO, hang])) as source:
        source.read()
        clock.now_s += PATIENCE_S
        source.read()
        clock.now_s += PATIENCE_S - 1.0
        source.read()
        assert [type(fallback) for fallback in source.fallbacks] == [TegrastatsSource]
        clock.now_s += 1.0
        source.read()
        assert [type(fallback) for fallback in source.fallbacks] == [TegrastatsSource, JtopSource]
        eventually(lambda: source.read().power_mw == 17946.0)
        assert source.read().power_mode == "MAXN_SUPER"
        for _ in range(20):
            clock.now_s += 10.0
            source.read()
        assert len(source.fallbacks) == 2, "there is nothing more to ask"
        hang.set()


def test_without_any_program_it_goes_on(tmp_path: Path) -> None:
    bare_orin(tmp_path)
    clock = HandClock()
    with jetson_telemetry(tmp_path, clock) as source:
        for _ in range(60):
            assert source.read() == Reading(clock.now_s)
            clock.now_s += 1.0
        assert source.fallbacks == ()


def test_files_that_come_late_are_used(tmp_path: Path) -> None:
    bare_orin(tmp_path)
    clock = HandClock()
    with jetson_telemetry(tmp_path, clock) as source:
        for _ in range(30):
            source.read()
            clock.now_s += 1.0
        orin_nano_jp5(tmp_path)
        assert source.read().power_mw == 5300.0


def test_thors_load_is_not_looked_for_where_it_is_not(tmp_path: Path) -> None:
    thor_r38(tmp_path)
    write_program(tmp_path, "usr/bin/tegrastats", f"touch {tmp_path}/started; exec sleep 1000")
    clock = HandClock()
    with jetson_telemetry(tmp_path, clock) as source:
        for _ in range(60):
            assert source.read().gpu_load_pct is None
            clock.now_s += 1.0
        assert source.fallbacks == ()


def test_a_sensor_that_falls_silent_starts_no_program(tmp_path: Path) -> None:
    agx_orin_jp6(tmp_path)
    write_program(tmp_path, "usr/bin/tegrastats", f"touch {tmp_path}/started; exec sleep 1000")
    clock = HandClock()
    with jetson_telemetry(tmp_path, clock) as source:
        assert source.read().temperature_c == 66.0
        for zone in (tmp_path / "sys/class/thermal").glob("thermal_zone*/temp"):
            zone.write_text("-256000")
        write_ina3221(tmp_path, 2, {"VDD_GPU_SOC": ("", "")})
        for _ in range(60):
            clock.now_s += 1.0
            assert source.read().temperature_c is None
        assert source.fallbacks == ()


def test_the_power_mode_is_asked_for_and_nothing_is_ever_set(tmp_path: Path) -> None:
    bare_orin(tmp_path)
    write_program(tmp_path, "usr/sbin/nvpmodel", "exit 1")
    asked: list[Sequence[str]] = []

    def run(arguments: Sequence[str], timeout_s: float) -> str | None:
        asked.append(arguments)
        return "NV Power Mode: 25W\n1\n"

    with jetson_telemetry(tmp_path, HandClock(), run) as source:
        source.read()
        source.sensors.power_mode.settle(60.0)
        assert source.read().power_mode == "25W"
    assert asked == [[str(tmp_path / "usr/sbin/nvpmodel"), "-q"]]


def test_a_limit_stays_with_its_temperature_and_a_power_with_its_rails() -> None:
    readings = (
        Reading(1.0, temperature_c=40.0, rails_mw={"VDD_SOC": 5.0}, age_s=1.0),
        Reading(2.0, age_s=9.0),
        Reading(
            3.0,
            temperature_c=60.0,
            temperature_limit_c=99.0,
            power_mw=7.0,
            gpu_mhz=5.0,
            rails_mw={"A": 1.0},
            age_s=3.0,
        ),
    )
    assert first_known(readings, 8.0) == Reading(
        8.0, temperature_c=40.0, gpu_mhz=5.0, rails_mw={"VDD_SOC": 5.0}, age_s=3.0
    )
    assert first_known((), 8.0) == Reading(8.0)


def test_it_combines_with_a_battery(tmp_path: Path) -> None:
    orin_nano_jp5(tmp_path)
    write_supply(tmp_path, "BAT0", {"type": "Battery", "status": "Discharging", "capacity": 40, "power_now": 9e6})
    clock = HandClock()
    with jetson_telemetry(tmp_path, clock) as jetson:
        reading = Combined(LinuxBattery(tmp_path, clock), jetson, clock=clock).read()
    assert reading.battery_pct == 40.0
    assert reading.temperature_c == 48.875
    assert reading.gpu_load_pct == 84.3


def test_a_board_that_is_off_the_record_is_read_like_this_machine() -> None:
    source = jetson_telemetry()
    if source is not None:  # a Jetson runs the tests
        with source:
            assert source.read().time_s > 0.0


def test_nothing_heavy_and_no_jtop_is_imported() -> None:
    code = (
        "import sys; import nsn_edge.runtimes.telemetry.jetson as j; j.jetson_telemetry(); "
        "print(sorted({'torch', 'onnx', 'transformers', 'onnxruntime', 'numpy', 'jtop'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert set(done.stdout.strip("[]\n").replace("'", "").split(", ")) <= {"", "numpy"}
