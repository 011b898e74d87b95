"""`nsn-edge adapt` for models without text (`--inputs`), and with their heads cut (`--head`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from decoder_folder import write_decoder_folder
from families import IMAGE, family_model

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 3, IMAGE, IMAGE)).astype(np.float32)


def test_a_vision_transformer_from_arrays_to_verified_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, checkpoint, bundle = tmp_path / "model", tmp_path / "checkpoint", tmp_path / "bundle"
    family_model("vit").save_pretrained(model)
    np.savez(tmp_path / "images.npz", pixel_values=pixels(40))
    adapt = ["adapt", str(model), "-o", str(checkpoint), "--task", "image-classification"]
    assert run_main(main, adapt) == 2
    assert "reads no text" in capsys.readouterr().err
    assert run_main(main, [*adapt, "--inputs", str(tmp_path / "images.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["calibration_tokens"] == 40 * 17
    assert run_main(main, ["export", str(checkpoint), "-o", str(bundle)]) == 0
    assert run_main(main, ["verify", str(bundle), str(checkpoint)]) == 2
    assert "--inputs" in capsys.readouterr().err
    np.savez(tmp_path / "few.npz", pixel_values=pixels(3))
    assert run_main(main, ["verify", str(bundle), str(checkpoint), "--inputs", str(tmp_path / "few.npz")]) == 0


def test_arrays_of_different_lengths_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "odd.npz", a=pixels(3), b=pixels(2))
    inputs = ["--inputs", str(tmp_path / "odd.npz")]
    assert run_main(main, ["adapt", str(tmp_path), "-o", str(tmp_path / "ck"), *inputs]) == 2
    assert "arrays of different lengths" in capsys.readouterr().err


def test_the_head_is_one_more_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_decoder_folder(tmp_path / "model")
    for flags, layers in (([], 14), (["--head"], 15)):
        arguments = ["adapt", str(model), "-o", str(tmp_path / "ck"), "--task", "text-generation", "--method", "svd"]
        assert run_main(main, [*arguments, *flags, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["layers"] == layers
