"""tegrastats as a running child: it speaks, dies, hangs, stammers or is not there, and nobody waits for it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jetson_trees import TEGRASTATS_LINES, write_program
from sensor_tree import HandClock

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.telemetry import Reading
from nsn_edge.runtimes.telemetry.jetson import TegrastatsSource
from nsn_edge.runtimes.telemetry.jetson.tegrastats import COMMAND, find_tegrastats

LINE = TEGRASTATS_LINES["orin-nano-jp5"]
PAUSES_S = (0.01,)


def source_of(root: Path, script: str, **settings: object) -> TegrastatsSource:
    """A source whose program notes each of its starts in `starts`, then runs the script."""
    program = write_program(root, "usr/bin/tegrastats", f"echo $$ >> '{root}/starts'\nLINE='{LINE}'\n{script}")
    return TegrastatsSource((str(program), "--interval", "1000"), **{"pauses_s": PAUSES_S, **settings})


def starts(root: Path) -> list[int]:
    file = root / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds. The limit is for a broken program, not for a slow machine."""
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("it never came to hold")


def is_running(pid: int) -> bool:
    """Whether a process lives. One that ended and is nobody's child any more may stay as a zombie in a container."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_line_becomes_a_reading_with_its_age_and_is_forgotten(tmp_path: Path) -> None:
    clock = HandClock()
    with source_of(tmp_path, 'echo "$LINE"; exec sleep 1000', clock=clock, max_age_s=5.0) as source:
        assert source.wait(60.0)
        clock.now_s += 5.0
        reading = source.read()
        assert (reading.time_s, reading.age_s) == (1005.0, 5.0)
        assert (reading.temperature_c, reading.power_mw, reading.gpu_load_pct) == (65.562, 17946.0, 84.0)
        clock.now_s += 0.1
        assert source.read() == Reading(1005.1), "unknown, not the last value for ever"


def test_reading_never_waits_and_the_first_one_starts_the_program(tmp_path: Path) -> None:
    source = source_of(tmp_path, "exec sleep 1000", clock=lambda: 7.0)
    assert not starts(tmp_path)
    assert source.read() == Reading(7.0)
    eventually(lambda: len(starts(tmp_path)) == 1)
    assert source.read() == Reading(7.0), "it said nothing yet"
    source.close()


def threads_of_sources() -> int:
    return sum("TegrastatsSource" in thread.name for thread in threading.enumerate())


def test_closing_ends_the_child_and_the_thread(tmp_path: Path) -> None:
    source = source_of(tmp_path, 'echo "$LINE"; exec sleep 1000')
    assert source.wait(60.0)
    (pid,) = starts(tmp_path)
    assert threads_of_sources() == 1
    source.close(timeout_s=60.0)
    source.close()
    assert not Path(f"/proc/{pid}").exists(), "ended, and its status taken"
    assert threads_of_sources() == 0
    assert source.read().temperature_c is None
    source.start()
    assert threads_of_sources() == 0, "closed for good"


def test_closing_lets_go_of_every_descriptor(tmp_path: Path) -> None:
    """In a process of its own, where nobody else opens or closes any."""
    write_program(tmp_path, "tegrastats", f"echo '{LINE}'; exec sleep 1000")
    code = f"""
import os
from nsn_edge.runtimes.telemetry.jetson import TegrastatsSource
before = len(os.listdir("/proc/self/fd"))
TegrastatsSource(({str(tmp_path / "tegrastats")!r},)).close()
for _ in range(3):
    with TegrastatsSource(({str(tmp_path / "tegrastats")!r},)) as source:
        assert source.wait(60.0)
try:
    TegrastatsSource(max_age_s=-1.0)
