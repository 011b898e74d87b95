"""`export --quality`: what was measured on a checkpoint goes into its bundle, and into no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run

from nsn_edge.bundle import Bundle
from nsn_edge.errors import UsageError
from nsn_edge.frontier.record import fingerprint, qualities
from nsn_edge.ladder import RankLadder


@pytest.fixture
def evaluation(checkpoint: Path, tmp_path: Path) -> Path:
    """Of ranks 8 and 24 and of the dense model."""
    measured = ((8, False, 0.4), (24, False, 0.8), (64, True, 1.0))
    points = [{"rank": rank, "dense": dense, "quality": quality} for rank, dense, quality in measured]
    document = {
        "schema_version": 1,
        "kind": "evaluation",
        "metric": "spearman",
        "precision": "fp32",
        "checkpoint_sha256": fingerprint(checkpoint),
        "points": points,
    }
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(document))
    return file


def test_the_bundle_takes_the_qualities(evaluation: Path, checkpoint: Path, tmp_path: Path, run: Run) -> None:
    rungs = ("--rank", "8", "--rank", "32", "--form", "static")
    outcome = run("export", checkpoint, "-o", tmp_path / "bundle", *rungs, "--quality", evaluation)
    assert outcome.code == 0, outcome.err
    ladder = Bundle.open(tmp_path / "bundle").manifest.ladder
    assert {rung.rank: dict(rung.quality) for rung in ladder.rungs} == {
        8: {"spearman": 0.4},
        32: {},
        64: {"spearman": 1.0},
    }


def test_another_checkpoints_qualities_are_refused_before_anything_is_written(
    evaluation: Path, checkpoint_copy: Path, tmp_path: Path, run: Run
) -> None:
    manifest = checkpoint_copy / "nsn.json"
    manifest.write_text(manifest.read_text() + "\n")
    outcome = run("export", checkpoint_copy, "-o", tmp_path / "bundle", "--quality", evaluation)
    assert outcome.code == 2
    assert "the evaluation of another checkpoint" in outcome.err
    assert not (tmp_path / "bundle").exists()


def test_a_rung_that_was_not_measured_has_no_quality_of_its_own(
    evaluation: Path, checkpoint: Path, tmp_path: Path, run: Run
) -> None:
    outcome = run("export", checkpoint, "-o", tmp_path / "b", "--rank", "16", "--no-dense", "--quality", evaluation)
    assert outcome.code == 2
    assert "measured ranks 8, 24, 64, and the bundle's are 16" in outcome.err


def test_qualities_of_one_precision_are_not_those_of_another(evaluation: Path, checkpoint: Path) -> None:
    stored = json.loads((checkpoint / "nsn.json").read_bytes())["ladder"]
    rungs = RankLadder.from_json(stored).with_rungs([8], dense_top=True)
    assert qualities(evaluation, checkpoint, rungs, "fp32") == qualities(evaluation, checkpoint, rungs)
    with pytest.raises(UsageError, match="measured in fp32, and the bundle is to be int8"):
        qualities(evaluation, checkpoint, rungs, "int8")
