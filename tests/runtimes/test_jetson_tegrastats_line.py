"""Lines of tegrastats: what each generation says, its traps, and that no text whatever becomes a wrong number."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jetson_trees import TEGRASTATS_LINES
from shared_data import shared_data

from nsn_edge.runtimes.telemetry import Reading
from nsn_edge.runtimes.telemetry.jetson import TegrastatsLine, parse_line

EXPECTED = {
    "nano": TegrastatsLine(
        cpu_mhz=204.0,
        gpu_load_pct=0.0,
        gpu_mhz=76.0,
        temperatures_c={"PLL": 34.0, "CPU": 36.5, "GPU": 36.0, "AO": 39.5},
        rails_mw={"POM_5V_IN": 1022.0, "POM_5V_GPU": 0.0, "POM_5V_CPU": 204.0},
    ),
    "tx2": TegrastatsLine(
        cpu_mhz=1421.0,
        gpu_load_pct=7.0,
        gpu_mhz=114.0,
        temperatures_c={"PLL": 42.5, "MCPU": 43.0, "Tboard": 38.0, "GPU": 39.5, "BCPU": 42.5, "Tdiode": 39.25},
        rails_mw={
            "VDD_SYS_GPU": 182.0,
            "VDD_SYS_SOC": 730.0,
            "VDD_4V0_WIFI": 0.0,
            "VDD_IN": 5297.0,
            "VDD_SYS_CPU": 1917.0,
            "VDD_SYS_DDR": 1241.0,
        },
    ),
    "agx-xavier": TegrastatsLine(
        cpu_mhz=1190.0,
        gpu_load_pct=0.0,
        gpu_mhz=318.0,
        temperatures_c={"AO": 37.5, "GPU": 37.5, "Tdiode": 40.0, "AUX": 36.0, "CPU": 37.5, "Tboard": 37.0},
        rails_mw={"GPU": 0.0, "CPU": 311.0, "SOC": 932.0, "CV": 0.0, "VDDRQ": 621.0, "SYS5V": 1482.0},
    ),
    "orin-nano-jp5": TegrastatsLine(
        local_time=datetime(2025, 5, 15, 18, 30, 28),
        cpu_mhz=1984.0,
        gpu_load_pct=84.0,
        gpu_mhz=713.0,
        temperatures_c={"cpu": 65.562, "soc2": 64.156, "gpu": 63.5, "tj": 65.562},
        rails_mw={"VDD_IN": 17946.0, "VDD_CPU_GPU_CV": 8896.0, "VDD_SOC": 3923.0},
    ),
    "agx-orin": TegrastatsLine(
        cpu_mhz=2201.0,
        gpu_load_pct=0.0,
        gpu_mhz=306.0,
        temperatures_c={"cpu": 53.062, "soc2": 48.25, "gpu": 47.812, "tj": 53.062},
        rails_mw={"VDD_GPU_SOC": 0.0, "VDD_CPU_CV": 4405.0, "VIN_SYS_5V0": 4767.0},
    ),
    "thor-r38": TegrastatsLine(
        local_time=datetime(2026, 5, 17, 10, 0, 33),
        cpu_mhz=972.0,
        temperatures_c={"cpu": 35.25, "tj": 36.031, "soc012": 36.062},
        rails_mw={"VDD_GPU": 0.0, "VDD_CPU_SOC_MSS": 4923.0, "VIN_SYS_5V0": 4327.0},
    ),
    "r39": TegrastatsLine(
        local_time=datetime(2026, 9, 1, 9, 25, 18),
        cpu_mhz=1510.0,
        gpu_load_pct=33.0,
        temperatures_c={"cpu": 50.0, "tj": 50.5},
        rails_mw={"VDD_IN": 9761.0, "VDD_CPU_GPU_CV": 4238.0},
    ),
    "tx2-unprivileged": TegrastatsLine(cpu_mhz=2035.0),
}


@pytest.mark.parametrize("generation", TEGRASTATS_LINES)
def test_every_generation(generation: str) -> None:
    line = TEGRASTATS_LINES[generation]
    assert parse_line(line) == EXPECTED[generation]
    assert parse_line(f"{line} \r\n") == EXPECTED[generation]


@pytest.mark.parametrize(
    ("generation", "temperature_c", "power_mw"),
    [
        ("nano", 36.5, 1022.0),
        ("tx2", 43.0, 5297.0),
        ("agx-xavier", 37.5, None),
        ("orin-nano-jp5", 65.562, 17946.0),
        ("agx-orin", 53.062, None),
        ("thor-r38", 36.031, None),
        ("r39", 50.5, 9761.0),
        ("tx2-unprivileged", None, None),
    ],
)
def test_a_line_as_telemetry(generation: str, temperature_c: float | None, power_mw: float | None) -> None:
    line = EXPECTED[generation]
    assert line.reading(5.0, age_s=2.0) == Reading(
        5.0,
        temperature_c=temperature_c,
        power_mw=power_mw,
        gpu_load_pct=line.gpu_load_pct,
        gpu_mhz=line.gpu_mhz,
        cpu_mhz=line.cpu_mhz,
        rails_mw=line.rails_mw,
        age_s=2.0,
    )


@pytest.mark.parametrize(
    ("field", "load_pct", "mhz"),
    [
        ("GR3D_FREQ 0%@76", 0.0, 76.0),
        ("GR3D_FREQ 99%", 99.0, None),
        ("GR3D_FREQ 63%@[621]", 63.0, 621.0),
        ("GR3D_FREQ 0%@[305,306]", 0.0, 306.0),
        ("GR3D_FREQ @[0,0,0]", None, None),
        ("GR3D_FREQ @[918,0,0]", None, 918.0),
        ("GR3D_FREQ @76", None, 76.0),
        ("GR3D 5%@76", 5.0, 76.0),
        ("GR3D_FREQ 101%@76", None, 76.0),
        ("GR3D_FREQ off", None, None),
        ("GR3D_FREQ 5%@76000", 5.0, None),
        ("GR3D_FREQ 5%@[,,]", 5.0, None),
        ("GR3D_FREQ 5%@[9999999999]", 5.0, None),
        ("EMC_FREQ 5%@204", None, None),
        ("XGR3D_FREQ 5%@204", None, None),
    ],
)
def test_the_gpu(field: str, load_pct: float | None, mhz: float | None) -> None:
    assert parse_line(f"RAM 1/2MB {field} APE 150\n") == TegrastatsLine(gpu_load_pct=load_pct, gpu_mhz=mhz)


@pytest.mark.parametrize(
    ("cores", "mhz"),
    [
        ("CPU [off,off]", None),
        ("CPU [16%@204,off,9%@1190]", 1190.0),
        ("CPU [16%,9%]", None),
        ("cpu [0%,0%,0%,0%]@102", 102.0),
        ("CPU []", None),
        ("CPU [1%@0,2%@99999]", None),
        ("CPU [1%@204,2%@", None),
    ],
)
def test_the_cores(cores: str, mhz: float | None) -> None:
    assert parse_line(f"RAM 1/2MB {cores} APE 150\n") == TegrastatsLine(cpu_mhz=mhz)


@pytest.mark.parametrize(
    ("field", "rails"),
    [
        ("VDD_GPU -392mW/-20mW", {"VDD_GPU": 0.0}),
        ("VDD_IN 9761mW/9761mW/9761mW", {"VDD_IN": 9761.0}),
        ("VDD_IN 9761mW/9761mW VDD_IN 1mW/1mW", {"VDD_IN": 9761.0}),
        ("NC 5/5", {}),
        ("SWAP 5/6", {}),
        ("VDD_IN 9761mW", {}),
        ("VDD_IN 9999999mW/1mW", {}),
        ("VDD_IN 99999999999999999999mW/1mW", {}),
        ("VDD_IN 97e3mW/1mW", {}),
        ("VDD_IN nanmW/1mW", {}),
    ],
)
def test_the_rails(field: str, rails: dict[str, float]) -> None:
    assert parse_line(f"RAM 1/2MB {field} end\n") == TegrastatsLine(rails_mw=rails)


@pytest.mark.parametrize(
    ("field", "zones"),
    [
        ("PMIC@100C", {}),
        ("PMIC@50C", {}),
        ("thermal@36.25C", {}),
        ("cv0@-256C", {}),
        ("AO@-5.5C", {"AO": -5.5}),
        ("tj@201C", {}),
        ("tj@36.03", {}),
        ("tj@nanC", {}),
        ("tj@36Cx", {}),
        ("tj@36.031C/40C tj@1C", {"tj": 36.031}),
        ("VIC 31%@115", {}),
    ],
)
def test_the_zones(field: str, zones: dict[str, float]) -> None:
    assert parse_line(f"RAM 1/2MB {field} end\n") == TegrastatsLine(temperatures_c=zones)


@pytest.mark.parametrize("date", ["02-31-2026 10:00:00", "05-17-2026 25:00:00", "13-13-0000 10:00:00"])
def test_a_date_that_is_none_leaves_the_rest(date: str) -> None:
    assert parse_line(f"{date} RAM 1/2MB tj@36C\n") == TegrastatsLine(temperatures_c={"tj": 36.0})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "RAM",
        "RAM 12/34",
        "DD_IN 9761mW/9761mW tj@36C",
        "sudo: a password is required",
        "05-17-2026 tj@36C",
        "time_s,battery_pct,on_mains,temperature_c",
        "RAM 1/2MB " + "x" * 9000,
    ],
)
def test_what_is_no_line(text: str) -> None:
    assert parse_line(text) is None


def known(line: TegrastatsLine | None) -> dict[str, object]:
    """What a line says, flat."""
    if line is None:
        return {}
    plain = {name: getattr(line, name) for name in ("local_time", "cpu_mhz", "gpu_load_pct", "gpu_mhz")}
    parts = {("zone", zone): value for zone, value in line.temperatures_c.items()}
    parts |= {("rail", rail): value for rail, value in line.rails_mw.items()}
    return {name: value for name, value in plain.items() if value is not None} | parts


@pytest.mark.parametrize("generation", TEGRASTATS_LINES)
def test_a_line_that_is_cut_anywhere_says_nothing_that_the_whole_does_not(generation: str) -> None:
    whole = TEGRASTATS_LINES[generation] + "\n"
    everything = known(parse_line(whole))
    for end in range(len(whole)):
        rest = known(parse_line(whole[:end]))
        assert rest.items() <= everything.items(), whole[:end]


def assert_believable(line: TegrastatsLine | None) -> None:
    if line is None:
        return
    for value in (line.cpu_mhz, line.gpu_mhz):
        assert value is None or 0.0 < value <= 10_000.0
    assert line.gpu_load_pct is None or 0.0 <= line.gpu_load_pct <= 100.0
    assert all(-60.0 <= value <= 200.0 for value in line.temperatures_c.values())
    assert all(0.0 <= value <= 1e6 for value in line.rails_mw.values())
    assert not {"RAM", "SWAP", "IRAM", "NC"} & line.rails_mw.keys()
    assert not any("pmic" in zone.lower() for zone in line.temperatures_c)
    reading = line.reading(0.0)
    numbers = (reading.temperature_c, reading.power_mw, reading.gpu_load_pct, reading.gpu_mhz, reading.cpu_mhz)
    assert all(value is None or math.isfinite(value) for value in numbers)


LINES = st.sampled_from(sorted(TEGRASTATS_LINES.values()))
PIECES = st.text(alphabet="0123456789%@[]/.,-CmWMBk RAMGUPVDo\n\t\0é", max_size=12)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A line with pieces cut out, put in, doubled, and glued to another."""
    text = draw(LINES)
    for _ in range(draw(st.integers(0, 6))):
        begin = draw(st.integers(0, len(text)))
        end = draw(st.integers(begin, min(begin + 30, len(text))))
        text = text[:begin] + draw(st.one_of(PIECES, st.just(text[begin:end] * 2), LINES)) + text[end:]
    return text


