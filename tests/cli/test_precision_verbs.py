"""Precision as its user meets it: export, verify, inspect, profile, run and report of an int8 bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run
from decoder_folder import write_decoder_folder

from nsn_edge.bundle import Bundle

QUICK = ("--repetitions", 5, "--min-time", 0, "--warmup", 1)


@pytest.fixture
def int8(checkpoint: Path, run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "int8"
    outcome = run("export", checkpoint, "-o", path, "--precision", "int8", "--keep-precise", "1", "--json")
    assert outcome.code == 0, outcome.err
    data = json.loads(outcome.out)
    assert data["precision"] == "int8"
    ((spared, damage),) = data["kept_precise"].items()
    assert 0 < damage < 1
    how = Bundle.open(path).manifest.quantisation
    assert how is not None
    assert how.kept == (spared,)
    return path


def test_from_export_to_the_page_that_compares(
    int8: Path, checkpoint: Path, bundle_copy: Path, run: Run, tmp_path: Path
) -> None:
    for path in (int8, bundle_copy):
        outcome = run("verify", path, checkpoint, "--json")
        assert outcome.code == 0, outcome.err
        report = json.loads(outcome.out)
    quality = Bundle.open(int8).manifest.ladder.rungs[-1].quality["spearman"]
    assert 0.9 < quality < 1.0, "the dense rung in int8 is compared with the dense model in float32"
    assert report["precision"] == "fp32"
    assert "int8 weights" in run("inspect", int8).out
    assert "spared" in run("inspect", int8).out
    profiles = []
    for path in (bundle_copy, int8):
        profiles.append(tmp_path / f"{path.name}.json")
        assert run("profile", path, "--form", "static", "-o", profiles[-1], *QUICK).code == 0
        assert json.loads(profiles[-1].read_text())["configurations"][0]["settings"]["precision"] in ("fp32", "int8")
    page = tmp_path / "pairs.html"
    outcome = run("report", *profiles, "-o", page)
    assert (outcome.code, outcome.out) == (0, f"{page}: 2 profiles\n")
    assert "Which rank in which precision" in page.read_text()
    assert run("simulate", int8).code == 0


def test_a_decoder_in_int4_is_verified_judged_and_writes(run: Run, tmp_path: Path) -> None:
    checkpoint, path = tmp_path / "checkpoint", tmp_path / "int4"
    model = write_decoder_folder(tmp_path / "model")
    assert run("adapt", model, "-o", checkpoint, "--task", "text-generation", "--calibration-sentences", 20).code == 0
    assert run("export", checkpoint, "-o", path, "--precision", "int4").code == 0
    outcome = run("verify", path, checkpoint, "--json")
    assert outcome.code == 0, outcome.err
    quality = json.loads(outcome.out)["quality"].values()
    assert all(0 <= rung["top1_agreement"] <= 1 for rung in quality)
    outcome = run("run", path, "--prompt", "the class of an object", "--max-new-tokens", 4, "--json")
    assert outcome.code == 0, outcome.err
    assert len(json.loads(outcome.out)["tokens"]) <= 4


def test_what_does_not_exist_is_said_in_a_line(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "b"
    lines = {
        ("--precision", "int8", "--form", "bound"): "there is no bound form in int8",
        ("--precision", "int4", "--form", "static", "--form", "gated"): "there is no gated form in int4",
        ("--keep-precise", "2"): "add --precision int8 or int4",
        ("--precision", "int8", "--keep-precise", "most"): "takes a number of layers or auto, not 'most'",
        ("--precision", "int8", "--keep-precise", "999"): "so 999 cannot be kept precise",
    }
    for arguments, message in lines.items():
        outcome = run("export", checkpoint, "-o", out, *arguments)
        assert outcome.code == 2
        assert message in outcome.err
        assert len(outcome.err.strip().splitlines()[-1:]) == 1
        assert not out.exists()


def test_a_report_of_something_else_is_refused(bundle: Path, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for path, message in (
        (tmp_path / "nowhere.json", "no profile at"),
        (bundle / "manifest.json", "is not a profile"),
        (bundle / "weights.bin", "is not readable JSON"),
    ):
        outcome = run("report", path, "-o", page)
        assert outcome.code in (1, 2)
        assert message in outcome.err
    assert not page.exists()
