"""From a model's folder to a checkpoint in one call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nsn_edge.adaptation import CalibrationText, adapt, packaged_text
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig
from nsn_edge.corpus import documentation_corpus
from nsn_edge.errors import UnsupportedModelError, UsageError
from nsn_edge.evaluation import embed_texts
from nsn_edge.layers import at_dense, nsn_layers
from nsn_edge.pretrained import load_pretrained

TEXT = CalibrationText(["the cat sat on the mat", "a dog ran", "she saw the red house", "it"], "four lines")


def test_the_checkpoint_answers_as_the_original_does(embedder_folder: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    checkpoint = adapt(embedder_folder, text=TEXT, progress=lambda stage, *_: heard.append(stage))
    assert heard == ["calibrate"] + ["factorize"] * 12
    checkpoint.save(tmp_path / "ck")
    loaded = Checkpoint.load(tmp_path / "ck")
    original = load_pretrained(embedder_folder)
    expected = embed_texts(original.model, original.tokenizer, TEXT.texts, original.task)
    for scope in (at_dense(loaded.model), torch.no_grad()):
        with scope:
            found = embed_texts(loaded.model, original.tokenizer, TEXT.texts, loaded.task)
        assert abs(found - expected).max() < 1e-5
    # [CLS] and [SEP] are tokens too
    tokens = sum(len(text.split()) + 2 for text in TEXT.texts)
    assert loaded.provenance["calibration_tokens"] == tokens
    assert loaded.provenance["calibration_sentences"] == 4
    assert loaded.provenance["calibration_text"] == "four lines"
    assert loaded.provenance["method"] == "whitened"


def test_plain_svd_reads_no_text(embedder_folder: Path) -> None:
    heard: list[str] = []
    config = NSNConfig(method="svd", keep_dense=False)
    checkpoint = adapt(embedder_folder, config=config, progress=lambda stage, *_: heard.append(stage))
    assert set(heard) == {"factorize"}
    assert "calibration_text" not in checkpoint.provenance
    assert all(layer.weight is None for layer in nsn_layers(checkpoint.model).values())


def test_text_is_chosen_evenly() -> None:
    texts = [str(i) for i in range(10)]
    assert CalibrationText(texts, "ten", 5).chosen() == ["0", "2", "4", "6", "8"]
    assert CalibrationText(texts, "ten", 3).chosen() == ["0", "3", "6"]
    assert CalibrationText(texts, "ten", 99).chosen() == texts


def test_the_packaged_text_holds_nothing_held_out() -> None:
    chosen = packaged_text(50).chosen()
    assert len(chosen) == 50
    assert not set(chosen) & set(documentation_corpus().held_out)


def test_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match=r"empty.txt holds no text"):
        CalibrationText([], "empty.txt")
    with pytest.raises(UsageError, match="not 0"):
        CalibrationText(["a"], "one", 0)


def test_a_head_that_is_still_random_is_not_cut(embedder_folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"text-classification: it has no classifier.bias and 1 more"):
        adapt(embedder_folder, "text-classification", text=TEXT)
