"""`nsn-edge simulate`: output for people and programs, exit codes, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main


@pytest.fixture
def bundle(text_bundle: tuple[Path, Any]) -> str:
    return str(text_bundle[0])


def test_json_is_one_document_and_the_bundle_answered_every_query(
    bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(main, ["simulate", bundle, "--json", "--queries", "2"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["kind"], data["schema_version"]) == ("simulation", 1)
    assert data["trace"]["name"] == "field_shift.csv"
    assert data["policy"]["name"] == "default"
    assert data["summary"]["queries"] == 2 * data["trace"]["rows"]
    assert data["summary"]["failed_queries"] == 0
    assert data["summary"]["switches"] == len(data["switches"]) > 0
    assert all(moment["latency_ms"] > 0 for moment in data["timeline"])


def test_people_get_the_rungs_the_switches_and_the_reasons(
    bundle: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run_main(main, ["simulate", bundle, "--queries", "1"]) == 0
    out = capsys.readouterr().out
    for words in (
        "Time at each rung",
        "16 (dense)",
        "Switches",
        "battery 20 % is at or below 20 %: at most 35 % of FLOPs",
        "switches, 0.",
        " per minute",
        "241 queries, 0 failed",
    ):
        assert words in out


def test_without_queries_no_engine_is_needed(
    bundle: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert run_main(main, ["simulate", bundle, "--no-queries", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["summary"]["queries"] == 0
    assert {moment["latency_ms"] for moment in data["timeline"]} == {None}


def test_own_trace_and_policy(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, policy = tmp_path / "walk.csv", tmp_path / "hard.toml"
    trace.write_text("time_s,battery_pct,on_mains,temperature_c\n0,80,0,\n60,40,0,\n120,40,0,\n")
    policy.write_text(
        "schema_version = 1\nunknown_max_flops = 0.5\nmin_dwell_s = 5\n"
        "[[battery]]\nenter_pct = 50\nleave_pct = 60\nmax_flops = 0.5\n"
    )
    arguments = ["simulate", bundle, "--trace", str(trace), "--policy", str(policy), "--no-queries", "--json"]
    assert run_main(main, arguments) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["policy"]["name"] == "hard"
    assert [(switch["time_s"], switch["reason"]) for switch in data["switches"]] == [
        (60.0, "battery 40 % is at or below 50 %: at most 50 % of FLOPs")
    ]


def fails(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    assert run_main(main, ["simulate", *arguments]) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("nsn-edge: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    for word in words:
        assert word in lines[0]


def test_bad_input_is_one_line_and_exit_code_2(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, policy = tmp_path / "t.csv", tmp_path / "p.toml"
    trace.write_text("time_s,battery_pct\n0,80\n")
    policy.write_text("schema_version = 1\nunknown_max_flop = 1\n")
    fails([bundle, "--trace", str(trace)], 2, capsys, "t.csv, line 1", "on_mains, temperature_c")
    fails([bundle, "--policy", str(policy)], 2, capsys, "p.toml, line 2", "did you mean unknown_max_flops?")
    fails([bundle, "--trace", str(tmp_path / "absent.csv")], 2, capsys, "absent.csv")
    fails([str(tmp_path / "absent")], 2, capsys, "no bundle at")
    fails([bundle, "--queries", "0"], 2, capsys, "--queries")


def test_a_damaged_rung_fails_after_the_result_with_exit_code_1(
    text_bundle: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_bundle import sign

    path, _ = text_bundle
    (path / "rank-002.onnx").write_bytes(b"cut")
    fails([str(path), "--no-queries"], 1, capsys, "rank-002.onnx")
    sign(path)
    assert run_main(main, ["simulate", str(path), "--json", "--queries", "1"]) == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out)["summary"]
    assert summary["failed_queries"] == 0
    assert summary["failed_switches"] > 0
    assert "0 of 241 queries" in captured.err


def test_help_names_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["simulate", "--help"]) == 0
    assert "battery_pct" in capsys.readouterr().out
