"""A decoder's way through the verbs: adapt, export, verify, profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from decoder_folder import write_decoder_folder

from nsn_edge.cli import main


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("decoder")
    checkpoint, bundle = root / "checkpoint", root / "bundle"
    model = write_decoder_folder(root / "model")
    adapted = run("adapt", model, "-o", checkpoint, "--task", "text-generation", "--calibration-sentences", 20)
    assert (adapted["layers"], adapted["task"], adapted["provenance"]["method"]) == (14, "text-generation", "whitened")
    run("export", checkpoint, "-o", bundle)
    return checkpoint, bundle


def test_a_decoder_is_verified_from_text_with_its_cache(folders: tuple[Path, Path]) -> None:
    checkpoint, bundle = folders
    report = run("verify", bundle, checkpoint)
    assert report["passed"]
    assert {"static", "sliced", "masked"} <= {check["form"] for check in report["checks"]}


def test_a_decoder_is_profiled_in_prefill_and_in_decoding(folders: tuple[Path, Path]) -> None:
    quick = ("--warmup", 1, "--repetitions", 2, "--min-time", 0)
    prefill = run("profile", folders[1], *quick)["configurations"][0]
    assert prefill["settings"]["sequence_length"] == 64  # all that the model takes
    decode = run("profile", folders[1], "--past", 40, *quick)["configurations"][0]
    assert decode["settings"]["sequence_length"] == 1
    assert decode["settings"]["dimensions"] == {"past_sequence_length": 40}
    assert len(decode["rungs"]) == len(prefill["rungs"]) > 2
    result = CliRunner().invoke(main, ["profile", str(folders[1]), "--past", "64"])
    assert "a sequence of 65 is longer than the 64" in str(result.exception)


def test_a_decoder_answers_while_a_trace_is_replayed(folders: tuple[Path, Path]) -> None:
    result = run("simulate", folders[1])
    assert result["summary"]["queries"] > 0
    assert result["summary"]["failed_queries"] == 0
    assert len(result["switches"]) > 2
