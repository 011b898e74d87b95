"""Logs of tegrastats as traces, and the recorded log of an AGX Orin with all that its columns tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jetson_trees import TEGRASTATS_LINES
from shared_data import shared_data

from nsn_edge.errors import TraceError
from nsn_edge.runtimes.telemetry import Reading, load_trace
from nsn_edge.runtimes.telemetry.jetson import parse_line
from nsn_edge.runtimes.telemetry.replay import load_tegrastats_log


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "tegrastats.log"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_log_of_every_generation_is_recognised(tmp_path: Path) -> None:
    for line in TEGRASTATS_LINES.values():
        trace = load_trace(write(tmp_path, f"# noted by hand\n\n{line}\n{line}\n"))
        parsed = parse_line(line)
        assert parsed is not None
        step_s = 0.0 if parsed.local_time else 1.0
        assert trace.readings == (parsed.reading(0.0), parsed.reading(step_s))
        assert trace.name == "tegrastats.log"
        assert trace.lines == (3, 4)


def test_lines_without_a_date_are_an_interval_apart(tmp_path: Path) -> None:
    path = write(tmp_path, "".join(f"RAM 1/2MB tj@{index}C\n" for index in range(3)))
    assert [reading.time_s for reading in load_trace(path).readings] == [0.0, 1.0, 2.0]
    assert [reading.time_s for reading in load_tegrastats_log(path, interval_s=0.5).readings] == [0.0, 0.5, 1.0]
    assert [reading.temperature_c for reading in load_trace(path).readings] == [0.0, 1.0, 2.0]


def test_dates_tell_gaps_and_a_clock_that_is_set_back_does_no_harm(tmp_path: Path) -> None:
    stamps = ("12-31-2026 23:59:59", "01-01-2027 00:00:01", "01-01-2027 00:01:01", "06-01-2025 09:00:00",
              "06-01-2025 09:00:01", "02-30-2025 09:00:02", "06-01-2025 09:00:03")  # fmt: skip
    trace = load_trace(write(tmp_path, "".join(f"{stamp} RAM 1/2MB tj@40C\n" for stamp in stamps)))
    told = [reading.time_s for reading in trace.readings if reading.temperature_c is not None]
    assert told == [0.0, 2.0, 62.0, 63.0, 64.0, 65.0, 66.0]
    assert trace.gaps == ((12.0, 62.0),)


@pytest.mark.parametrize("end", ["RA", "05-17-2026 10:0", "RAM 12/34", "RAM 1/2MB tj@6", ""])
def test_a_last_line_that_was_cut_says_what_is_whole_of_it(tmp_path: Path, end: str) -> None:
    trace = load_trace(write(tmp_path, f"RAM 1/2MB tj@40C\nRAM 1/2MB tj@41C\n{end}"))
    temperatures = [reading.temperature_c for reading in trace.readings]
    assert temperatures == [40.0, 41.0, None] if end.endswith("tj@6") else temperatures == [40.0, 41.0]


def test_a_cut_line_among_others_is_kept_as_far_as_it_goes(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path, "RAM 1/2MB tj@40C\nRAM 1/2MB tj@4\nRAM 1/2MB tj@42C\n"))
    assert [reading.temperature_c for reading in trace.readings] == [40.0, None, 42.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RAM 1/2MB tj@40C\nKilled\nRAM 1/2MB\n", "line 2 is none of tegrastats: 'Killed'"),
        ("RAM 1/2MB\n# noted\n\ntime_s,battery_pct\nRAM 1/2MB\n", "line 4 is none of tegrastats: 'time_s,battery_pct'"),
        (b"RAM 1/2MB\n\x89PNG\xff\xfe\nRAM 1/2MB\n", "line 2 is none of tegrastats"),
    ],
)
def test_a_line_of_something_else_is_refused_with_its_number(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "# only a comment\n", "RAM 1"])
def test_a_log_without_a_line_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match="holds no line of tegrastats"):
        load_tegrastats_log(write(tmp_path, text))


def test_a_missing_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot read the log .*absent\.log: No such file"):
        load_tegrastats_log(tmp_path / "absent.log")


@given(
    text=st.lists(
        st.one_of(
            st.sampled_from(sorted(TEGRASTATS_LINES.values())), st.text(max_size=60), st.just("RAM 1/2MB tj@40C")
        ),
        max_size=6,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_trace_or_a_trace_error(tmp_path: Path, text: list[str]) -> None:
    path = write(tmp_path, "RAM 1/2MB\n" + "\n".join(text))
    try:
        trace = load_trace(path)
    except TraceError:
        return
    times = [reading.time_s for reading in trace.readings]
    assert times == sorted(times)
    assert len(trace.lines) == len(times)


JTOP_HEADER = "System-Time,NVPMODEL-POWER_MODE,CPU0-CURR_FREQ,CPU1-CURR_FREQ,IGPU0-CURR_FREQ,IGPU0-CURR_LOAD,"
JTOP_HEADER += "CPU-CURR_TEMP,POM_5V_IN-IN_POWER,POM_5V_GPU-IN_POWER"


def test_the_further_columns_of_a_jtop_log(tmp_path: Path) -> None:
    rows = ["01:00:00,MAXN,1479.0,204.0,921.6,98,51.5,3353,-392", "01:00:01,-,-,0,-,101,-256,-,nan"]
    path = tmp_path / "jtop.csv"
    path.write_text("\n".join([JTOP_HEADER, *rows]))
    assert load_trace(path).readings == (
        Reading(
            0.0,
            temperature_c=51.5,
            power_mw=3353.0,
            gpu_load_pct=98.0,
            gpu_mhz=921.6,
            cpu_mhz=1479.0,
            power_mode="MAXN",
            rails_mw={"POM_5V_IN": 3353.0, "POM_5V_GPU": 0.0},
        ),
        Reading(1.0),
    )


def test_the_recorded_orin_log_makes_sense_in_every_field() -> None:
    trace = load_trace(shared_data("telemetry") / "agx_orin_jtop_20min_1hz.csv")
    assert len(trace.readings) == 1200
    rails = {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}
    for reading in trace.readings:
        assert reading.power_mw is None, "an AGX board's rails do not add up to its input"
        assert reading.rails_mw.keys() == rails
        assert all(0.0 <= power <= 60_000.0 for power in reading.rails_mw.values())
        assert reading.temperature_c is not None
        assert 65.0 <= reading.temperature_c <= 69.3
        assert reading.gpu_load_pct is not None
        assert reading.gpu_mhz is not None
        assert 300.0 <= reading.gpu_mhz <= 1300.0
        assert reading.cpu_mhz is not None
        assert 700.0 <= reading.cpu_mhz <= 2201.6
        assert reading.power_mode == "MAXN"
    gpu_mw = [reading.rails_mw["VDD_GPU_SOC"] for reading in trace.readings]
    loads = [reading.gpu_load_pct or 0.0 for reading in trace.readings]
    busy = [power for power, load in zip(gpu_mw, loads, strict=True) if load > 90.0]
    idle = [power for power, load in zip(gpu_mw, loads, strict=True) if load < 50.0]
    assert len(busy) > 900
    assert len(idle) > 100
    assert sum(busy) / len(busy) > sum(idle) / len(idle), "a busy GPU draws more"
