"""What every verb shares: one JSON document, exit codes, one line per error, streams kept apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from command_line import Outcome, Run, run_process

from nsn_edge._version import __version__
from nsn_edge.cli import VERBS
from nsn_edge.cli.common import INTERRUPTED, emit, progress_bar, read_texts, run_main, verb_options
from nsn_edge.errors import (
    BundleError,
    CheckpointError,
    EngineError,
    ExportError,
    MissingDependencyError,
    NsnEdgeError,
    PolicyError,
    RankError,
    TraceError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)

QUICK = ("--repetitions", 2, "--warmup", 0, "--min-time", 0)
VERB_LINES: dict[str, Callable[[Path, Path], tuple[object, ...]]] = {
    "bundle": lambda bundle, _: ("inspect", bundle),
    "checkpoint": lambda _, checkpoint: ("inspect", checkpoint),
    "doctor": lambda *_: ("doctor",),
    "profile": lambda bundle, _: ("profile", bundle, *QUICK),
    "search": lambda bundle, _: ("run", bundle, "--query", "how is a file closed"),
    "simulation": lambda bundle, _: ("simulate", bundle, "--no-queries"),
    "verification": lambda bundle, checkpoint: ("verify", bundle, checkpoint, "--no-quality"),
}
"""A line for each kind of result; `adapt`, `export` and `demo` have their own tests."""


@pytest.fixture(scope="module")
def bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of its own: a profile is kept in the bundle."""
    return Path(shutil.copytree(bundle, tmp_path_factory.mktemp("profiled") / "bundle"))


def outcome(capfd: pytest.CaptureFixture[str], command: click.Command, *arguments: str) -> Outcome:
    code = run_main(command, list(arguments))
    return Outcome(code, *capfd.readouterr())


def failing(error: BaseException) -> click.Command:
    @click.command(name="fail")
    @verb_options
    def command(as_json: bool) -> None:
        raise error

    return command


