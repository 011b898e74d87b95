"""`nsn-edge inspect`: a bundle or a checkpoint explained, checked on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run

from nsn_edge.bundle import Bundle


def test_a_bundle_for_programs(run: Run, bundle: Path) -> None:
    data = run("inspect", bundle, "--json").document
    assert (data["schema_version"], data["kind"], data["path"]) == (1, "bundle", str(bundle))
    assert data["size_bytes"] == sum(file.stat().st_size for file in bundle.iterdir())
    assert data["manifest"] == json.loads((bundle / "manifest.json").read_text())


def test_a_bundle_for_people(run: Run, bundle: Path) -> None:
    done = run("inspect", bundle)
    assert done.code == 0
    assert done.err == ""
    for words in ("tiny-encoder (BertModel, feature-extraction)", "takes input_ids: int64 ['batch_size', 'sequence_"):
        assert words in done.out
    for words in ("ranks 1..64, 12 nested layers", "64 (dense)", "Nested layers by shape", "weights.bin", "written by"):
        assert words in done.out
    for artifact in Bundle.open(bundle).manifest.artifacts:
        assert artifact.path in done.out
        assert artifact.sha256[:12] in done.out


def test_every_layer_is_listed_when_asked_for(run: Run, bundle: Path) -> None:
    name = "encoder.layer.1.attention.output.dense"
    assert name not in run("inspect", bundle).out
    assert name in run("inspect", bundle, "--layers").out


def test_a_checkpoint(run: Run, checkpoint: Path) -> None:
    data = run("inspect", checkpoint, "--json").document
    assert (data["schema_version"], data["kind"], data["architecture"]) == (1, "checkpoint", "BertModel")
    assert data["provenance"]["calibration_sentences"] == 40
    assert len(data["ladder"]["layers"]) == 12
    shown = run("inspect", checkpoint).out
    assert "a nested checkpoint" in shown
    assert "calibration_sentences: 40" in shown


@pytest.mark.parametrize("columns", ["1", "20", "40", "400"])
def test_any_width(run: Run, bundle: Path, checkpoint: Path, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for path in (bundle, checkpoint):
        done = run("inspect", path, "--layers")
        assert (done.code, done.err) == (0, "")
        assert max(map(len, done.out.splitlines())) <= max(int(columns), 30)


def test_names_are_shown_as_they_are(run: Run, bundle_copy: Path) -> None:
    """Brackets are markup to the library that draws; in a name from outside they are letters."""
    file = bundle_copy / "manifest.json"
    data = json.loads(file.read_text())
    data["model"] = "[red]model[/] [/]"
    data["created_by"] = {"tool": "[bold]1[/bold]"}
    file.write_text(json.dumps(data))
    done = run("inspect", bundle_copy)
    assert done.code == 0
    assert "[red]model[/] [/] (BertModel" in done.out
    assert "tool [bold]1[/bold]" in done.out


def test_hashes_are_checked_unless_told_otherwise(run: Run, bundle_copy: Path) -> None:
    weights = bundle_copy / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    failed = run("inspect", bundle_copy)
    assert failed.code == 1
    assert f"weights.bin in {bundle_copy} does not have the SHA-256" in failed.message
    assert failed.out == ""
    assert run("inspect", bundle_copy, "--no-hashes").code == 0
    weights.write_bytes(data[:-1])
    assert "bytes, not" in run("inspect", bundle_copy, "--no-hashes").message
