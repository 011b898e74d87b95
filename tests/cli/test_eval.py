"""`nsn-edge eval` as a user meets it."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from command_line import Run

from nsn_edge.cli.common import run_main
from nsn_edge.frontier.record import COLUMNS


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    words = ("the file", "an error", "a class", "the value", "an object"), ("is with the statement", "if to", "of a")
    file.write_text("".join(f"{first} {last}\n" for first in words[0] for last in words[1]))
    return file


@pytest.fixture(scope="module")
def evaluation(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that one evaluation writes."""
    from nsn_edge.cli import main

    folder = tmp_path_factory.mktemp("evaluated")
    files = ("--json-file", folder / "e.json", "--csv", folder / "e.csv", "--plot", folder / "e.svg")
    arguments = ["eval", checkpoint, "--data", texts, "--rank", "8", "--rank", "24", *files]
    assert run_main(main, [str(argument) for argument in arguments]) == 0
    return folder


def test_the_document(evaluation: Path, checkpoint: Path) -> None:
    data = json.loads((evaluation / "e.json").read_bytes())
    assert (data["schema_version"], data["kind"], data["metric"]) == (1, "evaluation", "spearman")
    assert data["examples"] == 15
    assert data["checkpoint"] == str(checkpoint)
    assert data["precision"] == "fp32"
    rungs = [point["rank"] for point in data["points"] if point["rung"]]
    assert rungs == [8, 24, 64]
    assert all(set(COLUMNS) == set(point) for point in data["points"])
    assert data["points"][-1]["dense"]
    assert data["points"][-1]["loss"] == 0
    assert data["decay"]["energy_kept"][-1] == pytest.approx(1.0)


def test_csv_and_plot_say_the_same(evaluation: Path) -> None:
    data = json.loads((evaluation / "e.json").read_bytes())
    with (evaluation / "e.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["quality"]) for row in rows] == [point["quality"] for point in data["points"]]
    assert rows[0]["p50_ms"] == ""
    drawing = ET.fromstring((evaluation / "e.svg").read_text(encoding="utf-8"))
    circles = [element for element in drawing.iter() if element.get("class") in ("rung", "between")]
    assert len(circles) >= len(rows)
    assert "script" not in (evaluation / "e.svg").read_text()


def test_text_for_people(checkpoint: Path, texts: Path, run: Run) -> None:
    outcome = run("eval", checkpoint, "--data", texts, "--examples", "6", "--flops", "0.5", "--between", "0")
    assert outcome.code == 0
    assert "similarity order against dense (Spearman) on 6 examples" in outcome.out
    assert "(dense)" in outcome.out
    assert "of the energy" in outcome.out


def test_latency_comes_from_a_profile(checkpoint: Path, bundle: Path, texts: Path, tmp_path: Path, run: Run) -> None:
    profile = tmp_path / "profile.json"
    assert run("profile", bundle, "--repetitions", "3", "--warmup", "1", "-o", profile).code == 0
    ranks = [
        rung["rank"] for rung in json.loads(profile.read_bytes())["configurations"][0]["rungs"] if not rung["dense"]
    ]
    plot = tmp_path / "plot.svg"
    rungs = [word for rank in ranks for word in ("--rank", rank)]
    outcome = run("eval", checkpoint, "--data", texts, *rungs, "--profile", profile, "--plot", plot, "--json")
    assert outcome.code == 0, outcome.err
    points = outcome.document["points"]
    assert all((point["p50_ms"] is not None) == point["rung"] for point in points)
    assert "measured (median)" in plot.read_text()
    data = json.loads(profile.read_bytes())
    data["configurations"][0]["rungs"][0]["flops_fraction"] = 0.123
    profile.write_text(json.dumps(data))
    outcome = run("eval", checkpoint, "--data", texts, "--profile", profile)
    assert outcome.code == 2
    assert "profiles another model" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rank", "65"), "rank 65 is outside 1..64"),
        (("--rank", "0"), "rank 0 is outside 1..64"),
        (("--flops", "1.5"), "a FLOPs fraction lies in (0, 1], not 1.5"),
        (("--data", "absent.csv"), "cannot read absent.csv"),
        (("--profile", "absent.json"), "no profile at absent.json"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(checkpoint: Path, arguments, message, run: Run) -> None:
    outcome = run("eval", checkpoint, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.strip().splitlines()[-1].startswith("nsn-edge: ")


def test_a_newer_checkpoint_is_refused(checkpoint_copy: Path, run: Run) -> None:
    manifest = checkpoint_copy / "nsn.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_bytes()), "schema_version": 2}))
    outcome = run("eval", checkpoint_copy)
    assert outcome.code == 1
    assert "schema version 2; this nsn-edge reads version 1" in outcome.err


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint_copy: Path, run: Run) -> None:
    (checkpoint_copy / "tokenizer.json").unlink()
    outcome = run("eval", checkpoint_copy)
    assert outcome.code == 2
    assert "has no tokenizer" in outcome.err