@pytest.mark.parametrize("kind", VERB_LINES)
def test_json_is_one_document_and_nothing_else(
    run: Run, bundle: Path, checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "deep" / "result.json"
    done = run(*VERB_LINES[kind](bundle, checkpoint), "--json", "--json-file", file)
    assert done.code == 0, done.err
    assert (done.document["schema_version"], done.document["kind"]) == (2 if kind == "profile" else 1, kind)
    assert json.loads(file.read_text(encoding="utf-8")) == done.document
    assert done.complaints == []
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize("columns", ["1", "30", "300"])
@pytest.mark.parametrize("kind", VERB_LINES)
def test_text_at_any_width(
    run: Run, bundle: Path, checkpoint: Path, kind: str, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = run(*VERB_LINES[kind](bundle, checkpoint))
    assert done.code == 0
    assert done.complaints == []
    assert done.out.strip()
    assert "\x1b" not in done.out, "no colours in a file"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(run: Run, verb: str) -> None:
    done = run(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: nsn-edge {verb} [OPTIONS]")
    if verb == "policy":  # a group of one
        done = run(verb, "check", "--help")
    for option in ("--json", "--json-file", "--debug"):
        assert option in done.out


def test_the_group_explains_itself(run: Run) -> None:
    assert run("--version").out == f"nsn-edge, version {__version__}\n"
    done = run("-h")
    assert done.code == 0
    for verb, purpose in VERBS.items():
        assert f"{verb} " in done.out
        assert purpose in done.out
    nothing = run()
    assert nothing.code == 2
    assert "Verbs:" in nothing.out + nothing.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fly",), "No such command 'fly'. Try: nsn-edge --help"),
        (("run",), "Missing argument 'BUNDLE'. Try: nsn-edge run --help"),
        (("inspect", "x", "y"), "Got unexpected extra argument"),
        (("inspect", "x", "--fast"), "No such option '--fast'."),
        (("simulate", "x", "--queries", "many"), "'many' is not a valid integer range"),
    ],
)
def test_a_mistyped_line_points_to_the_help(run: Run, arguments: tuple[str, ...], says: str) -> None:
    failed = run(*arguments)
    assert failed.code == 2
    assert says in failed.message
    assert failed.out == ""


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (NsnEdgeError, 1),
        (UsageError, 2),
        (RankError, 2),
        (UnsupportedModelError, 2),
        (PolicyError, 2),
        (TraceError, 2),
        (CheckpointError, 1),
        (BundleError, 1),
        (ExportError, 1),
        (VerificationError, 1),
        (EngineError, 1),
    ],
)
def test_our_errors_are_one_line_with_the_fix(
    kind: type[NsnEdgeError], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    failed = outcome(capfd, failing(kind("the thing\nis broken", "mend\n it")))
    assert (failed.code, failed.message, failed.out) == (code, "the thing is broken. mend it", "")


def test_a_missing_package_comes_with_its_pip_line(capfd: pytest.CaptureFixture[str]) -> None:
    failed = outcome(capfd, failing(MissingDependencyError("onnxruntime", "ort", "running a bundle")))
    assert failed.code == 1
    assert failed.message.endswith("which is not installed. pip install 'nsn-edge[ort]'")


def test_what_nobody_foresaw_is_one_line_too(capfd: pytest.CaptureFixture[str]) -> None:
    failed = outcome(capfd, failing(ZeroDivisionError("division\nby zero")))
    assert failed.code == 1
    assert failed.message.startswith("ZeroDivisionError: division by zero. This is not an error we foresaw")
    assert "--debug" in failed.message
    assert len(outcome(capfd, failing(ValueError("x" * 10_000))).message) < 1000


@pytest.mark.parametrize("error", [NsnEdgeError("broken"), ZeroDivisionError("broken")])
def test_debug_leaves_the_exception_to_python(error: Exception) -> None:
    with pytest.raises(type(error), match="broken"):
        run_main(failing(error), ["--debug"])


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    failed = run_process("inspect", tmp_path / "absent", "--debug")
    assert failed.code == 1
    assert "Traceback (most recent call last)" in failed.err
    assert "UsageError: no bundle at" in failed.err
    assert run_process("inspect", tmp_path / "absent").message.startswith("no bundle at")


def test_an_interrupt_has_the_shells_code(capfd: pytest.CaptureFixture[str]) -> None:
    failed = outcome(capfd, failing(KeyboardInterrupt()))
    assert (failed.code, failed.message) == (INTERRUPTED, "interrupted; nothing half-written was left behind")


def test_a_reader_that_goes_away_is_no_error(bundle: Path) -> None:
    line = [sys.executable, "-m", "nsn_edge", "inspect", str(bundle), "--layers"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stream:
        complaints = stream.read()
    process.wait(timeout=60)
    assert complaints == ""


def test_the_last_of_several_results_stays_in_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    @click.command()
    @verb_options
    def command(as_json: bool) -> None:
        for number in (1, 2):
            emit({"number": number, "text": "é"}, lambda console, n=number: console.print(f"number {n}"), as_json)

    file = tmp_path / "result.json"
    done = outcome(capfd, command, "--json-file", str(file))
    assert done.out == "number 1\nnumber 2\n"
    assert json.loads(file.read_text(encoding="utf-8")) == {"number": 2, "text": "é"}
    done = outcome(capfd, command, "--json")
    assert [json.loads(line)["number"] for line in done.out.splitlines()] == [1, 2]


def test_numbers_that_json_has_not_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    @click.command()
    @verb_options
    def command(as_json: bool) -> None:
        emit({"number": float("nan")}, lambda console: None, as_json)

    failed = outcome(capfd, command, "--json")
    assert (failed.code, failed.out) == (1, "")


def test_a_result_that_cannot_be_written(run: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place, code, says in (
        (tmp_path, 2, "is a folder. name a file"),
        (tmp_path / "file" / "r.json", 1, "cannot write"),
    ):
        failed = run("inspect", bundle, "--json-file", place)
        assert failed.code == code
        assert str(place) in failed.message
        assert says in failed.message
    assert (tmp_path / "file").read_text() == "mine"


def test_progress_in_a_log_is_a_line_when_a_stage_begins_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        for done in range(1, 101):
            progress("measure", done, 100)
        progress("load", 3, 0)
    assert capfd.readouterr() == ("", "measure: 1/100\nmeasure: 100/100\nload: 3\n")


def test_texts_are_the_lines_that_are_not_blank(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text(" one \n\n\ttwo\r\nthree", encoding="utf-8")
    assert read_texts(file) == ["one", "two", "three"]
