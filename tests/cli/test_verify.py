"""`nsn-edge verify`: agreement and disagreement with torch, inputs of one's own, and quality."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from tiny_bundle import sign
from tiny_encoder import vocabulary

from nsn_edge.bundle import Bundle


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    ids = np.arange(4, 22).reshape(2, 9)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {**inputs, **changes}


def test_json_for_programs_and_quality_in_the_manifest(run: Run, checkpoint: Path, bundle_copy: Path) -> None:
    data = run("verify", bundle_copy, checkpoint, "--json").document
    assert (data["schema_version"], data["kind"], data["passed"]) == (1, "verification", True)
    assert all(check["passed"] and check["max_abs_diff"] < 1e-3 for check in data["checks"])
    ladder = Bundle.open(bundle_copy).manifest.ladder
    static = [check["rank"] for check in data["checks"] if check["form"] == "static"]
    assert static == list(ladder.ranks)
    assert data["quality"] == {str(rung.rank): dict(rung.quality) for rung in ladder.rungs}
    assert data["quality"]["64"]["spearman"] == pytest.approx(1.0)
    assert all(0 < quality["spearman"] <= 1 for quality in data["quality"].values())


def test_a_table_for_people(run: Run, checkpoint: Path, bundle_copy: Path) -> None:
    done = run("verify", bundle_copy, checkpoint, "--no-quality")
    assert done.code == 0
    assert "64 (dense)" in done.out
    assert "last_hidden_state" in done.out
    assert "agree with torch" in done.out
    assert "spearman" not in done.out
    assert not any(rung.quality for rung in Bundle.open(bundle_copy).manifest.ladder.rungs)


def test_an_altered_weight_is_found_and_named(run: Run, checkpoint: Path, bundle_copy: Path) -> None:
    weights = bundle_copy / "weights.bin"
    values = np.fromfile(weights, np.float32)
    values[len(values) // 2 :] += np.float32(0.1)
    values.tofile(weights)
    sign(bundle_copy)  # the hashes are right, so torch alone can tell
    manifest = (bundle_copy / "manifest.json").read_bytes()
    failed = run("verify", bundle_copy, checkpoint, "--json")
    assert failed.code == 1
    assert "disagree with torch; the worst is " in failed.message
    assert "last_hidden_state differs by" in failed.message
    data = failed.document
    assert data["passed"] is False
    assert any(not check["passed"] for check in data["checks"])
    assert (bundle_copy / "manifest.json").read_bytes() == manifest, "no quality of a wrong bundle is recorded"


def test_a_tolerance_below_what_floats_hold(run: Run, checkpoint: Path, bundle: Path) -> None:
    failed = run("verify", bundle, checkpoint, "--tolerance", 1e-12)
    assert failed.code == 1
    assert "tolerance 1e-12" in failed.message
    assert "differs" in failed.out


def test_texts_of_ones_own(run: Run, checkpoint: Path, bundle_copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"the value of the class {'and error ' * n}" for n in range(20)), encoding="utf-8")
    data = run("verify", bundle_copy, checkpoint, "--text", file, "--json").document
    assert data["passed"]
    file.write_text("too few\n")
    failed = run("verify", bundle_copy, checkpoint, "--text", file)
    assert (failed.code, "takes 12 texts or more, not 1" in failed.message) == (2, True)


def test_arrays_of_ones_own(run: Run, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "in.npz"
    np.savez(file, **arrays())
    assert run("verify", bundle, checkpoint, "--inputs", file, "--no-quality", "--json").document["passed"]


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"input_ids": np.full((2, 9), len(vocabulary()))}, 2, "torch cannot run the arrays"),
        ({"input_ids": np.ones((2, 9), np.float32)}, 1, "'input_ids' of {file} is float32, not int64"),
        ({"attention_mask": np.ones((2, 4), np.int64)}, 1, "has the shape [2, 4], which does not fit"),
        ({name: array.repeat(9, axis=1) for name, array in arrays().items()}, 2, "as long as the model takes?"),
        ({name: array[:0] for name, array in arrays().items()}, 2, "torch cannot run the arrays"),
    ],
)
def test_arrays_that_do_not_fit(
    run: Run, checkpoint: Path, bundle: Path, tmp_path: Path, changes: dict[str, np.ndarray], code: int, says: str
) -> None:
    file = tmp_path / "in.npz"
    np.savez(file, **arrays(**changes))
    failed = run("verify", bundle, checkpoint, "--inputs", file)
    assert failed.code == code
    assert says.format(file=file) in failed.message


def test_an_array_is_missing(run: Run, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    inputs = arrays()
    del inputs["token_type_ids"]
    np.savez(tmp_path / "in.npz", **inputs)
    failed = run("verify", bundle, checkpoint, "--inputs", tmp_path / "in.npz")
    assert failed.code == 2
    assert "lacks the array 'token_type_ids'. the model takes input_ids" in failed.message


def test_another_models_checkpoint(run: Run, checkpoint_copy: Path, bundle: Path) -> None:
    file = checkpoint_copy / "nsn.json"
    data = json.loads(file.read_text())
    data["ladder"]["layers"][0]["curve"]["align"] = 4
    file.write_text(json.dumps(data))
    failed = run("verify", bundle, checkpoint_copy)
    assert failed.code == 2
    assert "was exported from another model than this checkpoint" in failed.message
