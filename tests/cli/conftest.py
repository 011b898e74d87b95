"""A user's folder of things to type: a tiny encoder, its checkpoint, its bundle, each made by the real verb."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import Outcome, Run
from tiny_encoder import write_encoder_folder

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a verb in this process. Captures what C++ libraries print too."""

    def run_verb(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run_main(main, [str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run_verb


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder. Tests read it; one that damages it copies it first, and so with the next two."""
    return write_encoder_folder(tmp_path_factory.mktemp("model") / "tiny-encoder")


@pytest.fixture(scope="session")
def checkpoint(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapted") / "checkpoint"
    assert run_main(main, ["adapt", str(encoder), "-o", str(path), "--calibration-sentences", "40"]) == 0
    return path


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "bundle"
    assert run_main(main, ["export", str(checkpoint), "-o", str(path)]) == 0
    return path


@pytest.fixture
def checkpoint_copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def bundle_copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))
