"""Traces: what is read, what is refused and how it is said, and a trace as a source."""

from __future__ import annotations

import errno
import itertools
import os
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_tree import HandClock

from nsn_edge.errors import NsnEdgeError, TraceError, UsageError
from nsn_edge.runtimes.data import FIELD_SHIFT_TRACE
from nsn_edge.runtimes.telemetry import Reading, ReplaySource, TelemetryTrace, TraceWriter, Work, load_trace

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


# --- every column ---------------------------------------------------------------------------------------------------


def test_the_optional_columns(tmp_path: Path) -> None:
    names = (
        "energy_j,battery_j,gpu_load_pct,gpu_mhz,cpu_mhz,over_current,power_mode,rails_mw,wall_s,arrivals_per_s,waiting"
    )
    rows = "0,,,,1.5,9e4,37,1410,2800,1,MAXN,VDD_IN=9761; VDD_GPU = 0,1e9,2.5,3\n1,,,,,,,,,,,,,,4\n2,,,,,,,,,,,,,0.5,\n"
    trace = load_trace(write(tmp_path, f"{HEADER},{names}\n{rows}"))
    assert trace.readings == (
        Reading(
            0.0,
            energy_j=1.5,
            battery_j=9e4,
            gpu_load_pct=37.0,
            gpu_mhz=1410.0,
            cpu_mhz=2800.0,
            over_current=True,
            power_mode="MAXN",
            rails_mw={"VDD_IN": 9761.0, "VDD_GPU": 0.0},
            wall_s=1e9,
            work=Work(arrivals_per_s=2.5, waiting=3),
        ),
        Reading(1.0, work=Work(waiting=4)),
        Reading(2.0, work=Work(arrivals_per_s=0.5)),
    )


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("energy_j", "-1", "energy_j is -1, outside 0..1e+12"),
        ("battery_j", "full", "battery_j is 'full', not a number"),
        ("gpu_load_pct", "101", "gpu_load_pct is 101, outside 0..100"),
        ("gpu_mhz", "1410 MHz", "gpu_mhz is '1410 MHz', not a number"),
        ("over_current", "2", "over_current is '2', not 0 or 1"),
        ("rails_mw", "VDD_IN", "rails_mw holds 'VDD_IN'"),
        ("rails_mw", "=5", "rails_mw holds '=5'"),
        ("rails_mw", "VDD_IN=-5", "rail VDD_IN is -5, outside 0..1e+12"),
        ("rails_mw", "VDD_IN=a", "rail VDD_IN is 'a', not a number"),
        ("waiting", "1.5", "waiting is 1.5, not a whole number"),
        ("arrivals_per_s", "-1", "arrivals_per_s is -1, outside 0..1e+09"),
    ],
)
def test_a_cell_that_makes_no_sense_is_refused(tmp_path: Path, column: str, cell: str, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        load_trace(write(tmp_path, f"{HEADER},{column}\n0,,,,\n1,,,,{cell}\n"))
    assert f"trace.csv, line 3: {message}" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("header", "column", "ours"),
    [
        (f"{HEADER},power_w", "power_w", "power_mw"),
        (f"{HEADER},temperature_limit_f", "temperature_limit_f", "temperature_limit_c"),
        (f"{HEADER},gpu_ghz", "gpu_ghz", "gpu_mhz"),
        (f"{HEADER},energy_kwh", "energy_kwh", "energy_j"),
        ("time_ms,battery_pct,on_mains,temperature_c", "time_ms", "time_s"),
        ("time_s,battery_pct,on_mains,temperature_f", "temperature_f", "temperature_c"),
    ],
)
def test_a_quantity_in_another_unit_is_not_left_alone(tmp_path: Path, header: str, column: str, ours: str) -> None:
    with pytest.raises(
        TraceError, match=rf"trace\.csv, line 1: the column {column} is in a unit that is not read"
    ) as caught:
        load_trace(write(tmp_path, f"{header}\n" + "1," * header.count(",") + "1\n"))
    assert caught.value.hint == f"write {ours}"


