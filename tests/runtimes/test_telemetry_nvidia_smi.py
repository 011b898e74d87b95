"""Logs of nvidia-smi, as people make them: with units and without, of several GPUs, interrupted, begun anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsn_edge.errors import TraceError
from nsn_edge.runtimes.telemetry import Reading, load_trace

HEADER = (
    "timestamp, index, name, temperature.gpu, power.draw [W], utilization.gpu [%], clocks.current.sm [MHz], "
    "clocks_event_reasons.active"
)
NAME = "NVIDIA GeForce RTX 4060 Laptop GPU"
UNITS = f"""{HEADER}
2026/05/17 10:00:33.123, 0, {NAME}, 61, 35.21 W, 37 %, 1410 MHz, 0x0000000000000004
2026/05/17 10:00:34.123, 0, {NAME}, 92, [N/A], [Not Supported], [Unknown Error], 0x0000000000000060
2026/05/17 10:00:35.123, 0, {NAME}, N/A, 80.00 W, 100 %, 300 MHz, [N/A]
"""
READINGS = (
    Reading(
        0.0,
        temperature_c=61.0,
        throttling=False,
        power_mw=35_210.0,
        gpu_load_pct=37.0,
        gpu_mhz=1410.0,
        rails_mw={"gpu0": 35_210.0},
    ),
    Reading(1.0, temperature_c=92.0, throttling=True),
    Reading(2.0, power_mw=80_000.0, gpu_load_pct=100.0, gpu_mhz=300.0, rails_mw={"gpu0": 80_000.0}),
)


def log(folder: Path, text: str) -> Path:
    path = folder / "log.csv"
    path.write_text(text)
    return path


def test_a_log_with_units_and_one_without(tmp_path: Path) -> None:
    assert load_trace(log(tmp_path, UNITS)).readings == READINGS
    bare = UNITS
    for unit in (" W,", " %,", " MHz,"):
        bare = bare.replace(unit, ",")
    assert load_trace(log(tmp_path, bare)).readings == READINGS


def test_of_several_gpus_the_first_is_taken(tmp_path: Path) -> None:
    text = """timestamp, pci.bus_id, temperature.gpu
2026/05/17 10:00:33.100, 00000000:01:00.0, 61
2026/05/17 10:00:33.102, 00000000:02:00.0, 80
2026/05/17 10:00:34.100, 00000000:01:00.0, 62
2026/05/17 10:00:34.102, 00000000:02:00.0, 81
"""
    trace = load_trace(log(tmp_path, text))
    assert trace.readings == (Reading(0.0, temperature_c=61.0), Reading(1.0, temperature_c=62.0))
    assert trace.lines == (2, 4)


def test_a_lost_gpu_a_new_header_and_a_cut_line(tmp_path: Path) -> None:
    text = """timestamp, temperature.gpu, power.draw [W]
2026/05/17 10:00:00.000, 61, 35.00 W
Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.  Reboot the system to recover this GPU
timestamp, temperature.gpu, power.draw [W]
2026/05/17 10:01:00.000, [GPU is lost], [GPU is lost]
2026/05/17 10:01:01.000, 62, 36.00 W
2026/05/17 10:01:02.000, 6"""
    trace = load_trace(log(tmp_path, text))
    heats = [(reading.time_s, reading.temperature_c) for reading in trace.readings]
    assert heats == [(0.0, 61.0), (60.0, None), (61.0, 62.0)]


def test_a_clock_that_is_set_back_goes_on_by_the_step_before(tmp_path: Path) -> None:
    stamps = ("23:59:58.0", "23:59:59.0", "22:00:00.0", "22:00:01.5")
    text = "timestamp, temperature.gpu\n" + "".join(f"2026/05/17 {stamp}, 60\n" for stamp in stamps)
    assert [reading.time_s for reading in load_trace(log(tmp_path, text)).readings] == [0.0, 1.0, 2.0, 3.5]


@pytest.mark.parametrize(
    ("states", "throttling"),
    [
        ("Not Active, Not Active", False),
        ("Not Active, Active", True),
        ("Active, [N/A]", True),
        ("Not Active, [N/A]", None),
        ("[N/A], [N/A]", None),
    ],
)
def test_throttling_by_single_reasons(tmp_path: Path, states: str, throttling: bool | None) -> None:
    text = (
        "timestamp, clocks_throttle_reasons.hw_slowdown, clocks_throttle_reasons.hw_power_brake_slowdown\n"
        f"2026/05/17 10:00:00.000, {states}\n"
    )
    assert load_trace(log(tmp_path, text)).readings[0].throttling is throttling


def test_the_margin_gives_the_limit(tmp_path: Path) -> None:
    text = "timestamp, temperature.gpu, temperature.gpu.tlimit\n2026/05/17 10:00:00.000, 61, 26\n"
    assert load_trace(log(tmp_path, text)).readings == (Reading(0.0, temperature_c=61.0, temperature_limit_c=87.0),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature.gpu, power.draw [W]\n61, 35 W\n", "line 1: the log lacks the column timestamp"),
        ("2026/05/17 10:00:00.000, 61, 35 W\n", "line 1: a log of nvidia-smi without its header"),
        ("timestamp, temperature.gpu\nnoon, 61\n", "line 2: timestamp is 'noon', not YYYY/MM/DD HH:MM:SS"),
        ("timestamp, temperature.gpu\n2026/13/17 10:00:00, 61\n", "line 2: timestamp is '2026/13/17 10:00:00'"),
        ("timestamp, temperature.gpu\n2026/05/17 10:00:00, warm\n", "line 2: temperature.gpu is 'warm', not a number"),
        ("timestamp, power.draw [W]\n2026/05/17 10:00:00, 35 mW\n", "line 2: power.draw is in mW, not in W"),
        ("timestamp, power.draw [mW]\n2026/05/17 10:00:00, 35\n", "line 1: power.draw is in mW, not in W"),
        ("timestamp, temperature.gpu\n2026/05/17 10:00:00, 61 F\n", "temperature.gpu is in F, not in degrees C"),
        ("timestamp, temperature.gpu\n", "has a header and no rows"),
        ("timestamp, temperature.gpu\nNo devices were found\n", "has a header and no rows"),
        ("timestamp, power.draw [W], power.draw [W]\nx, 1, 1\n", "two columns are named 'power.draw [W]'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TraceError) as caught:
        load_trace(log(tmp_path, text))
    assert message in caught.value.message
    assert "log.csv" in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


_CELL = st.text("0123456789.-/:[]NAWx% ", max_size=24) | st.sampled_from(
    ["2026/05/17 10:00:33.123", "61", "[N/A]", "35.21 W", "37 %", "0x40", "Active", "-256", "1e9", "9" * 400]
)


@given(rows=st.lists(st.lists(_CELL, min_size=1, max_size=9), max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_cells_are_a_trace_or_a_trace_error(tmp_path: Path, rows: list[list[str]]) -> None:
    text = "\n".join([HEADER, *(", ".join(row) for row in rows)])
    try:
        trace = load_trace(log(tmp_path, text))
    except TraceError:
        return
    times = [reading.time_s for reading in trace.readings]
    assert times == sorted(times)
