"""`nsn-edge adapt`: what it writes, what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from nsn_edge.adaptation import ALLOCATIONS, DEFAULT_SENTENCES
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.cli import main
from nsn_edge.cli.adapt import command
from nsn_edge.cli.common import run_main
from nsn_edge.convert import METHODS
from nsn_edge.pretrained import MINILM, MODEL_CLASSES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=8)
    BertModel(config).save_pretrained(folder)
    core = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "cat": 2, "dog": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("cat dog\n\n  dog dog cat  \nbird\n", encoding="utf-8")
    return file


def run(*arguments: str | Path) -> int:
    return run_main(main, ["adapt", *map(str, arguments)])


def test_json_for_programs(model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "-o", tmp_path / "ck", "--text", text, "--json") == 0
    output, errors = capsys.readouterr()
    data = json.loads(output)
    assert (data["schema_version"], data["kind"]) == (1, "adaptation")
    assert (data["layers"], data["max_rank"]) == (6, 32)
    assert data["dense_parameters"] == 4 * 32 * 32 + 2 * 32 * 64
    assert data["factor_parameters"] == 4 * 32 * 64 + 2 * 32 * 96
    assert data["size_bytes"] == sum(file.stat().st_size for file in (tmp_path / "ck").iterdir())
    assert data["provenance"]["calibration_sentences"] == 3
    assert data["provenance"]["calibration_tokens"] == 2 + 3 + 1
    assert data["seconds"] > 0
    assert "calibrate" in errors
    checkpoint = Checkpoint.load(tmp_path / "ck")
    for row in data["ranks"]:
        assert row["rank"] == checkpoint.ladder.rank_for_fraction(row["wanted"])
        assert row["flops_fraction"] <= row["wanted"]
    assert [row["wanted"] for row in data["ranks"]] == [1.0, 0.75, 0.5, 0.35, 0.25]


def test_a_table_for_people(model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "-o", tmp_path / "ck", "--text", text, "--calibration-sentences", "2", "--no-dense") == 0
    output = capsys.readouterr().out
    assert "calibration sentences: 2" in output
    assert "6 layers cut" in output
    assert "50%" in output
    assert f"next: nsn-edge export {tmp_path / 'ck'}" in output.replace("\n", "")


def test_the_options_are_those_of_the_library() -> None:
    """They are spelled out in the verb so that `--help` does not import torch."""
    parameters = {parameter.name: parameter for parameter in command.params}
    assert parameters["sentences"].default == DEFAULT_SENTENCES
    assert parameters["model"].default == MINILM
    for name, choices in (("method", (*METHODS, "auto")), ("allocate", ALLOCATIONS), ("task", MODEL_CLASSES)):
        kind = parameters[name].type
        assert isinstance(kind, click.Choice)
        assert list(kind.choices) == list(choices)


def test_plain_svd_needs_no_text(model: Path, tmp_path: Path) -> None:
    assert run(model, "-o", tmp_path / "ck", "--method", "svd", "--text", tmp_path / "absent.txt") == 0
    assert Checkpoint.load(tmp_path / "ck").provenance["method"] == "svd"


def test_bad_text_is_refused_before_the_model_is_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    for name, reason in (
        ("absent.txt", "No such file"),
        ("empty.txt", "holds no text"),
        ("latin.txt", "not UTF-8 text (byte 3)"),
        (".", "Is a directory"),
    ):
        assert run("no/such/model", "-o", tmp_path / "ck", "--text", tmp_path / name) == 2
        line = capsys.readouterr().err
        assert reason in line
        assert line.count("\n") == 1
    assert not (tmp_path / "ck").exists()


def test_a_foreign_folder_is_refused_at_once(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    assert run(model, "-o", tmp_path) == 2
    assert "did not write" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["/no/such/model"], 2, "no folder /no/such/model"),
        (["--method", "pca"], 2, "'pca'"),
        (["--task", "chess"], 2, "'chess'"),
        (["--calibration-sentences", "0"], 2, "0 is not in the range"),
    ],
)
def test_usage_errors(
    arguments: list[str], code: int, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "-o", tmp_path / "ck") == code
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "ck").exists()
