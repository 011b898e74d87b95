"""Fixtures that several rooms share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Tests import in importlib mode, which puts no folder of theirs on the path; what they share lies in one.
sys.path.insert(0, str(Path(__file__).parent / "support"))

from tiny_bundle import TinyModel, write_classifier_bundle, write_text_bundle, write_tiny_bundle

# Machines that run tests are busy: how long an example takes decides nothing.
settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> tuple[Path, TinyModel]:
    """A bundle's folder and the same model in numpy; each test may damage its own."""
    path = tmp_path / "tiny-bundle"
    return path, write_tiny_bundle(path)


@pytest.fixture
def text_bundle(tmp_path: Path) -> tuple[Path, TinyModel]:
    """A sentence encoder's bundle and the same model in numpy; each test may damage its own."""
    path = tmp_path / "text-bundle"
    return path, write_text_bundle(path)


@pytest.fixture
def classifier_bundle(tmp_path: Path) -> tuple[Path, TinyModel]:
    """A text classifier's bundle and the same model in numpy; each test may damage its own."""
    path = tmp_path / "classifier-bundle"
    return path, write_classifier_bundle(path)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: for many tiny steps, which on a busy machine spend their time waiting for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
