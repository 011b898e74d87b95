"""`nsn-edge build` as a user meets it. Engines are real, built ahead of time for SM86."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import Run

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engines import read_records

LINE = ("--backend", "tensorrt-rtx", "--device", "sm86")


@pytest.fixture(autouse=True)
def _rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install '.[rtx]'")


def test_build_then_build_again(run: Run, bundle: Path, tmp_path: Path) -> None:
    rank = Bundle.open(bundle).manifest.ladder.ranks[0]
    line = ("build", bundle, *LINE, "--rank", rank, "--engines", tmp_path / "engines", "--json")
    done = run(*line)
    assert done.code == 0, done.err
    assert done.complaints == []
    document = done.document
    assert (document["schema_version"], document["kind"]) == (1, "build")
    assert (document["library"], document["device"]["sm"]) == ("tensorrt_rtx", "sm86")
    (engine,) = document["engines"]
    assert (engine["kind"], engine["rank"], engine["precision"], engine["built"]) == ("rung", rank, "fp32", True)
    assert engine["profiles"][0]["rank_range"] == [rank, rank]
    assert Path(engine["file"]).stat().st_size == engine["size_bytes"]
    (stored,) = read_records(Path(document["folder"]))
    assert (stored.record.sha256, stored.record.build_s) == (engine["sha256"], engine["build_s"])
    again = run(*line).document["engines"][0]
    assert not again["built"]
    assert again["sha256"] == engine["sha256"]


def test_a_dry_run_builds_nothing(run: Run, bundle: Path) -> None:
    line = ("build", bundle, *LINE, "--kind", "rung", "--kind", "dynamic", "--batch", "1:1:4", "--dry-run")
    done = run(*line)
    assert done.code == 0, done.err
    assert "for sm86" in done.out
    assert "nothing was built" in done.out
    assert "sliced-fp32" in done.out
    document = run(*line, "--json").document
    assert document["kind"] == "build-plan"
    ladder = Bundle.open(bundle).manifest.ladder
    assert [engine["rank"] for engine in document["engines"]] == [*ladder.ranks, None]
    assert {engine["reason"] for engine in document["engines"]} == {"not built yet"}
    assert document["engines"][0]["profiles"][0]["inputs"]["input_ids"]["max"] == [4, 24]
    assert not (bundle / "engines").exists()


def test_for_people(run: Run, bundle: Path, tmp_path: Path) -> None:
    rank = Bundle.open(bundle).manifest.ladder.ranks[0]
    line = ("build", bundle, *LINE, "--rank", rank, "--engines", tmp_path, "--precision", "fp16")
    first, second = run(*line), run(*line)
    assert "built: not built yet" in first.out
    assert f"rank-{rank:03}-fp16" in first.out
    assert "stays" in second.out


def test_the_document_goes_to_a_file_too(run: Run, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "build.json"
    assert run("build", bundle, *LINE, "--dry-run", "--json-file", file).code == 0
    assert json.loads(file.read_text())["kind"] == "build-plan"


def test_engines_lie_in_the_bundle_and_go_with_the_next_export(
    run: Run, checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    rank = Bundle.open(mine).manifest.ladder.ranks[0]
    assert run("build", mine, *LINE, "--rank", rank).code == 0
    assert list(mine.glob("engines/*/*.engine"))
    assert run("inspect", mine).code == 0
    assert run("export", checkpoint, "-o", mine).code == 0
    assert not (mine / "engines").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--device", "sm87"), 2, "builds for sm80+"),
        (("--sequence", "1:99:99"), 2, "the model takes 24 at most"),
        (("--sequence", "many"), 2, "'many' is no range of sizes"),
        (("--dim", "height"), 2, "is not NAME=MIN:OPT:MAX"),
        (("--dim", "height=3"), 2, "no dimension 'height'"),
        (("--rank", "63"), 2, "no rung at rank 63"),
        (("--kind", "dynamic", "--rank", "RANK"), 2, "exclude the rungs"),
        (("--decode-profile",), 2, "keeps no cache"),
        (("--level", "7"), 2, "0 to 5, not 7"),
        (("--precision", "fp7"), 2, "fp7"),
        (("--backend", "tensorrt"), 1, "JetPack brings it"),
    ],
)
def test_mistakes(
    run: Run, bundle: Path, arguments: tuple[str, ...], code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    lowest = str(Bundle.open(bundle).manifest.ladder.ranks[0])
    done = run("build", bundle, *LINE, *(lowest if word == "RANK" else word for word in arguments))
    assert (done.code, done.out) == (code, "")
    assert words in done.message
    assert not (bundle / "engines").exists()


def test_a_backend_must_be_named(run: Run, bundle: Path) -> None:
    done = run("build", bundle)
    assert done.code == 2
    assert "--backend" in done.message


def test_too_little_room(run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nsn_edge.export.tensorrt.checks import Room

    monkeypatch.setattr(Room, "here", classmethod(lambda cls, folder: cls(1000, 1000)))
    rank = Bundle.open(bundle).manifest.ladder.ranks[0]
    line = ("build", bundle, *LINE, "--rank", rank, "--engines", tmp_path)
    done = run(*line)
    assert (done.code, "of memory" in done.message) == (1, True)
    assert list(tmp_path.iterdir()) == []
    assert run(*line, "--skip-checks").code == 0
