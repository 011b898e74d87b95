"""`nsn-edge monitor`: readings for people and programs, recordings that survive a kill, Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Run
from sensor_tree import write_cpu_clock, write_supply, write_zone

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main
from nsn_edge.runtimes.telemetry import Reading, device_telemetry, load_trace

TRACE = """time_s,battery_pct,on_mains,temperature_c,temperature_limit_c,power_mw,rails_mw,waiting
0,80,1,45.5,99,,,
1,79.5,0,46,99,7400,VDD_IN=9761,3
2,,,,,,,
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This device, for the verb."""
    root = tmp_path / "device"
    write_supply(root, "BAT0", {"type": "Battery", "status": "Discharging", "capacity": 50, "power_now": 15_000_000})
    write_zone(root, 0, "x86_pkg_temp", 70_000, [("passive", 100_000)])
    write_cpu_clock(root, 0, 2_800_000)
    monkeypatch.setattr("nsn_edge.runtimes.telemetry.device_telemetry", lambda: device_telemetry(root))
    return root


def test_a_json_document_a_line(run: Run, trace: Path) -> None:
    done = run("monitor", "--trace", trace, "--interval", 0, "--json")
    assert (done.code, done.err) == (0, "")
    documents = [json.loads(line) for line in done.out.splitlines()]
    assert len(documents) == 3
    for document in documents:
        assert (document["schema_version"], document["kind"]) == (1, "reading")
        assert set(document) == set(Reading.__dataclass_fields__) | {"schema_version", "kind"}
    assert documents[0]["temperature_c"] == 45.5
    assert documents[1]["rails_mw"] == {"VDD_IN": 9761.0}
    assert documents[1]["work"] == {"answers": [], "arrivals_per_s": None, "waiting": 3}
    assert documents[2]["battery_pct"] is None


def test_the_last_reading_stays_in_the_json_file(run: Run, trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "now.json"
    assert run("monitor", "--trace", trace, "--interval", 0, "--count", 2, "--json-file", path).code == 0
    assert json.loads(path.read_text())["temperature_c"] == 46.0


def test_a_line_each_for_people_without_a_terminal(run: Run, trace: Path) -> None:
    done = run("monitor", "--trace", trace, "--interval", 0)
    assert done.out.splitlines() == [
        "0.0 s  battery 80.0 % | on mains yes | temperature 45.5 °C of 99.0 °C",
        "1.0 s  battery 79.5 % | on mains no | temperature 46.0 °C of 99.0 °C | power 7.40 W | waiting 3"
        " | VDD_IN 9.76 W",
        "2.0 s  nothing is known",
    ]


def test_a_table_on_a_terminal(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert run_main(main, ["monitor", "--trace", str(trace), "--interval", "0", "--count", "2"]) == 0
    out = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", capsys.readouterr().out)
    for words in ("79.5 %", "46.0 °C of 99.0 °C", "7.40 W", "rail VDD_IN", "unknown", "GPU load", "nsn-edge doctor"):
        assert words in out


def test_this_device_and_a_count(run: Run, laptop: Path) -> None:
    done = run("monitor", "--json", "--count", 2, "--interval", 0.05)
    first, second = (json.loads(line) for line in done.out.splitlines())
    for document in (first, second):
        assert (document["battery_pct"], document["on_mains"], document["power_mw"]) == (50.0, False, 15_000.0)
        assert (document["temperature_c"], document["temperature_limit_c"]) == (70.0, 100.0)
        assert document["cpu_mhz"] == 2800.0
    assert second["time_s"] > first["time_s"]
    assert second["wall_s"] > 1.6e9


def test_a_recording_is_a_trace(run: Run, laptop: Path, tmp_path: Path) -> None:
    path = tmp_path / "shift.csv"
    assert run("monitor", "--count", 3, "--interval", 0.05, "--record", path).code == 0
    recorded = load_trace(path)
    assert len(recorded.readings) == 3
    assert recorded.readings[0].time_s == 0.0
    assert {reading.battery_pct for reading in recorded.readings} == {50.0}


def test_a_log_becomes_a_trace(run: Run, trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.csv"
    assert run("monitor", "--trace", trace, "--interval", 0, "--record", path).code == 0
    assert load_trace(path).readings == load_trace(trace).readings


def test_gaps_are_told(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "gaps.csv"
    path.write_text("time_s,battery_pct,on_mains,temperature_c\n" + "".join(f"{t},80,,\n" for t in (0, 1, 2, 102)))
    done = run("monitor", "--trace", path, "--interval", 0, "--json")
    assert "rows are missing for 90 s in 1 places, unknown there" in done.err
    assert len(done.out.splitlines()) == 5


def test_mistakes_are_one_line(run: Run, trace: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("--interval", 0), "the interval between readings is 0.05 to 86400 s, not 0"),
        (("--interval", "nan"), "the interval between readings is 0.05 to 86400 s, not nan"),
        (("--trace", trace, "--interval", -1), "the interval between readings is 0 to 86400 s, not -1"),
        (("--count", 0), "0"),
        (("--trace", tmp_path / "absent.csv"), "absent.csv: No such file"),
        (("--trace", trace, "--record", trace), "trace.csv is there already"),
        (("--trace", trace, "--record", tmp_path / "absent/x.csv"), "cannot write"),
    ):
        failed = run("monitor", *arguments)
        assert failed.code == 2, arguments
        assert words in failed.message
    assert trace.read_text() == TRACE


def start(*arguments: object) -> subprocess.Popen[str]:
    # Whoever runs the tests in the background of a shell ignores Ctrl-C, and its children inherit that.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from nsn_edge.cli import entry_point; entry_point()"
    line = [sys.executable, "-c", code, "monitor", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("as_json", [True, False])
def test_ctrl_c_ends_it_well(as_json: bool, tmp_path: Path) -> None:
    path = tmp_path / "recorded.csv"
    with start("--interval", 0.05, "--record", path, *(["--json"] if as_json else [])) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert len(load_trace(path).readings) >= 2


def test_a_kill_loses_a_line_at_most(tmp_path: Path) -> None:
    path = tmp_path / "recorded.csv"
    with start("--interval", 0.05, "--record", path) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline()
        process.kill()
        process.communicate()
    assert len(load_trace(path).readings) >= 3