def test_another_unit_beside_ours_is_left_alone(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path, f"{HEADER},time_ms,battery_wh,power_mw,power_w,note_c\n1,80,1,45,9,9,7,9,9\n"))
    assert trace.readings == (Reading(1.0, 80.0, True, 45.0, power_mw=7.0),)


# --- gaps -----------------------------------------------------------------------------------------------------------


def test_where_rows_are_missing_everything_is_unknown_from_the_largest_age_on(tmp_path: Path) -> None:
    rows = "".join(f"{t},80,1,45\n" for t in (0, 1, 2, 12.0, 100, 101))
    trace = load_trace(write(tmp_path, f"{HEADER}\n{rows}"))
    assert [(reading.time_s, reading.battery_pct) for reading in trace.readings] == [
        (0.0, 80.0),
        (1.0, 80.0),
        (2.0, 80.0),
        (12.0, 80.0),  # ten seconds are no gap
        (22.0, None),
        (100.0, 80.0),
        (101.0, 80.0),
    ]
    assert trace.gaps == ((22.0, 100.0),)
    assert trace.lines == (2, 3, 4, 5, 6, 6, 7)
    assert trace.where(4) == "trace.csv, line 6"


def test_a_coarse_trace_has_no_gaps_but_for_what_is_missing(tmp_path: Path) -> None:
    rows = "".join(f"{t},80,1,45\n" for t in (0, 60, 120, 180, 600))
    trace = load_trace(write(tmp_path, f"{HEADER}\n{rows}"))
    assert trace.gaps == ((360.0, 600.0),)
    assert trace.readings[4] == Reading(360.0)


def test_a_replay_of_a_gap(tmp_path: Path) -> None:
    rows = "".join(f"{t},80,1,{45 + t}\n" for t in (0, 1, 2, 60))
    clock = HandClock(500.0)
    source = ReplaySource(load_trace(write(tmp_path, f"{HEADER}\n{rows}")), clock)
    seen = []
    for now_s in (500.0, 502.0, 511.9, 512.0, 559.0, 560.0):
        clock.now_s = now_s
        seen.append(source.read().temperature_c)
    assert seen == [45.0, 47.0, 47.0, None, None, 105.0]


