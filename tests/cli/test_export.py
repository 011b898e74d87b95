"""`nsn-edge export`: what it writes and prints, and what stays when it fails or is interrupted."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from command_line import Run, run_process
from tiny_encoder import HIDDEN

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.manifest import GRAPH_FORMS


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_json_for_programs(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bundle"
    data = run("export", checkpoint, "-o", path, "--json").document
    assert (data["schema_version"], data["kind"], data["path"]) == (1, "export", str(path))
    assert data["size_bytes"] == sum(file.stat().st_size for file in path.iterdir())
    assert {*data["files"], "manifest.json"} == {file.name for file in path.iterdir()}
    opened = Bundle.open(path)
    assert [rung["rank"] for rung in data["rungs"]] == list(opened.manifest.ladder.ranks)
    assert [rung["dense"] for rung in data["rungs"]] == [False] * (len(data["rungs"]) - 1) + [True]
    ladder = opened.manifest.ladder
    assert ladder.ranks == (*sorted({ladder.rank_for_fraction(part) for part in (0.75, 0.5, 0.35, 0.25)}), HIDDEN)
    assert {artifact.form for artifact in opened.manifest.artifacts} == {None, *GRAPH_FORMS}
    assert list(path.parent.iterdir()) == [path]


def test_a_table_for_people(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    done = run("export", checkpoint, "-o", path, "--rank", 3, "--rank", 64, "--form", "static", "--no-dense")
    assert done.code == 0
    assert "64 │" in done.out
    assert "dense" not in done.out
    assert f"next: nsn-edge verify {path} {checkpoint}" in done.out.replace("\n", " ").replace("  ", " ")
    assert done.complaints == []
    assert Bundle.open(path).manifest.ladder.ranks == (3, 64)


def test_a_bundle_is_replaced_and_nothing_of_the_old_one_stays(run: Run, checkpoint: Path, bundle_copy: Path) -> None:
    (bundle_copy / "leftover").write_text("of the old one")
    assert run("export", checkpoint, "-o", bundle_copy, "--rank", 5, "--form", "static").code == 0
    assert Bundle.open(bundle_copy).manifest.ladder.ranks == (5, 64)
    assert not (bundle_copy / "leftover").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rank", 0), "rank 0 is outside 1..64. choose a rank from 1 to 64"),
        (("--rank", 65), "rank 65 is outside 1..64"),
        (("--rank", "x"), "'x' is not a valid integer"),
        (("--flops", 0), "a FLOPs fraction lies in (0, 1], not 0.0"),
        (("--flops", 1.01), "not 1.01"),
        (("--flops", "nan"), "not nan"),
        (("--flops", 0.001), "0.10% of the dense FLOPs is below rank 1"),
        (("--form", "cubic"), "'cubic' is not one of 'static'"),
    ],
)
def test_usage_errors_leave_the_old_bundle(
    run: Run, checkpoint: Path, bundle_copy: Path, arguments: tuple[object, ...], says: str
) -> None:
    before = contents(bundle_copy)
    failed = run("export", checkpoint, "-o", bundle_copy, *arguments)
    assert failed.code == 2
    assert says in failed.message
    assert failed.out == ""
    assert contents(bundle_copy) == before
    assert [path.name for path in bundle_copy.parent.iterdir()] == ["bundle"]


def interrupted(line: list[str], marker: str, after: Callable[[], None]) -> tuple[int, str, str]:
    """Run a command, interrupt it at the first line of progress that begins with the marker."""
    # Whoever runs the tests in the background of a shell ignores Ctrl-C, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert process.stderr is not None
    guard = threading.Timer(120, process.kill)
    guard.start()
    try:
        seen = ""
        for text in process.stderr:
            seen += text
            if text.startswith(marker):
                after()
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate()
        return process.returncode, out, seen + err
    finally:
        guard.cancel()


@pytest.mark.parametrize("marker", ["trace: 0", "export: 0"])
def test_an_interrupt_leaves_the_old_bundle_and_nothing_half_written(
    checkpoint: Path, bundle_copy: Path, marker: str
) -> None:
    before = contents(bundle_copy)
    half_written: list[str] = []

    def look() -> None:
        half_written.extend(path.name for path in bundle_copy.parent.iterdir() if path != bundle_copy)

    line = [sys.executable, "-m", "nsn_edge", "export", str(checkpoint), "-o", str(bundle_copy)]
    code, out, err = interrupted(line, marker, look)
    assert code == 130, err
    assert out == ""
    assert "nsn-edge: interrupted" in err
    assert "Traceback" not in err
    assert half_written, "it had begun to write"
    assert contents(bundle_copy) == before
    assert [path.name for path in bundle_copy.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(("kilobytes", "names"), [(8, "traced.onnx"), (300, "bundle")])
def test_files_that_may_not_grow_leave_the_old_bundle(
    checkpoint: Path, bundle_copy: Path, kilobytes: int, names: str
) -> None:
    """A real refusal of the operating system, in tracing and in writing the weights."""
    before = contents(bundle_copy)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1000, kilobytes * 1000))

    failed = run_process("export", checkpoint, "-o", bundle_copy, preexec_fn=limit)
    assert failed.code == 1
    assert f"{names} is larger than a file may be there; nothing was kept" in failed.message
    assert contents(bundle_copy) == before
    assert [path.name for path in bundle_copy.parent.iterdir()] == ["bundle"]


def test_the_document_is_written_to_a_file_too(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    done = run("export", checkpoint, "-o", tmp_path / "b", "--form", "static", "--json-file", tmp_path / "r.json")
    assert done.code == 0
    assert json.loads((tmp_path / "r.json").read_text())["kind"] == "export"
    assert "rank" in done.out
