"""`nsn-edge simulate --scenario`: tables, document, plot, and each mistake with its one line."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from nsn_edge.bundle import Bundle
from nsn_edge.cli import main
from nsn_edge.cli.common import run_main
from nsn_edge.errors import UsageError
from nsn_edge.report.scenario import scenario_svg
from nsn_edge.runtimes.data import FIELD_SCENARIO
from nsn_edge.runtimes.profiling import Profile
from nsn_edge.runtimes.profiling.result import RungProfile
from nsn_edge.runtimes.profiling.stats import LatencyStats
from nsn_edge.runtimes.simulation import load_scenario

SCENARIO = """schema_version = 1
name = "walk"
deadline_ms = 400
arrivals_per_s = 4
active_w = 10
base_w = 5
temperature_limit_c = 60

[thermal]
resistance_c_per_w = 2
time_constant_s = 30

[battery]
capacity_wh = 1
start_pct = 80
reserve_pct = 5

[[heat]]
from_s = 20
until_s = 60
rise_c = 3

[[unplugged]]
from_s = 30

[[load]]
from_s = 40
until_s = 50
arrivals_per_s = 8
slowdown = 1.5
"""
POLICY = """schema_version = 2
name = "careful"
unknown_max_flops = 0.25
min_dwell_s = 5
[pi]
margin_c = 2
[deadline]
deadline_ms = 400
"""


def measured(bundle: Bundle, metric: bool = True) -> None:
    """Give the rungs a quality, as `export --quality` does."""
    path = bundle.path / "manifest.json"
    manifest = json.loads(path.read_text())
    for rung in manifest["ladder"]["rungs"]:
        rung["quality"] = {"accuracy": 0.5 + rung["rank"] / 32} if metric else {}
    path.write_text(json.dumps(manifest))


def profile_of(bundle: Bundle, path: Path) -> Path:
    ladder = bundle.manifest.ladder
    rungs = []
    for number, rung in enumerate(ladder.rungs, start=1):
        p50_ms = 40.0 * number
        fixed = {"min_ms": p50_ms, "mean_ms": p50_ms, "max_ms": 2 * p50_ms, "std_ms": 1.0, "cv": 0.01}
        latency = LatencyStats(
            n=200, p50_ms=p50_ms, p90_ms=1.1 * p50_ms, p95_ms=1.2 * p50_ms, p99_ms=1.3 * p50_ms, **fixed
        )
        rungs.append(
            RungProfile(
                rank=rung.rank,
                dense=rung.dense,
                flops_fraction=ladder.flops_fraction(rung.rank),
                macs=ladder.macs(rung.rank),
                latency=latency,
                load_ms=1.0,
                throughput_per_s=1e3 / p50_ms,
            )
        )
    Profile(str(bundle.path), bundle.manifest.model, {"cpu": "made up"}, {}, tuple(rungs), None).save(path)
    return path


@pytest.fixture
def files(text_bundle: tuple[Path, Any], tmp_path: Path) -> dict[str, str]:
    """Everything that a simulation takes."""
    bundle = Bundle.open(text_bundle[0], check_hashes=False)
    measured(bundle)
    rows = [f"{second},,,{45 + second % 3}" for second in range(90)]
    (tmp_path / "trace.csv").write_text("\n".join(["time_s,battery_pct,on_mains,temperature_c", *rows]))
    (tmp_path / "walk.toml").write_text(SCENARIO)
    (tmp_path / "careful.toml").write_text(POLICY)
    profile_of(bundle, tmp_path / "profile.json")
    names = {"trace": "trace.csv", "scenario": "walk.toml", "policy": "careful.toml", "profile": "profile.json"}
    return {"bundle": str(text_bundle[0]), **{key: str(tmp_path / name) for key, name in names.items()}}


def line(files: dict[str, str], *more: str) -> list[str]:
    named = [word for key in ("trace", "scenario", "policy", "profile") for word in (f"--{key}", files[key])]
    return ["simulate", files["bundle"], *named, *more]


def test_the_document_and_the_plot(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)  # no engine is needed
    plot = tmp_path / "walk.svg"
    assert run_main(main, line(files, "--seed", "3", "--json", "--plot", str(plot))) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["kind"], data["schema_version"], data["seed"]) == ("scenario", 1, 3)
    assert data["policy"]["name"] == "careful"
    assert data["scenario"]["unplugged"] == [{"from_s": 30.0, "until_s": None}]
    assert data["device"]["energy"] == "modelled"
    assert data["device"]["thermal_fit"] is None
    summary = data["summary"]
    assert summary["requests"] == sum(summary[key] for key in ("in_time", "late", "given_up", "refused", "waiting"))
    assert 0.0 < summary["oracle_fraction"] <= 1.0 or summary["limits_broken"]
    assert list(data["fixed"]) == ["2", "5", "8", "16"]
    assert len(data["timeline"]) == 90
    root = ET.fromstring(plot.read_text())
    words = " ".join(text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text"))
    for expected in (
        *("walk on trace.csv, seed 3: policy careful", "limit 60 °C", "surroundings +3 °C", "off mains", "reserve 5 %"),
        *("deadline 400 ms", "8 requests/s, 1.5 times slower", "requests waiting", "time, s"),
    ):
        assert expected in words
    first = json.dumps(data, sort_keys=True)
    assert run_main(main, line(files, "--seed", "3", "--json")) == 0
    assert json.dumps(json.loads(capsys.readouterr().out), sort_keys=True) == first
    assert run_main(main, line(files, "--seed", "4", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["summary"] != summary


def test_people_get_the_policy_beside_the_rungs(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run_main(main, line(files)) == 0
    out = capsys.readouterr().out
    for words in (
        "walk on trace.csv",
        "joules are modelled",
        "rank 16",
        "rank 2",
        "of the oracle's quality",
        "Against the best fixed rung, rank",
        "limit 60 C",
    ):
        assert words in out
    assert re.search(r"rank \d+ \(best\)", out)


def test_a_scenario_needs_a_profile_and_a_plot_a_scenario(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(words: list[str], *expected: str) -> None:
        assert run_main(main, words) == 2
        errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("nsn-edge: ")]
        assert len(errors) == 1
        for text in expected:
            assert text in errors[0]

    bundle = files["bundle"]
    fails(["simulate", bundle, "--scenario", files["scenario"]], "what the rungs cost", "--profile profile.json")
    fails(["simulate", bundle, "--plot", str(tmp_path / "x.svg")], "--plot draws a scenario")
    fails(["simulate", bundle, "--policy", files["policy"], "--no-queries"], "careful.toml", "[deadline]")
    profile = Path(files["profile"])
    profile.write_text(profile.read_text().replace('"model": "', '"model": "another '))
    fails(line(files), "profile.json", "another")
    profile_of(Bundle.open(bundle, check_hashes=False), profile)
    Path(files["scenario"]).write_text(SCENARIO.replace("deadline_ms = 400", "deadline_ms = -4"))
    fails(line(files), "walk.toml, line 3: deadline_ms is -4, outside")
    Path(files["scenario"]).write_text(SCENARIO)
    trace = Path(files["trace"])
    text = trace.read_text()
    trace.write_text(re.sub(r"\n(3\d),.*", "", text))
    fails(line(files), "trace.csv, line 32: rows are missing before this one", "1 s")
    trace.write_text(text)
    Path(files["scenario"]).write_text(SCENARIO.replace("arrivals_per_s = 4\n", ""))
    fails(line(files), "trace.csv, line 2: the trace does not say how many requests came")
    Path(files["scenario"]).write_text(SCENARIO)
    measured(Bundle.open(bundle, check_hashes=False), metric=False)
    fails(line(files), "does not say how good its rungs are", "export --quality")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("schema_version = 1", "schema_version = 9"), "line 1: unknown schema_version 9"),
        (("schema_version = 1\n", ""), "schema_version is missing"),
        (("deadline_ms = 400\n", ""), "the key deadline_ms is missing"),
        (
            ("arrivals_per_s = 4", "arrival_per_s = 4"),
            "line 4: unknown key 'arrival_per_s'. did you mean arrivals_per_s?",
        ),
        (("arrivals_per_s = 4", "arrivals_per_s = '4'"), "line 4: arrivals_per_s is '4', not a number"),
        (("arrivals_per_s = 4", "arrivals_per_s = true"), "line 4: arrivals_per_s is True, not a number"),
        (
            ("arrivals_per_s = 4", "queue_limit = 1.5\narrivals_per_s = 4"),
            "line 4: queue_limit is 1.5, not a whole number",
        ),
        (("arrivals_per_s = 4", "arrivals_per_s = nan"), "line 4: arrivals_per_s is nan, outside 0..100000"),
        (('name = "walk"', "name = 3"), "line 2: name is 3, not a string"),
        (("resistance_c_per_w = 2", "resistance_c_per_w = 0"), "line 10: [thermal] resistance_c_per_w is 0"),
        (("reserve_pct = 5", "reserve_pct = 90"), "line 16: [battery] reserve_pct 90 is not below start_pct 80"),
        (("until_s = 60", "until_s = 20"), "line 20: [heat] until_s 20 is not after from_s 20"),
        (("rise_c = 3", "rise_c = 300"), "line 21: [heat] rise_c is 300, outside -100..100"),
        (("slowdown = 1.5", "slowdown = 0.5"), "line 30: [load] slowdown is 0.5, outside 1..1000"),
        (("[[heat]]", "[heat]"), "line 18: [heat] heat is not a list of events"),
        (
            ("[battery]\ncapacity_wh = 1\nstart_pct = 80\nreserve_pct = 5\n", ""),
            "the mains are unplugged and no battery",
        ),
        (("[battery]", "[batery]"), "unknown key 'batery'. did you mean battery?"),
        (("deadline_ms = 400", "deadline_ms = "), "is not TOML"),
    ],
)
def test_a_scenario_file_that_makes_no_sense(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "walk.toml"
    assert change[0] in SCENARIO
    file.write_text(SCENARIO.replace(*change, 1))
    with pytest.raises(UsageError) as caught:
        load_scenario(file)
    assert message in str(caught.value).replace(" (did", ". did")
    assert str(file) in caught.value.message


def test_files_that_are_no_scenario(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the scenario"):
        load_scenario(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        load_scenario(tmp_path / "binary.toml")
    (tmp_path / "big.toml").write_text("#" * (1 << 21))
    with pytest.raises(UsageError, match="far too large"):
        load_scenario(tmp_path / "big.toml")


def test_the_scenario_that_ships_can_be_read() -> None:
    scenario = load_scenario(FIELD_SCENARIO)
    assert scenario.name == "field shift"
    assert scenario.battery is not None
    assert len(scenario.heat) == 1


def test_only_scenarios_are_drawn() -> None:
    with pytest.raises(UsageError, match="no simulated scenario"):
        scenario_svg({"kind": "simulation", "timeline": [1]})
