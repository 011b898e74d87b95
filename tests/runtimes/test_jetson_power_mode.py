"""The power mode's name, from files or from a program that may print anything, hang or fail."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from jetson_trees import write_file, write_power_mode, write_program
from sensor_tree import HandClock

from nsn_edge.runtimes.telemetry.jetson.power_mode import PowerMode, Run, parse_nvpmodel, run_program
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles


def mode_of(root: Path, run: Run = run_program, clock: HandClock | None = None) -> PowerMode:
    clock = clock or HandClock()
    return PowerMode(root, SensorFiles(clock), clock, run)


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n", "MODE_15W_6CORE"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN_SUPER\r\n2\r\n", "MAXN_SUPER"),
        ("NV Power Mode: 120W\n1", "120W"),
        ("NVPM ERROR: Error opening /sys/devices/17000000.ga10b/tpc_pg_mask: 13\nNVPM ERROR: failed\n", None),
        ("NVPM ERROR: optMask is 1, no request for power mode\n", None),
        ("NV Power Mode:\n0\n", None),
        ("NV Power Mode: two words\n", None),
        ("NV Power Mode: " + "X" * 65 + "\n", None),
        ("what was the NV Power Mode: MAXN\n", None),
        ("", None),
    ],
)
def test_the_name_in_what_nvpmodel_prints(output: str, name: str | None) -> None:
    assert parse_nvpmodel(output) == name


def never(arguments: Sequence[str], timeout_s: float) -> str | None:
    raise AssertionError("the files tell, so no program is needed")


def test_the_files_tell_at_once_and_follow_a_change(tmp_path: Path) -> None:
    write_power_mode(tmp_path, 2, {0: "MAXN", 2: "MODE_30W"})
    write_program(tmp_path, "usr/sbin/nvpmodel", "exit 1")
    mode = mode_of(tmp_path, never)
    assert mode.name() == "MODE_30W"
    write_file(tmp_path / "var/lib/nvpmodel/status", "pmode:0000")
    assert mode.name() == "MAXN"


def counting(answers: list[str | None], calls: list[list[str]]) -> Run:
    def run(arguments: Sequence[str], timeout_s: float) -> str | None:
        calls.append(list(arguments))
        assert timeout_s > 0
        return answers[min(len(calls), len(answers)) - 1]

    return run


@pytest.mark.parametrize("status", [None, "pmode:0009", "pmode:", "", "garbage"])
def test_the_program_is_asked_once_where_the_files_do_not_tell(tmp_path: Path, status: str | None) -> None:
    write_power_mode(tmp_path, 0, {0: "MAXN"})
    if status is None:
        (tmp_path / "var/lib/nvpmodel/status").unlink()
    else:
        write_file(tmp_path / "var/lib/nvpmodel/status", status)
    program = write_program(tmp_path, "usr/sbin/nvpmodel", "exit 1")
    clock, calls = HandClock(), []
    mode = mode_of(tmp_path, counting(["NV Power Mode: 7W\n1\n", "NV Power Mode: 15W\n0\n"], calls), clock)
    mode.name()
    mode.settle(30.0)
    for _ in range(100):
        assert mode.name() == "7W"
        clock.now_s += 1.0
    assert calls == [[str(program), "-q"]], "asked, never set, and not again within ten minutes"
    clock.now_s += 600.0
    mode.name()
    mode.settle(30.0)
    assert mode.name() == "15W"
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("echo 'NV Fan Mode:quiet'; echo 'NV Power Mode: 25W'; echo 1", "25W"),
        ("echo 'NVPM ERROR: not permitted'; exit 0", None),
        ("echo 'NV Power Mode: 25W'; exit 3", None),
        ("printf '\\377\\376 NV'", None),
        ("cat; echo 'NV Power Mode: 25W'", "25W"),
        ("test \"$*\" = -q && echo 'NV Power Mode: 25W'", "25W"),
    ],
    ids=["says", "error-exit-0", "fails", "bytes", "wants-input", "only-asks"],
)
def test_a_real_child(tmp_path: Path, script: str, name: str | None) -> None:
    write_program(tmp_path, "usr/sbin/nvpmodel", script)
    mode = mode_of(tmp_path)
    assert mode.name() in (None, name), "asks; a quick child may have answered by now"
    mode.settle(30.0)
    assert mode.name() == name


def test_a_program_that_hangs_is_killed(tmp_path: Path) -> None:
    program = write_program(tmp_path, "hangs", "exec sleep 1000")
    assert run_program([str(program)], 0.05) is None
    assert run_program([str(tmp_path / "absent")], 1.0) is None


def test_reading_goes_on_while_the_program_hangs_and_an_old_answer_is_forgotten(tmp_path: Path) -> None:
    write_program(tmp_path, "usr/sbin/nvpmodel", "exit 1")
    release, calls = threading.Event(), []

    def run(arguments: Sequence[str], timeout_s: float) -> str | None:
        calls.append(arguments)
        if len(calls) == 2:
            release.wait(30.0)
        return "NV Power Mode: 7W\n"

    clock = HandClock()
    mode = mode_of(tmp_path, run, clock)
    mode.name()
    mode.settle(30.0)
    clock.now_s += 600.0
    assert mode.name() == "7W", "the second question hangs"
    clock.now_s += 1199.0
    assert mode.name() == "7W"
    clock.now_s += 2.0
    assert mode.name() is None, "20 minutes old"
    assert len(calls) == 2, "no second program beside one that hangs"
    release.set()
    mode.settle(30.0)


def test_a_runner_that_raises_is_an_unknown_mode(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_program(tmp_path, "usr/sbin/nvpmodel", "exit 1")

    def run(arguments: Sequence[str], timeout_s: float) -> str | None:
        raise MemoryError("no")

    mode = mode_of(tmp_path, run)
    mode.name()
    mode.settle(30.0)
    assert mode.name() is None
    assert "power mode" in caplog.text


def test_no_program_and_no_files(tmp_path: Path) -> None:
    assert mode_of(tmp_path, never).name() is None