@given(steps=st.lists(st.integers(0, 500), min_size=1, max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_no_reading_stands_longer_than_the_largest_age_or_three_steps(tmp_path: Path, steps: list[int]) -> None:
    times = list(itertools.accumulate(steps, initial=0))
    trace = load_trace(write(tmp_path, f"{HEADER}\n" + "".join(f"{t!r},80,,\n" for t in times)))
    positive = [step for step in steps if step]
    stands_s = max(10.0, 3.0 * statistics.median(positive)) if positive else 10.0
    for before, after in itertools.pairwise(trace.readings):
        if before.battery_pct is not None:
            assert after.time_s - before.time_s <= stands_s
    assert [reading.time_s for reading in trace.readings if reading.battery_pct is not None] == times


# --- a recording ----------------------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
_READINGS = st.builds(
    Reading,
    time_s=st.just(0.0),
    battery_pct=st.none() | st.floats(0.0, 100.0),
    on_mains=st.none() | st.booleans(),
    temperature_c=st.none() | st.floats(-60.0, 200.0),
    temperature_limit_c=st.none() | st.floats(-60.0, 200.0),
    throttling=st.none() | st.booleans(),
    power_mw=st.none() | st.floats(0.0, 1e7),
    energy_j=st.none() | st.floats(0.0, 1e9),
    battery_j=st.none() | st.floats(0.0, 1e7),
    gpu_load_pct=st.none() | st.floats(0.0, 100.0),
    gpu_mhz=st.none() | st.floats(0.0, 5e3),
    cpu_mhz=st.none() | st.floats(0.0, 5e3),
    over_current=st.none() | st.booleans(),
    power_mode=st.none() | _TEXT,
    rails_mw=st.dictionaries(_TEXT.filter(lambda name: not set(name) & {";", "="}), st.floats(0.0, 1e6), max_size=3),
    wall_s=st.none() | st.floats(0.0, 1e10),
    work=st.none() | st.builds(Work, arrivals_per_s=st.floats(0.0, 1e3), waiting=st.none() | st.integers(0, 99)),
)


@given(readings=st.lists(_READINGS, min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_recording_is_read_back_as_it_was(tmp_path: Path, readings: list[Reading]) -> None:
    path = tmp_path / "recorded.csv"
    path.unlink(missing_ok=True)
    timed = [replace(reading, time_s=100.0 + second) for second, reading in enumerate(readings)]
    with TraceWriter(path) as writer:
        for reading in timed:
            writer.write(reading)
    assert load_trace(path).readings == tuple(replace(reading, time_s=reading.time_s - 100.0) for reading in timed)


def test_names_that_would_break_the_line_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "recorded.csv"
    with TraceWriter(path) as writer:
        writer.write(Reading(5.0, power_mode='MAXN\n15 W, "x"', rails_mw={"a;b=c": 1.0}))
    (reading,) = load_trace(path).readings
    assert (reading.power_mode, reading.rails_mw) == ('MAXN 15 W, "x"', {"a_b_c": 1.0})


def test_a_recording_that_was_cut_anywhere_loses_its_last_line_at_most(tmp_path: Path) -> None:
    path = tmp_path / "recorded.csv"
    readings = [
        Reading(float(t), battery_pct=50.5, temperature_c=60.25, rails_mw={"VDD_IN": 9761.5}, throttling=t == 2)
        for t in range(3)
    ]
    with TraceWriter(path) as writer:
        for reading in readings:
            writer.write(reading)
    whole = path.read_bytes()
    begin_of_last = whole[:-1].rindex(b"\n") + 1
    for cut in range(begin_of_last, len(whole) + 1):
        path.write_bytes(whole[:cut])
        read = load_trace(path).readings
        assert list(read[:2]) == readings[:2]
        # Whole but for its line end; or cut before its last cell, which then is unknown; or gone.
        assert list(read[2:]) in ([readings[2]], [replace(readings[2], throttling=None)], [])


def test_each_reading_is_on_the_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recorded.csv"
    writer = TraceWriter(path)
    for count in range(1, 4):
        writer.write(Reading(float(count), battery_pct=50.0))
        assert len(load_trace(path).readings) == count
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="is closed"):
        writer.write(Reading(9.0))


def test_a_recording_replaces_nothing_and_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt is there already"):
        TraceWriter(path)
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match=r"cannot write .*: No such file or directory"):
        TraceWriter(tmp_path / "absent/trace.csv")


def test_a_full_disk_is_one_line_and_the_readings_before_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recorded.csv"
    with TraceWriter(path) as writer:
        writer.write(Reading(0.0, battery_pct=50.0))

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(NsnEdgeError, match="No space left on device") as caught:
                writer.write(Reading(1.0))
    assert "the readings before this one are kept" in (caught.value.hint or "")
    assert len(load_trace(path).readings) == 1


# --- logs of other tools --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not JTOP_LOG.is_file(), reason=f"the recorded log {JTOP_LOG} is not here")
def test_the_recorded_orin_log() -> None:
    trace = load_trace(JTOP_LOG)
    assert len(trace.readings) == 1200
    assert trace.duration_s == 1200.0
    assert all(65.0 <= (reading.temperature_c or 0.0) <= 69.3 for reading in trace.readings)
    assert {reading.temperature_limit_c for reading in trace.readings} == {112.0}
    assert all(reading.battery_pct is reading.on_mains is reading.power_mw is None for reading in trace.readings)
