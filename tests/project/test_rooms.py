"""Who may import whom: a forbidden import is caught wherever it is planted, behind the links too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, to plant in."""
    for folder in ("nsn_edge", "export", "runtimes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    line = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_the_rooms_as_they_are(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "statement", "contract"),
    [
        ("runtimes/text.py", "import torch", "the runtime never needs torch"),
        ("runtimes/policy/base.py", "from nsn_edge.export import exporter", "the runtime never needs torch"),
        ("runtimes/telemetry/base.py", "import nsn_edge.checkpoint", "the runtime never needs torch"),
        ("nsn_edge/bundle/store.py", "import click", "contracts use the standard library"),
        ("nsn_edge/layers.py", "import nsn_edge.runtimes.session", "the torch core knows nothing"),
        ("export/lowering/static.py", "import nsn_edge.runtimes.text", "export knows nothing of the runtime"),
        ("export/tensorrt/plan.py", "import onnx", "building engines needs neither torch nor onnx"),
        (
            "export/tensorrt/plan.py",
            "from nsn_edge.export import graph",
            "building engines needs neither torch nor onnx",
        ),
        ("nsn_edge/report/build.py", "import nsn_edge.runtimes.profiling", "the report is made of contracts"),
    ],
)
def test_a_planted_import_is_caught(copy: Path, file: str, statement: str, contract: str) -> None:
    with (copy / file).open("a", encoding="utf-8") as stream:
        stream.write(f"\n\ndef _planted() -> None:\n    {statement}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [line for line in done.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken), done.stdout


def test_the_links_are_links() -> None:
    for room in ("export", "runtimes"):
        link = ROOT / "nsn_edge" / room
        assert link.is_symlink(), f"{link} was turned into a copy: check core.symlinks in git"
        assert link.readlink() == Path("..") / room
