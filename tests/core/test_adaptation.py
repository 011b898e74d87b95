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


def test_sensitivity_spends_the_same_work_otherwise(embedder_folder: Path, tmp_path: Path) -> None:
    uniform = adapt(embedder_folder, text=TEXT).ladder
    heard: list[str] = []
    checkpoint = adapt(
        embedder_folder, text=TEXT, allocate="sensitivity", progress=lambda stage, *_: heard.append(stage)
    )
    assert heard[-1] == "sensitivity"
    assert checkpoint.ladder != uniform
    assert checkpoint.ladder.max_rank == uniform.max_rank
    assert all(checkpoint.ladder.macs(rank) <= uniform.macs(rank) for rank in (8, 16, 24))
    assert checkpoint.provenance["allocation"] == "sensitivity"
    assert checkpoint.provenance["allocation_examples"] == 4
    checkpoint.save(tmp_path / "ck")
    assert Checkpoint.load(tmp_path / "ck").ladder == checkpoint.ladder


def test_plain_svd_may_be_allocated_by_sensitivity_too(embedder_folder: Path) -> None:
    checkpoint = adapt(embedder_folder, config=NSNConfig("svd", keep_dense=False), text=TEXT, allocate="sensitivity")
    assert checkpoint.provenance["method"] == "svd"
    assert len({layer.curve for layer in checkpoint.ladder.layers}) > 1
    assert all(layer.weight is None for layer in nsn_layers(checkpoint.model).values())


@pytest.mark.parametrize("keep_dense", [True, False])
def test_the_method_is_chosen_on_what_was_not_calibrated_on(embedder_folder: Path, keep_dense: bool) -> None:
    subjects, verbs = ("cat", "dog", "she", "it", "they"), ("sat", "ran", "saw")
    text = CalibrationText([f"{subject} {verb} on the mat" for subject in subjects for verb in verbs], "made up")
    config = NSNConfig("svd", keep_dense=keep_dense)
    chosen = adapt(embedder_folder, config=config, text=text, choose_method=True)
    damages = chosen.provenance["held_out_damage"]
    assert set(damages) == {"svd", "whitened"}
    assert chosen.provenance["method"] == min(damages, key=damages.get) == "whitened"
    assert chosen.provenance["method_chosen_on"] == 3
    assert {layer.weight is not None for layer in nsn_layers(chosen.model).values()} == {keep_dense}
    # The factors are those of the method that was chosen, calibrated on the rest.
    original = load_pretrained(embedder_folder)
    expected = embed_texts(original.model, original.tokenizer, TEXT.texts, original.task)
    assert abs(embed_texts(chosen.model, original.tokenizer, TEXT.texts, chosen.task) - expected).max() < 1e-5


def test_plain_svd_is_kept_where_it_is_better(embedder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CalibrationText(["the cat sat", "a dog ran", "she saw it", "he ran", "they sat"] * 2, "ten lines")
    plain = adapt(embedder_folder, config=NSNConfig("svd"))
    answers = iter([0.1, 0.9])
    monkeypatch.setattr("nsn_edge.adaptation.judged_damage", lambda *_: next(answers))
    chosen = adapt(embedder_folder, text=text, choose_method=True)
    assert chosen.provenance["method"] == "svd"
    pairs = zip(nsn_layers(chosen.model).values(), nsn_layers(plain.model).values(), strict=True)
    assert all(torch.equal(layer.A, twin.A) and torch.equal(layer.B, twin.B) for layer, twin in pairs)


def test_what_cannot_be_chosen_or_allocated_is_refused(embedder_folder: Path) -> None:
    with pytest.raises(UsageError, match="every 5th example, and there are too few"):
        adapt(embedder_folder, text=TEXT, choose_method=True)
    with pytest.raises(UsageError, match="unknown allocation 'fair'"):
        adapt(embedder_folder, text=TEXT, allocate="fair")