except Exception as error:
    print(type(error).__name__, len(os.listdir("/proc/self/fd")) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "UsageError 0\n"


def test_a_child_that_ignores_the_signal_is_killed_with_its_own_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nsn_edge.runtimes.telemetry.jetson.tegrastats._GRACE_S", 0.1)
    script = f"""trap '' TERM
sh -c 'trap "" TERM; echo $$ >> {tmp_path}/starts; while :; do sleep 0.05; done' &
echo "$LINE"
while :; do sleep 0.05; done"""
    source = source_of(tmp_path, script)
    assert source.wait(60.0)
    eventually(lambda: len(starts(tmp_path)) == 2)
    source.close(timeout_s=60.0)
    eventually(lambda: not any(map(is_running, starts(tmp_path))))


def test_a_child_that_dies_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with source_of(tmp_path, 'echo "$LINE"; kill -9 $$') as source:
        eventually(lambda: source.heard >= 3)
    assert len(starts(tmp_path)) >= 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "said once, not at every death"


def test_pauses_grow_and_end_at_the_last_one(tmp_path: Path) -> None:
    pauses: list[float | None] = []
    source = source_of(tmp_path, "exit 1", pauses_s=(1.0, 2.0, 60.0))

    class Closing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            if len(pauses) == 5:
                self.set()
            return self.is_set()

    source._closing = Closing()
    with source:
        eventually(lambda: len(pauses) == 5)
    assert pauses == [1.0, 2.0, 60.0, 60.0, 60.0]


def test_a_program_that_worked_for_a_while_begins_with_the_short_pause_again(tmp_path: Path) -> None:
    pauses: list[float | None] = []
    script = f'[ $(wc -l < {tmp_path}/starts) = 3 ] && for i in 1 2 3 4 5 6 7 8 9 10; do echo "$LINE"; done\nexit 1'
    source = source_of(tmp_path, script, pauses_s=(1.0, 2.0, 60.0))

    class Closing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            if len(pauses) == 4:
                self.set()
            return self.is_set()

    source._closing = Closing()
    with source:
        eventually(lambda: len(pauses) == 4)
    assert pauses == [1.0, 2.0, 1.0, 2.0]


def test_halves_of_lines_are_put_together_and_a_cut_end_is_left_out(tmp_path: Path) -> None:
    script = "printf 'RAM 1/2MB tj@3'; sleep 0.1; printf '6C GR3D_FREQ 5'; sleep 0.1; printf '%% \\nRAM 1/2MB tj@9C'"
    with source_of(tmp_path, script, pauses_s=(1000.0,)) as source:
        assert source.wait(60.0)
        eventually(lambda: not any(map(is_running, starts(tmp_path))))
        reading = source.read()
    assert (reading.temperature_c, reading.gpu_load_pct) == (36.0, 5.0)
    assert source.heard == 1, "the last line has no end"


def test_noise_is_left_out_and_never_piles_up(tmp_path: Path) -> None:
    script = "echo Oops; head -c 300000 /dev/zero; printf '\\377\\376\\n\\n'; echo \"$LINE\"; exec sleep 1000"
    with source_of(tmp_path, script) as source:
        assert source.wait(60.0)
        assert source.read().power_mw == 17946.0
        assert source.heard == 1


def test_a_silent_child_is_ended_and_started_again(tmp_path: Path) -> None:
    script = f'[ $(wc -l < {tmp_path}/starts) = 1 ] && exec sleep 1000\necho "$LINE"; exec sleep 1000'
    with source_of(tmp_path, script, silence_s=0.5) as source:
        assert source.wait(60.0)
        assert not is_running(starts(tmp_path)[0])


def test_a_program_that_is_not_there_is_survived_and_found_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "usr/bin/tegrastats"
    with TegrastatsSource((str(program),), pauses_s=PAUSES_S) as source:
        eventually(lambda: bool(caplog.records))
        assert source.read().temperature_c is None
        written = write_program(tmp_path, "usr/bin/written", f"echo '{LINE}'; exec sleep 1000")
        written.rename(program)
        assert source.wait(60.0)
    assert len(caplog.records) == 1
    assert "No such file" in caplog.text


def test_the_program_is_asked_for_a_line_a_second_and_found_below_the_root(tmp_path: Path) -> None:
    assert find_tegrastats(tmp_path) is None
    script = f'echo "$@" > {tmp_path}/arguments; echo "RAM 1/2MB tj@36C"'
    program = write_program(tmp_path, "usr/bin/tegrastats", script)
    assert find_tegrastats(tmp_path) == program
    with TegrastatsSource((str(program), *COMMAND[1:]), pauses_s=(1000.0,)) as source:
        assert source.wait(60.0)
    assert (tmp_path / "arguments").read_text() == "--interval 1000\n"
    program.chmod(0o644)
    if os.geteuid() != 0:
        assert find_tegrastats(tmp_path) is None


def test_an_application_that_ends_without_closing_leaves_no_child_behind(tmp_path: Path) -> None:
    write_program(tmp_path, "tegrastats", f"echo $$ >> {tmp_path}/starts; while :; do echo '{LINE}'; sleep 0.05; done")
    code = (
        "from nsn_edge.runtimes.telemetry.jetson import TegrastatsSource; "
        f"source = TegrastatsSource(({str(tmp_path / 'tegrastats')!r},)); "
        "print(source.wait(60.0), source.read().power_mw)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "True 17946.0\n"
    eventually(lambda: not is_running(starts(tmp_path)[0]))


@pytest.mark.parametrize("settings", [{"max_age_s": -1.0}, {"max_age_s": float("nan")}, {"pauses_s": ()}])
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        TegrastatsSource(**settings)
