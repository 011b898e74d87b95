"""`nsn-edge demo`: every verb in turn on a tiny encoder, and a report that says what they measured."""

from __future__ import annotations

import html
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, Run, run_process

from nsn_edge.bundle import Bundle
from nsn_edge.demo import QUERY, Step, run_demo, run_step
from nsn_edge.errors import NsnEdgeError

RESULTS = {
    "adapt.json": "adaptation",
    "export.json": "export",
    "verify.json": "verification",
    "profile.json": "profile",
    "answer-top.json": "search",
    "answer-lowest.json": "search",
    "simulation.json": "simulation",
}


@dataclass(frozen=True)
class Demo:
    """A demo that ran."""

    done: Outcome
    folder: Path
    results: dict[str, Any]
    report: str

    @property
    def text(self) -> str:
        """What a reader sees, without markup, drawings' marks included."""
        body = re.sub(r"<(style|script).*?</\1>", "", self.report, flags=re.DOTALL)
        return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture(scope="module")
def demo(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = run_process("demo", "-o", folder, "--model", encoder, "--sequence", 16, "--json", timeout=300)
    assert done.code == 0, done.err[-4000:]
    results = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in RESULTS}
    return Demo(done, folder, results, (folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_step_leaves_its_result(demo: Demo) -> None:
    document = demo.done.document
    assert (document["schema_version"], document["kind"]) == (1, "demo")
    assert document["report"] == str(demo.folder / "report.html")
    assert {name: result["kind"] for name, result in demo.results.items()} == RESULTS
    assert {path.name for path in demo.folder.iterdir()} == {*RESULTS, "checkpoint", "bundle", "report.html"}
    assert demo.results["verify.json"]["passed"]
    assert demo.results["simulation.json"]["summary"]["failed_queries"] == 0
    assert len(demo.results["simulation.json"]["switches"]) > 3
    ranks = Bundle.open(demo.folder / "bundle").manifest.ladder.ranks
    assert [rung["rank"] for rung in demo.results["profile.json"]["configurations"][0]["rungs"]] == list(ranks)
    top, lowest = demo.results["answer-top.json"], demo.results["answer-lowest.json"]
    assert (top["rank"], lowest["rank"]) == (ranks[-1], ranks[0])
    assert top["query"] == lowest["query"] == QUERY


@pytest.mark.slow
def test_each_step_is_shown_as_it_is_typed(demo: Demo, encoder: Path) -> None:
    typed = [shlex.split(line[2:]) for line in demo.done.err.splitlines() if line.startswith("$ nsn-edge ")]
    assert [line[1] for line in typed] == ["adapt", "export", "verify", "profile", "run", "run", "simulate"]
    assert typed[0] == ["nsn-edge", "adapt", str(encoder), "-o", str(demo.folder / "checkpoint")]
    for line in typed:
        assert shlex.join(line) in demo.text


@pytest.mark.slow
def test_the_report_says_what_was_measured(demo: Demo) -> None:
    profile, simulation = demo.results["profile.json"], demo.results["simulation.json"]
    for rung in profile["configurations"][0]["rungs"]:
        assert f"{100 * rung['flops_fraction']:.1f} %" in demo.text
        # The drawing's label; the table rounds by magnitude, which depends on the machine.
        assert f"{rung['p50_ms']:.1f} ms, p90 {rung['p90_ms']:.1f} ms, quality" in demo.text
        assert f"{rung['quality']['spearman']:.3f}" in demo.text
    for switch in simulation["switches"]:
        assert switch["reason"] in demo.text
    assert f"{simulation['summary']['queries']} queries" in demo.text
    checks = demo.results["verify.json"]["checks"]
    assert f"{len(checks)} of {len(checks)} graphs agree with torch" in demo.text
    assert QUERY in demo.text
    for name in ("answer-top.json", "answer-lowest.json"):
        for hit in demo.results[name]["results"]:
            assert " ".join(hit["title"].split()) in demo.text
    assert profile["host"]["cpu"] in demo.text


@pytest.mark.slow
def test_the_report_opens_offline(demo: Demo) -> None:
    assert demo.report.lower().startswith("<!doctype html>")
    fetched = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import\s+(\S+)""", demo.report)
    for target in (part for parts in fetched for part in parts if part):
        assert target.startswith(("#", "data:")), target


def test_a_folder_that_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("dear")
    failed = run("demo", "-o", tmp_path / "mine")
    assert failed.code == 2
    assert "mine is not a folder" in failed.message
    assert (tmp_path / "mine").read_text() == "dear"


def recording(stop_at: str, error: BaseException) -> tuple[list[str], Callable[[Step, Path], None]]:
    """A runner that writes empty results until a verb is reached."""
    verbs: list[str] = []

    def runner(step: Step, result: Path) -> None:
        verbs.append(step.verb)
        if step.verb == stop_at:
            raise error
        result.write_text("{}")

    return verbs, runner


@pytest.mark.parametrize("error", [NsnEdgeError("stopped"), KeyboardInterrupt()])
def test_a_step_that_fails_ends_the_demo(tmp_path: Path, error: BaseException) -> None:
    heard: list[str] = []
    verbs, runner = recording("verify", error)
    with pytest.raises(type(error)):
        run_demo(tmp_path / "out", "model", 16, heard.append, runner)
    assert verbs == ["adapt", "export", "verify"]
    assert len(heard) == 3
    assert not (tmp_path / "out" / "report.html").exists()


STEP = Step("look", "inspect", ("nowhere",), "result.json")


def test_a_step_that_fails_is_named_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NsnEdgeError, match="nsn-edge inspect nowhere failed with exit code 2"):
        run_step(STEP, tmp_path / "result.json")
    assert "no bundle at nowhere" in capfd.readouterr().err
    assert not (tmp_path / "result.json").exists()


def test_a_step_writes_its_document_and_prints_where_it_is_told(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    step = replace(STEP, arguments=(str(bundle),))
    run_step(step, tmp_path / "result.json", sys.stderr)
    out, err = capfd.readouterr()
    assert out == ""
    assert "weights.bin" in err
    assert json.loads((tmp_path / "result.json").read_text())["kind"] == "bundle"


def test_an_interrupted_step_interrupts_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Done:
        returncode: int

    for code in (130, -2):
        monkeypatch.setattr("subprocess.run", lambda *_, code=code, **__: Done(code))
        with pytest.raises(KeyboardInterrupt):
            run_step(STEP, tmp_path / "result.json")
