"""Traces: what is read, what is refused and how it is said, and a trace as a source."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_tree import HandClock

from nsn_edge.errors import TraceError
from nsn_edge.runtimes.data import FIELD_SHIFT_TRACE
from nsn_edge.runtimes.telemetry import Reading, ReplaySource, TelemetryTrace, load_trace

HEADER = "time_s,battery_pct,on_mains,temperature_c"
DATA = Path(os.environ.get("NSN_EDGE_DATA") or Path(__file__).parents[3] / "shared/data")
JTOP_LOG = DATA / "telemetry/agx_orin_jtop_20min_1hz.csv"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_cells_comments_blanks_and_unknown_values(tmp_path: Path) -> None:
    text = (
        "\ufeff# scripted\n"
        "note,temperature_c, time_s ,battery_pct,on_mains,power_mw,throttling,temperature_limit_c\n"
        "\n"
        "begin,45.5,0,80,1,,0,85\n"
        "# in between\n"
        'gap,,5,,,,,\r\n"end",46,5.5, 79.5 ,0,7400,1,85\n'
    )
    trace = load_trace(write(tmp_path, text))
    assert trace == TelemetryTrace(
        "trace.csv",
        (
            Reading(0.0, 80.0, True, 45.5, 85.0, False),
            Reading(5.0),
            Reading(5.5, 79.5, False, 46.0, 85.0, True, 7400.0),
        ),
    )
    assert trace.duration_s == 5.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trace.csv is empty"),
        ("# only a comment\n\n", "trace.csv is empty"),
        (HEADER, "has a header and no rows"),
        ("time_s,battery_pct\n0,80\n", "line 1: the trace lacks the columns on_mains, temperature_c"),
        ("# x\ntime_s,battery_pct,on_mains\n0,80,1\n", "line 2: the trace lacks the column temperature_c"),
        (f"{HEADER},time_s\n0,1,1,1,1\n", "line 1: two columns are named 'time_s'"),
        (f"{HEADER}\n0,80,1,45\n5,full,1,45\n", "line 3: battery_pct is 'full', not a number"),
        (f"{HEADER}\n0,nan,1,45\n", "line 2: battery_pct is 'nan', not a number"),
        (f"{HEADER}\n0,1_0,1,45\n", "line 2: battery_pct is '1_0', not a number"),
        (f"{HEADER}\n0,101,1,45\n", "line 2: battery_pct is 101, outside 0..100"),
        (f"{HEADER}\n0,-0.5,1,45\n", "line 2: battery_pct is -0.5, outside 0..100"),
        (f"{HEADER}\n0,80,1,-256\n", "line 2: temperature_c is -256, outside -100..250"),
        (f"{HEADER}\n0,80,1,1e999\n", "line 2: temperature_c is 1e999, outside -100..250"),
        (f"{HEADER}\n0,80,yes,45\n", "line 2: on_mains is 'yes', not 0 or 1"),
        (f"{HEADER}\n,80,1,45\n", "line 2: time_s is empty"),
        (f"{HEADER}\n0,80,1,45\n10,80,1,45\n9.5,80,1,45\n", "line 4: time_s runs backwards from 10 to 9.5"),
        (f"{HEADER}\n0,80,1,45\n5,80\n", "line 3: 2 cells under a header of 4"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not a CSV text file"),
    ],
)
def test_refusals_name_the_file_the_line_and_the_column(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot read the trace .*absent\.csv: No such file"):
        load_trace(tmp_path / "absent.csv")
    with pytest.raises(TraceError, match="Is a directory"):
        load_trace(tmp_path)


@given(text=st.one_of(st.binary(max_size=200), st.text(alphabet='0123456789,.-#\n"', max_size=80).map(str.encode)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_trace_or_a_trace_error(tmp_path: Path, text: bytes) -> None:
    for content in (text, HEADER.encode() + b"\n" + text):
        try:
            trace = load_trace(write(tmp_path, content))
        except TraceError:
            continue
        times = [reading.time_s for reading in trace.readings]
        assert times == sorted(times)


def test_the_shipped_trace_tells_its_story() -> None:
    assert "Scripted, not recorded" in FIELD_SHIFT_TRACE.read_text().splitlines()[0]
    trace = load_trace(FIELD_SHIFT_TRACE)
    charges = [reading.battery_pct for reading in trace.readings if reading.battery_pct is not None]
    heats = [reading.temperature_c for reading in trace.readings if reading.temperature_c is not None]
    mains = [reading.on_mains for reading in trace.readings if reading.on_mains is not None]
    assert 15 * 60 <= trace.duration_s <= 20 * 60
    assert charges[0] == pytest.approx(80, abs=3)
    assert charges[-1] == pytest.approx(8, abs=1)
    assert sum(a != b for a, b in itertools.pairwise(mains)) == 3, "unplugged, plugged in, unplugged"
    assert max(heats) > 88 > heats[-1]
    assert any(reading == Reading(reading.time_s) for reading in trace.readings), "a gap of all sensors"


def test_a_replay_gives_the_row_that_is_due() -> None:
    clock = HandClock(500.0)
    rows = (Reading(10.0, temperature_c=1.0), Reading(11.0, temperature_c=2.0), Reading(13.0, temperature_c=3.0))
    source = ReplaySource(TelemetryTrace("t", rows), clock)
    seen = []
    for now_s in (500.0, 500.9, 501.0, 502.9, 503.0, 505.0, 505.1):
        clock.now_s = now_s
        reading = source.read()
        assert reading.time_s == now_s
        seen.append(reading.temperature_c)
    assert seen == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, None]


def test_a_replay_of_one_row_ends_at_once() -> None:
    clock = HandClock(0.0)
    source = ReplaySource(TelemetryTrace("t", (Reading(0.0, battery_pct=5.0),)), clock)
    assert source.read().battery_pct == 5.0
    clock.now_s = 0.1
    assert source.read() == Reading(0.1)


JTOP_HEADER = (
    "System-Time,cpu-thermal-CURR_TEMP,cpu-thermal-SW_THROTTLING_TEMP,tj-thermal-CURR_TEMP,"
    "tj-thermal-SW_THROTTLING_TEMP,VDD_IN-IN_POWER"
)


def test_a_jtop_log_is_recognised_and_passes_midnight(tmp_path: Path) -> None:
    rows = ["23:59:59,65.0,99.0,65.6,-,9761", "00:00:01,-256000,99.0,-256,-,-392", "00:00:02.5,64,99.0,-256000,-,-"]
    trace = load_trace(write(tmp_path, "\n".join([JTOP_HEADER, *rows])))
    assert trace.readings == (
        Reading(0.0, temperature_c=65.6, temperature_limit_c=99.0, power_mw=9761.0, rails_mw={"VDD_IN": 9761.0}),
        Reading(2.0, temperature_limit_c=99.0, power_mw=0.0, rails_mw={"VDD_IN": 0.0}),
        Reading(3.5, temperature_c=64.0, temperature_limit_c=99.0),
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["noon,1,1,1,1,1"], "line 2: System-Time is 'noon', not HH:MM:SS"),
        (["01:00:05,1,1,1,1,1", "01:00:04,1,1,1,1,1"], "line 3: System-Time runs backwards to 01:00:04"),
    ],
)
def test_a_damaged_jtop_log_is_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        load_trace(write(tmp_path, "\n".join([JTOP_HEADER, *rows])))


@pytest.mark.skipif(not JTOP_LOG.is_file(), reason=f"the recorded log {JTOP_LOG} is not here")
def test_the_recorded_orin_log() -> None:
    trace = load_trace(JTOP_LOG)
    assert len(trace.readings) == 1200
    assert trace.duration_s == 1200.0
    assert all(65.0 <= (reading.temperature_c or 0.0) <= 69.3 for reading in trace.readings)
    assert {reading.temperature_limit_c for reading in trace.readings} == {112.0}
    assert all(reading.battery_pct is reading.on_mains is reading.power_mw is None for reading in trace.readings)
