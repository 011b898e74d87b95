"""Checkpoints: bit for bit there and back, without the original, and every kind of damage named in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nsn_edge.bundle import TaskSpec
from nsn_edge.checkpoint import MANIFEST_NAME, WEIGHTS_NAME, Checkpoint, is_checkpoint_folder
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import CheckpointError, NsnEdgeError, UnsupportedModelError, UsageError
from nsn_edge.layers import at_dense, at_rank, nsn_layers

TASK = TaskSpec("feature-extraction", pooling="mean", normalize=True, max_length=12)


def nested(model: Any, keep_dense: bool = True, assets: Path | None = None) -> Checkpoint:
    nsnify_(model, NSNConfig(method="svd", keep_dense=keep_dense))
    return Checkpoint(model, TASK, "tiny", {"method": "svd", "sentences": 3}, assets)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)), name


@pytest.mark.parametrize("keep_dense", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_round_trip_is_bit_identical(
    architecture: str,
    dtype: torch.dtype,
    keep_dense: bool,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    batch: dict[str, Tensor],
) -> None:
    saved = nested(request.getfixturevalue(architecture).to(dtype), keep_dense)
    saved.save(tmp_path / "ck")
    loaded = Checkpoint.load(tmp_path / "ck")
    assert type(loaded.model) is type(saved.model)
    assert_same_state(saved.model, loaded.model)
    assert (loaded.ladder, loaded.task, loaded.name) == (saved.ladder, saved.task, saved.name)
    assert loaded.provenance == saved.provenance
    assert loaded.assets == tmp_path / "ck"
    assert not loaded.model.training
    for rank in (1, 9, loaded.ladder.max_rank):
        with torch.no_grad(), at_rank(saved.model, rank), at_rank(loaded.model, rank):
            assert torch.equal(saved.model(**batch)[0], loaded.model(**batch)[0])
    if keep_dense:
        with torch.no_grad(), at_dense(saved.model), at_dense(loaded.model):
            assert torch.equal(saved.model(**batch)[0], loaded.model(**batch)[0])


def test_a_loaded_model_can_be_trained_and_saved_again(bert: Any, tmp_path: Path, batch: dict[str, Tensor]) -> None:
    nested(bert).save(tmp_path / "ck")
    loaded = Checkpoint.load(tmp_path / "ck")
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    loaded.model(**batch)[0].square().sum().backward()
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad)
    loaded.save(tmp_path / "ck")
    assert_same_state(loaded.model, Checkpoint.load(tmp_path / "ck").model)


def test_tied_weights_stay_tied(gpt2: Any, tmp_path: Path) -> None:
    nested(gpt2).save(tmp_path / "ck")
    stored = load_file(tmp_path / "ck" / WEIGHTS_NAME)
    assert "lm_head.weight" not in stored
    model: Any = Checkpoint.load(tmp_path / "ck").model
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_plain_module_needs_a_fresh_one(tied: Any, tmp_path: Path) -> None:
    saved = nested(tied)
    saved.save(tmp_path / "ck")
    assert not (tmp_path / "ck" / "config.json").exists()
    with pytest.raises(UsageError, match=r"plain Tied.*model="):
        Checkpoint.load(tmp_path / "ck")
    fresh = type(tied)()
    loaded = Checkpoint.load(tmp_path / "ck", model=fresh)
    assert loaded.model is fresh
    assert fresh.first is fresh.inner["second"]
    assert_same_state(saved.model, fresh)


class Views(nn.Module):
    """A buffer that is a view of a parameter, one that is not stored, and one of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.register_buffer("flipped", self.scale.detach().T)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def test_views_integers_and_scratch_buffers(tmp_path: Path) -> None:
    saved = nested(Views())
    saved.save(tmp_path / "ck")
    assert "scratch" not in load_file(tmp_path / "ck" / WEIGHTS_NAME)
    fresh = Views()
    with torch.no_grad():
        fresh.scale.zero_()
        fresh.count.zero_()
    Checkpoint.load(tmp_path / "ck", model=fresh)
    assert torch.equal(fresh.flipped, saved.model.flipped)
    assert torch.equal(fresh.scale, saved.model.scale)
    assert fresh.count == 3


def test_tokenizer_files_come_along(bert: Any, embedder_folder: Path, tmp_path: Path) -> None:
    nested(bert, assets=embedder_folder).save(tmp_path / "ck")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "ck" / name).read_bytes() == (embedder_folder / name).read_bytes()
    Checkpoint.load(tmp_path / "ck").save(tmp_path / "again")
    names = {file.name for file in (tmp_path / "ck").iterdir()}
    assert {file.name for file in (tmp_path / "again").iterdir()} == names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ck" / name).read_bytes()


