"""`nsn-edge profile` over a grid, killed and gone on with; `profile compare` and `profile import-trtexec`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nsn_edge.bundle import Bundle
from nsn_edge.cli import main
from nsn_edge.cli.common import run_main

QUICK = ("--repetitions", "3", "--min-time", "0", "--warmup", "1", "--energy-time", "0")
GRID = ("--batch", "1,2", "--form", "static,sliced")
SUPPORT = Path(__file__).parents[1] / "support"


def profile(*arguments: object) -> int:
    return run_main(main, ["profile", *map(str, arguments)])


def test_a_grid_goes_into_the_bundle_unless_told_where(
    tiny_bundle: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_bundle[0]
    assert profile(path, *GRID, *QUICK) == 0
    out = capsys.readouterr().out
    for name in ("static, batch 1, sequence 128", "sliced, batch 2, sequence 128"):
        assert name in out
    (file,) = (path / "profiles").iterdir()
    document = json.loads(file.read_text())
    assert file.stem == document["device"]
    assert f"written to {file}" in out
    assert [c["settings"]["batch_size"] for c in document["configurations"]] == [1, 2, 1, 2]
    Bundle.open(path)  # is what it was
    assert profile(path, "--form", "all", *QUICK, "--json", "-o", tmp_path / "p.json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["settings"]["form"] for c in found["configurations"]] == ["static", "sliced", "masked"]


def test_killed_it_goes_on_where_it_was(
    tiny_bundle: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = tiny_bundle[0], tmp_path / "profile.json"
    line = [str(path), *GRID, *QUICK, "-o", str(file)]
    killed = subprocess.run(
        [sys.executable, str(SUPPORT / "killed_profile.py"), "2", *line], check=False, capture_output=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL
    assert not file.exists()
    partial = tmp_path / "profile.json.partial"
    kept = json.loads(partial.read_text())
    assert (len(kept["configurations"]), kept["complete"]) == (2, False)
    assert profile(*line, "--threads", "2") == 2
    assert "differs in device or engine" in capsys.readouterr().err
    assert profile(*line, "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["configurations"][:2] == kept["configurations"]
    assert (len(document["configurations"]), document["complete"]) == (4, True)
    assert "1/4 " not in captured.err
    assert "3/4 sliced, batch 1" in captured.err
    assert json.loads(file.read_text()) == document
    assert not partial.exists()


def test_ctrl_c_says_what_is_kept_and_restart_forgets_it(
    tiny_bundle: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nsn_edge.runtimes.profiling import device_profiler

    file, real = tmp_path / "profile.json", device_profiler.profile_bundle
    calls: list[Any] = []

    def interrupted(bundle: Any, engine: Any, cell: Any, **others: Any) -> Any:
        calls.append(cell)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(bundle, engine, cell, **others)

    monkeypatch.setattr(device_profiler, "profile_bundle", interrupted)
    line = (tiny_bundle[0], *GRID, *QUICK, "-o", file)
    assert profile(*line) == 130
    assert f"kept in {file}.partial: the same command goes on from there" in capsys.readouterr().err
    assert profile(*line, "--restart") == 0
    assert len(calls) == 2 + 4


def test_a_bundle_that_cannot_be_written_is_profiled_all_the_same(
    tiny_bundle: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    assert profile(tiny_bundle[0], *QUICK) == 0
    captured = capsys.readouterr()
    assert "the profile is not kept" in captured.err
    assert "written to" not in captured.out
    assert not (tiny_bundle[0] / "profiles").exists()
    assert profile(tiny_bundle[0], *QUICK, "-o", "elsewhere.json") == 1
    assert "no permission" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--batch", "1,x"), "'1,x' is not a whole number"),
        (("--batch", ""), "is not a whole number"),
        (("--batch", "1,0"), "'batch_size' cannot be 0"),
        (("--form", "static,folded"), "'folded' is not one of static"),
        (("--energy-time", "-1"), "cannot measure energy"),
        (("--settle", "nan"), "settle for nan"),
    ],
)
def test_usage_errors_of_a_grid(
    tiny_bundle: tuple[Path, Any], arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(tiny_bundle[0], *arguments) == 2
    assert says in capsys.readouterr().err


def test_help_tells_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile("--help") == 0
    assert "profile compare A B" in capsys.readouterr().out
    for verb, says in (("compare", "Compare profile B with profile A"), ("import-trtexec", "times that trtexec took")):
        assert profile(verb, "--help") == 0
        out = capsys.readouterr().out
        assert f"nsn-edge profile {verb}" in out
        assert says in out


def test_compare(tiny_bundle: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert profile(tiny_bundle[0], *QUICK, "-o", a) == 0
    data = json.loads(a.read_text())
    for rung in data["configurations"][0]["rungs"]:
        rung["p50_ms"], rung["p90_ms"], rung["turns_ms"] = 0.5, 0.5, []
    a.write_text(json.dumps(data))
    for rung in data["configurations"][0]["rungs"][:1]:
        rung["p50_ms"] = rung["p90_ms"] = 0.4
    b.write_text(json.dumps(data))
    capsys.readouterr()
    assert profile("compare", a, b, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [rung["verdict"] for rung in document["rungs"]] == ["faster", *["within noise"] * 3]
    assert profile("compare", b, a) == 0
    out = capsys.readouterr().out
    assert "slower" in out
    assert "1.250" in out
    data["bundle"]["model"] = "large"
    b.write_text(json.dumps(data))
    assert profile("compare", a, b) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert profile("compare", a, tmp_path / "none.json") == 2
    assert "no profile at" in capsys.readouterr().err


def test_import(tiny_bundle: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times, file = tmp_path / "times.json", tmp_path / "profile.json"
    times.write_text(json.dumps([{"latencyMs": 2.0 + n / 100, "computeMs": 1.9} for n in range(120)]))
    line = ("import-trtexec", f"2={times}", "--bundle", tiny_bundle[0], "-o", file)
    assert profile(*line, "--batch", "8") == 0
    assert f"written to {file}" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["configurations"][0]["settings"]["batch_size"] == 8
    assert document["host"] == {}
    assert profile(*line, "--here", "--json") == 0
    assert json.loads(capsys.readouterr().out)["host"]["python"]
    for bad, says in (("times.json", "RANK=FILE"), ("x=times.json", "RANK=FILE"), ("3=" + str(times), "rank 3")):
        assert profile("import-trtexec", bad, "--bundle", tiny_bundle[0], "-o", file) == 2
        assert says in capsys.readouterr().err
    assert profile(*line[:2], line[1], *line[2:]) == 2
    assert "named twice" in capsys.readouterr().err