@given(text=mutated())
def test_no_mutation_becomes_an_absurd_value(text: str) -> None:
    assert_believable(parse_line(text))
    assert_believable(parse_line("RAM 1/2MB " + text + "\n"))


@given(text=st.text(max_size=300))
def test_no_text_at_all_becomes_an_absurd_value(text: str) -> None:
    assert_believable(parse_line(text))
    assert_believable(parse_line(f"RAM 1/2MB {text}\n"))


@given(text=LINES, begin=st.integers(0, 400))
def test_the_second_half_of_a_line_is_no_line(text: str, begin: int) -> None:
    start = text.index("RAM")
    begin = min(max(begin, start + 1), len(text))
    assert parse_line(text[begin:]) is None


def test_every_published_line_is_read() -> None:
    table = (shared_data("telemetry") / "tegrastats_lines.tsv").read_text().splitlines()[1:]
    assert len(table) >= 13
    for row in table:
        device, *_, text = row.split("\t")
        line = parse_line(text)
        assert line is not None, device
        assert_believable(line)
        everything = known(parse_line(f"{text}\n"))
        for end in range(len(text)):
            assert known(parse_line(text[:end])).items() <= everything.items(), text[:end]
        assert line.cpu_mhz, device
        if "old format" in device:
            assert line == replace(TegrastatsLine(), cpu_mhz=2035.0)
            continue
        assert line.reading(0.0).temperature_c, device
        assert line.gpu_load_pct is not None, device
        assert len(line.rails_mw) >= 3, device
        assert (line.reading(0.0).power_mw is None) == ("VDD_IN" not in text and "POM_5V_IN" not in text), device