def test_a_tokenizer_of_words_alone_is_written_as_json_too(bert: Any, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]))
    (words / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    nested(bert, assets=words).save(tmp_path / "ck")
    vocabulary = json.loads((tmp_path / "ck" / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocabulary["cat"] == 5


def test_the_weights_may_be_read_by_others(bert: Any, tmp_path: Path) -> None:
    nested(bert).save(tmp_path / "ck")
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "ck").iterdir()}
    assert modes[WEIGHTS_NAME] == modes[MANIFEST_NAME]


def test_only_a_checkpoint_is_replaced(bert: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    checkpoint = nested(bert)
    with pytest.raises(UsageError, match="did not write"):
        checkpoint.save(home)
    assert (home / "thesis.tex").read_text() == "years of work"
    assert not is_checkpoint_folder(home)
    checkpoint.save(tmp_path / "ck")
    assert is_checkpoint_folder(tmp_path / "ck")
    checkpoint.save(tmp_path / "ck")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ck", "home"]


def test_a_failed_save_leaves_the_old_checkpoint(bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = nested(bert)
    checkpoint.save(tmp_path / "ck")
    before = {file.name: file.read_bytes() for file in (tmp_path / "ck").iterdir()}

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(NsnEdgeError, match="no space left"):
        checkpoint.save(tmp_path / "ck")
    assert {file.name: file.read_bytes() for file in (tmp_path / "ck").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["ck"]


def test_a_model_that_is_not_nested_is_not_saved(bert: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no nested layers"):
        Checkpoint(bert, TASK, "tiny").save(tmp_path / "ck")
    assert not (tmp_path / "ck").exists()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=10)
    path = tmp_path_factory.mktemp("sound") / "ck"
    nested(BertModel(config)).save(path)
    return path


def edit_manifest(path: Path, change: Callable[[Any], None]) -> None:
    data = json.loads((path / MANIFEST_NAME).read_text())
    change(data)
    (path / MANIFEST_NAME).write_text(json.dumps(data))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path / WEIGHTS_NAME).items()}
    change(tensors)
    save_file(tensors, path / WEIGHTS_NAME)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


QUERY = "encoder.layer.0.attention.self.query"

DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda p: (p / MANIFEST_NAME).unlink(), "is not a checkpoint"),
    "cut manifest": (lambda p: cut_in_half(p / MANIFEST_NAME), "not readable JSON"),
    "binary manifest": (lambda p: (p / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00"), "not readable JSON"),
    "list manifest": (lambda p: (p / MANIFEST_NAME).write_text("[]"), "schema version None"),
    "newer": (
        lambda p: edit_manifest(p, lambda d: d.update(schema_version=99)),
        "schema version 99; .* reads version 1",
    ),
    "no ladder": (lambda p: edit_manifest(p, lambda d: d.pop("ladder")), "not sound: KeyError"),
    "no layers": (lambda p: edit_manifest(p, lambda d: d["ladder"].update(layers=[])), "not sound"),
    "forms short": (lambda p: edit_manifest(p, lambda d: d["forms"].pop()), "some layers and not others"),
    "bad task": (lambda p: edit_manifest(p, lambda d: d["task"].update(pooling="max")), "unknown pooling 'max'"),
    "foreign class": (
        lambda p: edit_manifest(p, lambda d: d.update(architecture="logging")),
        "no model of transformers",
    ),
    "odd class": (
        lambda p: edit_manifest(p, lambda d: d.update(architecture="BertConfig")),
        "no model of transformers",
    ),
    "unknown class": (lambda p: edit_manifest(p, lambda d: d.update(architecture="Nope")), "no model of transformers"),
    "unknown layer": (
        lambda p: edit_manifest(p, lambda d: d["ladder"]["layers"][0].update(name="encoder.nope")),
        "'encoder.nope'",
    ),
    "layer not linear": (
        lambda p: edit_manifest(p, lambda d: d["ladder"]["layers"][0].update(name="embeddings.LayerNorm")),
        "'embeddings.LayerNorm'",
    ),
    "other size": (
        lambda p: edit_manifest(p, lambda d: d["ladder"]["layers"][0].update(d_out=17)),
        "16 -> 17 in .* and 16 -> 16 in the model",
    ),
    "no config": (lambda p: (p / "config.json").unlink(), "config.json is missing"),
    "cut config": (lambda p: cut_in_half(p / "config.json"), "cannot build BertModel"),
    "no weights": (lambda p: (p / WEIGHTS_NAME).unlink(), "is missing"),
    "cut weights": (lambda p: cut_in_half(p / WEIGHTS_NAME), "is damaged"),
    "empty weights": (lambda p: (p / WEIGHTS_NAME).write_bytes(b""), "is damaged"),
    "missing tensor": (lambda p: edit_tensors(p, lambda t: t.pop(f"{QUERY}.A")), f"lacks tensor '{QUERY}.A'"),
    "stray tensor": (lambda p: edit_tensors(p, lambda t: t.update(zzz=torch.ones(1))), "unknown tensor 'zzz'"),
    "wrong shape": (
        lambda p: edit_tensors(p, lambda t: t.update({f"{QUERY}.A": torch.zeros(15, 16)})),
        r"has shape \[15, 16\], and the model needs \[16, 16\]",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damage_is_named_in_one_line(damage: str, sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "ck"
    shutil.copytree(sound, path)
    harm, match = DAMAGE[damage]
    harm(path)
    with pytest.raises(CheckpointError, match=match) as caught:
        Checkpoint.load(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_the_sound_one_loads_and_progress_is_heard(sound: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    checkpoint = Checkpoint.load(sound, progress=lambda *event: heard.append(event))
    assert len(nsn_layers(checkpoint.model)) == 6
    assert heard[-1] == ("load", 3, 3)


def test_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint at"):
        Checkpoint.load(tmp_path / "nowhere")


def test_another_fresh_module_is_refused(tied: Any, tmp_path: Path) -> None:
    nested(tied).save(tmp_path / "ck")
    with pytest.raises(CheckpointError, match="the model has none such"):
        Checkpoint.load(tmp_path / "ck", model=nn.Sequential(nn.Linear(2, 2)))
