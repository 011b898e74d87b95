from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main

QUICK = ("--repetitions", "5", "--min-time", "0", "--warmup", "1")


def profile(path: Path, *arguments: str) -> int:
    return run_main(main, ["profile", str(path), *QUICK, *arguments])


def test_a_table_for_people(tiny_bundle: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(tiny_bundle[0]) == 0
    out = capsys.readouterr().out
    for heading in ("rank", "FLOPs", "p50 ms", "p99 ms", "mean ± std ms", "cv", "× dense", "load ms"):
        assert heading in out
    assert "16 (dense)" in out
    assert "measured on: " in out
    assert "warning: p99 of fewer than 100 repetitions" in out


def test_json_and_a_file(tiny_bundle: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "profile.json"
    assert profile(tiny_bundle[0], "--json", "-o", str(file), "--batch", "3", "--rank", "2", "--rank", "16") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(file.read_text())
    assert printed["kind"] == "profile"
    assert (printed["schema_version"], printed["complete"]) == (2, True)
    (configuration,) = printed["configurations"]
    assert configuration["settings"]["batch_size"] == 3
    assert [rung["rank"] for rung in configuration["rungs"]] == [2, 16]


def test_the_sequence_is_no_longer_than_the_model_takes(
    text_bundle: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(text_bundle[0], "--json") == 0
    assert json.loads(capsys.readouterr().out)["configurations"][0]["settings"]["sequence_length"] == 8
    assert profile(text_bundle[0], "--sequence", "4", "--json", "--form", "sliced") == 0
    assert json.loads(capsys.readouterr().out)["configurations"][0]["settings"]["sequence_length"] == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rank", "9"), "no rung at rank 9"),
        (("--rank", "17"), "rank 17 is outside 1..16"),
        (("--batch", "0"), "'batch_size' cannot be 0"),
        (("--threads", "-1"), "threads"),
        (("--provider", "tpu"), "unknown provider 'tpu'"),
        (("--dim", "past"), "NAME=N"),
        (("--dim", "past=-3"), "NAME=N"),
        (("--max-time", "0"), "at most 0.0 s"),
        (("--form", "gated"), "gated"),
    ],
)
def test_usage_errors(
    tiny_bundle: tuple[Path, Any], arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(tiny_bundle[0], *arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_bad_bundles(tiny_bundle: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(tmp_path / "nowhere") == 2
    assert "no bundle at" in capsys.readouterr().err
    weights = tiny_bundle[0] / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert profile(tiny_bundle[0], "-o", str(tmp_path / "profile.json")) == 1
    assert "weights.bin" in capsys.readouterr().err
    assert not (tmp_path / "profile.json").exists()


def test_a_file_that_cannot_be_written(
    tiny_bundle: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert profile(tiny_bundle[0], "-o", str(folder)) != 0
    assert "Traceback" not in capsys.readouterr().err


def test_shared_weights_are_part_of_what_was_measured(
    text_bundle: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for options, shared in (((), False), (("--share-weights",), True)):
        assert profile(text_bundle[0], "--sequence", "4", "--json", *options) == 0
        assert json.loads(capsys.readouterr().out)["configurations"][0]["settings"]["share_weights"] is shared
