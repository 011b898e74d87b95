"""Bad input, verb by verb: one line that names the thing and the fix, the right exit code, nothing written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from command_line import Run
from sensor_tree import write_supply
from tiny_bundle import sign

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main
from nsn_edge.runtimes.telemetry import device_telemetry

FAILURE, USAGE = 1, 2


@dataclass(frozen=True)
class Place:
    """A user's folder, to damage."""

    root: Path
    model: Path
    checkpoint: Path
    bundle: Path

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


@pytest.fixture
def place(tmp_path: Path, encoder: Path, checkpoint: Path, bundle: Path) -> Place:
    """Copies of the session's folders, under the same names each time."""
    root = tmp_path / "home"
    for source, name in ((encoder, "model"), (checkpoint, "checkpoint"), (bundle, "bundle")):
        shutil.copytree(source, root / name)
    return Place(root, root / "model", root / "checkpoint", root / "bundle")


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder below, with its content."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def cut(file: Path, size: int = 100) -> None:
    file.write_bytes(file.read_bytes()[:size])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


@dataclass(frozen=True)
class Case:
    """A mistake and what it gets."""

    name: str
    line: tuple[str, ...]
    """What is typed, in the user's folder."""
    code: int
    says: tuple[str, ...]
    """The thing and the fix."""
    damage: Callable[[Place], object] = field(default=lambda place: None)

    def __str__(self) -> str:
        return self.name


EXPORT = ("export", "checkpoint", "-o", "bundle")
ADAPT = ("adapt", "model", "-o", "checkpoint")
QUERY = ("--query", "how is a file closed")
VERIFY = ("verify", "bundle", "checkpoint")
MANIFEST, NSN = "bundle/manifest.json", "checkpoint/nsn.json"
POLICY_HEAD = "schema_version = 1\nunknown_max_flops = 0.25\nmin_dwell_s = 20\n"
TRACE_HEAD = "time_s,battery_pct,on_mains,temperature_c\n"


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Place], object]:
    return lambda place: edit(place.root / MANIFEST, change)


def nsn(change: Callable[[dict[str, Any]], object]) -> Callable[[Place], object]:
    return lambda place: edit(place.root / NSN, change)


def write(name: str, content: str | bytes) -> Callable[[Place], object]:
    return lambda place: place.file(name, content)


def sealed_damage(place: Place) -> None:
    """A graph that is no graph, under a manifest that vouches for it."""
    place.file("bundle/dense.onnx", b"no graph")
    sign(place.bundle)


def without_linear_layers(place: Place) -> None:
    edit(place.model / "config.json", lambda config: config.update(num_hidden_layers=0))


BUNDLES = [
    Case("no bundle there", ("inspect", "nowhere"), USAGE, ("no bundle at nowhere", "nsn-edge export CHECKPOINT")),
    Case("a bundle that is a file", ("run", MANIFEST, *QUERY), USAGE, (MANIFEST, "is a file", "name the folder")),
    Case("an empty folder", ("profile", "empty"), FAILURE, ("empty is not a bundle: it has no manifest.json",),
         lambda place: (place.root / "empty").mkdir()),
    Case("a checkpoint for a bundle", ("simulate", "checkpoint"), USAGE,
         ("checkpoint is a checkpoint, not a bundle", "nsn-edge export checkpoint -o BUNDLE")),
    Case("bundle and checkpoint swapped", ("verify", "checkpoint", "bundle"), USAGE, ("checkpoint is a checkpoint",)),
    Case("a missing file", ("run", "bundle", *QUERY), FAILURE, ("weights.bin is missing from bundle", "export the"),
         lambda place: (place.bundle / "weights.bin").unlink()),
    Case("a truncated file", ("profile", "bundle"), FAILURE, ("weights.bin in bundle has 1000 bytes", "it was cut"),
         lambda place: cut(place.bundle / "weights.bin", 1000)),
    Case("a wrong hash", ("simulate", "bundle"), FAILURE, ("dense.onnx in bundle", "SHA-256", "copy the bundle again"),
         lambda place: flip(place.bundle / "dense.onnx")),
    Case("a wrong hash in a model's configuration", VERIFY, FAILURE, ("config.json in bundle", "SHA-256"),
         lambda place: flip(place.bundle / "config.json")),
    Case("an unknown schema version", ("inspect", "bundle"), FAILURE,
         (f"{MANIFEST}: the bundle has schema version 99; this nsn-edge reads version 1", "export the bundle again"),
         manifest(lambda data: data.update(schema_version=99))),
    Case("a truncated manifest", ("inspect", "bundle"), FAILURE, (f"{MANIFEST} is not readable JSON", "export the"),
         lambda place: cut(place.root / MANIFEST)),
    Case("a manifest of something else", ("run", "bundle", *QUERY), FAILURE, (f"{MANIFEST}: ", "not a JSON object"),
         write(MANIFEST, "[]")),
    Case("a manifest without a key", ("inspect", "bundle"), FAILURE, (f"{MANIFEST}: the manifest lacks 'ladder'",),
         manifest(lambda data: data.pop("ladder"))),
    Case("a path that leads out", ("inspect", "bundle"), FAILURE, ("outside the bundle: '../../x'", "do not use"),
         manifest(lambda data: data["artifacts"][0].update(path="../../x"))),
    Case("a rung above R", ("inspect", "bundle"), FAILURE, ("ladder: rank 999 is outside 1..64",),
         manifest(lambda data: data["ladder"]["rungs"][-1].update(rank=999))),
    Case("a bundle without graphs", ("run", "bundle", *QUERY), USAGE, ("it holds no graphs; export it with --form",),
         manifest(lambda data: data.update(artifacts=[], bound_tensors=[]))),
    Case("a graph that is none", ("run", "bundle", *QUERY), FAILURE, ("onnxruntime cannot load dense.onnx",),
         sealed_damage),
    Case("the same in a profile", ("profile", "bundle"), FAILURE, ("onnxruntime cannot load dense.onnx",),
         sealed_damage),
    Case("the same in a verification", VERIFY, FAILURE, ("onnxruntime cannot load dense.onnx",), sealed_damage),
    Case("a tokenizer that is none", ("run", "bundle", *QUERY), FAILURE, ("tokenizer.json in bundle is not readable",),
         lambda place: (place.file("bundle/tokenizer.json", "{"), sign(place.bundle))),
]  # fmt: skip

CHECKPOINTS = [
    Case("no checkpoint there", ("export", "nowhere", "-o", "bundle"), USAGE,
         ("no checkpoint at nowhere", "nsn-edge adapt MODEL")),
    Case("a checkpoint that is a file", ("export", NSN, "-o", "bundle"), USAGE, (f"{NSN} is a file",)),
    Case("a bundle for a checkpoint", ("export", "bundle", "-o", "other"), USAGE,
         ("bundle is a bundle, not a checkpoint", "name the checkpoint")),
    Case("a model for a checkpoint", ("export", "model", "-o", "bundle"), FAILURE,
         ("model is not a checkpoint: it has no nsn.json", "nsn-edge adapt MODEL")),
    Case("missing weights", EXPORT, FAILURE, ("model.safetensors is missing", "adapt the model again"),
         lambda place: (place.checkpoint / "model.safetensors").unlink()),
    Case("truncated weights", EXPORT, FAILURE, ("model.safetensors is damaged", "adapt the model again"),
         lambda place: cut(place.checkpoint / "model.safetensors", 5000)),
    Case("truncated weights in a verification", VERIFY, FAILURE, ("model.safetensors is damaged",),
         lambda place: cut(place.checkpoint / "model.safetensors", 5000)),
    Case("an unknown schema version of a checkpoint", EXPORT, FAILURE,
         ("checkpoint has schema version 99; this nsn-edge reads version 1", "adapt the model again"),
         nsn(lambda data: data.update(schema_version=99))),
    Case("a truncated nsn.json", EXPORT, FAILURE, (f"{NSN} is not readable JSON", "adapt the model again"),
         lambda place: cut(place.root / NSN)),
    Case("a checkpoint of an unknown class", EXPORT, FAILURE, ("'Nope', which is no model of transformers",),
         nsn(lambda data: data.update(architecture="Nope"))),
    Case("a configuration of another size", EXPORT, FAILURE, ("checkpoint", "adapt the model again"),
         lambda place: edit(place.checkpoint / "config.json", lambda data: data.update(intermediate_size=32))),
    Case("a missing configuration", ("inspect", "checkpoint"), FAILURE, ("config.json is missing from checkpoint",),
         lambda place: (place.checkpoint / "config.json").unlink()),
]  # fmt: skip

MODELS = [
    Case("no such folder", ("adapt", "./nowhere", "-o", "checkpoint"), USAGE, ("no folder ./nowhere", "a hub id")),
    Case("a folder without a model", ("adapt", "empty", "-o", "checkpoint"), FAILURE,
         ("empty holds no config.json", "save_pretrained"), lambda place: (place.root / "empty").mkdir()),
    Case("a configuration that is none", ADAPT, FAILURE, ("cannot load model", "not a valid JSON file"),
         write("model/config.json", "{")),
    Case("an unknown architecture", ADAPT, FAILURE, ("cannot load model", "from-the-future"),
         lambda place: edit(place.model / "config.json", lambda data: data.update(model_type="from-the-future"))),
    Case("weights that are cut", ADAPT, FAILURE, ("cannot load model",),
         lambda place: cut(place.model / "model.safetensors", 5000)),
    Case("no weights", ADAPT, FAILURE, ("model has no safetensors weights", "save_pretrained"),
         lambda place: (place.model / "model.safetensors").unlink()),
    Case("a model without linear layers", ADAPT, USAGE,
         ("BertModel has no linear layers to cut", "heads are left"), without_linear_layers),
    Case("a head that was never trained", (*ADAPT, "--task", "text-classification"), USAGE,
         ("model was not trained for text-classification: it has no classifier.bias", "--task")),
    Case("a checkpoint for a model", ("adapt", "checkpoint", "-o", "other"), USAGE,
         ("checkpoint is a nested checkpoint already", "nsn-edge export checkpoint")),
    Case("a bundle for a model", ("adapt", "bundle", "-o", "other"), USAGE, ("bundle is an exported bundle",)),
    Case("an unsupported module", ADAPT, USAGE, ("ends in a Dense module", "it knows Normalize, Pooling, Transformer"),
         write("model/modules.json", '[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')),
    Case("no text", (*ADAPT, "--text", "nowhere.txt"), USAGE, ("cannot read nowhere.txt", "No such file")),
    Case("empty text", (*ADAPT, "--text", "t.txt"), USAGE, ("t.txt holds no text", "one sentence per line"),
         write("t.txt", " \n\n")),
    Case("binary text", (*ADAPT, "--text", "t.txt"), USAGE, ("t.txt is not UTF-8 text",), write("t.txt", b"\xff\xfe")),
    Case("no sentence", (*ADAPT, "--calibration-sentences", "0"), USAGE, ("0 is not in the range x>=1",)),
]  # fmt: skip

OUTPUTS = [
    Case("onto a file", ("export", "checkpoint", "-o", "mine"), USAGE, ("mine exists and is not a folder",),
         write("mine", "dear")),
    Case("into a file", ("adapt", "model", "-o", "mine/deep"), USAGE, ("mine is a file", "another output folder"),
         write("mine", "dear")),
    Case("over one's own files", ("export", "checkpoint", "-o", "."), USAGE,
         ("did not write", "name an empty or a new folder")),
    Case("over a checkpoint", ("export", "checkpoint", "-o", "checkpoint"), USAGE, ("did not write",)),
    Case("over a bundle", ("adapt", "model", "-o", "bundle"), USAGE, ("did not write",)),
    Case("no rung", (*EXPORT, "--rank", "0"), USAGE, ("rank 0 is outside 1..64", "choose a rank from 1 to 64")),
    Case("a rung above", (*EXPORT, "--rank", "65"), USAGE, ("rank 65 is outside 1..64",)),
    Case("more than all FLOPs", (*EXPORT, "--flops", "1.5"), USAGE, ("a FLOPs fraction lies in (0, 1], not 1.5",)),
]  # fmt: skip

REQUESTS = [
    Case("rank 0", ("run", "bundle", *QUERY, "--rank", "0"), USAGE, ("rank 0 is outside 1..64", "choose a rank")),
    Case("rank above R", ("run", "bundle", *QUERY, "--rank", "65"), USAGE, ("rank 65 is outside 1..64",)),
    Case("a rank between rungs", ("run", "bundle", *QUERY, "--rank", "9"), USAGE,
         ("no rung at rank 9", "the rungs are 8, 16, 24, 64")),
    Case("rank 0 of a form for any rank", ("run", "bundle", *QUERY, "--form", "sliced", "--rank", "0"), USAGE,
         ("rank 0 is outside 1..64",)),
    Case("a rank above R to profile", ("profile", "bundle", "--rank", "65"), USAGE, ("rank 65 is outside 1..64",)),
    *(Case(f"a share of {value}", ("run", "bundle", *QUERY, "--flops", value), USAGE,
           (f"--flops is a fraction above 0 and up to 1, not {float(value)}",))
      for value in ("0", "-1", "1.01", "nan", "inf")),
    Case("negative threads", ("run", "bundle", *QUERY, "--threads", "-1"), USAGE, ("-1 is not in the range x>=0",)),
    Case("negative threads to profile", ("profile", "bundle", "--threads", "-1"), USAGE, ("threads", "not -1")),
    *(Case(f"a budget of {value}", ("run", "bundle", *QUERY, "--memory-budget-mb", value), USAGE,
           ("a memory budget is a positive number of megabytes", value))
      for value in ("0", "-1", "nan", "inf")),
    Case("time without an end", ("profile", "bundle", "--min-time", "inf", "--max-time", "inf"), USAGE, ("inf",)),
    Case("time that is none", ("profile", "bundle", "--min-time", "nan"), USAGE, ("cannot measure for at least nan",)),
    Case("an unknown dimension", ("profile", "bundle", "--dim", "height=3"), USAGE,
         ("no dimension 'height'", "it has batch_size, sequence_length")),
    Case("a tolerance that is none", (*VERIFY, "--tolerance", "nan"), USAGE, ("a tolerance is a number above 0",)),
    Case("a negative tolerance", (*VERIFY, "--tolerance", "-1"), USAGE, ("a tolerance is a number above 0",)),
    Case("an empty query", ("run", "bundle", "--query", " "), USAGE, ("the query is empty",)),
    Case("texts that are absent", ("run", "bundle", *QUERY, "--texts", "nowhere.txt"), USAGE, ("nowhere.txt",)),
    Case("texts to verify that are binary", (*VERIFY, "--text", "t.txt"), USAGE, ("t.txt is not UTF-8 text",),
         write("t.txt", b"\xff\xfe")),
]  # fmt: skip

ARRAYS = [
    case
    for verb in (("run", "bundle"), VERIFY)
    for case in (
        Case(f"{verb[0]}: no arrays", (*verb, "--inputs", "a.npz"), USAGE, ("cannot read a.npz", "name an .npz file")),
        Case(f"{verb[0]}: a folder", (*verb, "--inputs", "."), USAGE, ("cannot read .",)),
        Case(f"{verb[0]}: garbage", (*verb, "--inputs", "a.npz"), USAGE, ("a.npz is not an .npz file", "numpy.savez"),
             write("a.npz", b"\x80\x04garbage")),
        Case(f"{verb[0]}: nothing", (*verb, "--inputs", "a.npz"), USAGE, ("a.npz is not an .npz file",),
             write("a.npz", b"")),
        Case(f"{verb[0]}: half an archive", (*verb, "--inputs", "a.npz"), USAGE, ("a.npz is a damaged .npz file",),
             lambda place: (np.savez(place.root / "a.npz", input_ids=np.ones((2, 5))), cut(place.root / "a.npz", 300))),
        Case(f"{verb[0]}: pickled objects", (*verb, "--inputs", "a.npz"), USAGE, ("a.npz", "never unpickled"),
             lambda place: np.savez(place.root / "a.npz", input_ids=np.array([{}], dtype=object))),
        Case(f"{verb[0]}: other names", (*verb, "--inputs", "a.npz"), USAGE if verb is VERIFY else FAILURE,
             ("lacks the", "'input_ids'" if verb is not VERIFY else "'attention_mask'", "takes input_ids"),
             lambda place: np.savez(place.root / "a.npz", pixels=np.ones((2, 5)))),
    )
]  # fmt: skip

POLICIES = [
    Case(name, ("simulate", "bundle", "--no-queries", "--policy", "p.toml"), USAGE, ("p.toml", *says),
         write("p.toml", content))
    for name, content, says in [
        ("an unknown key", POLICY_HEAD + "speed = 3\n", ("line 4: unknown key 'speed'", "the keys are")),
        ("a misspelt key", "schema_version = 1\nunknown_max_flop = 0.5\n", ("did you mean unknown_max_flops?",)),
        ("crossing battery thresholds", POLICY_HEAD + "[[battery]]\nenter_pct = 50\nleave_pct = 40\nmax_flops = 0.5\n",
         ("the thresholds cross: leave_pct 40 is not above enter_pct 50",)),
        ("crossing temperatures", POLICY_HEAD + "[[temperature]]\nenter_c = 60\nleave_c = 70\nmax_flops = 0.5\n",
         ("the thresholds cross: leave_c 70 is not below enter_c 60",)),
        ("an unknown version of a policy", "schema_version = 3\n", ("unknown schema_version 3", "schema_version = ")),
        ("an empty policy", "", ("schema_version is missing",)),
        ("no TOML", "x = = 3", ("is not TOML", "line 1")),
        ("a binary policy", b"\xff\xfe", ("is not TOML",)),
        ("a share that is none", "schema_version = 1\nunknown_max_flops = nan\nmin_dwell_s = 1\n", ("is nan, not a",)),
    ]
]  # fmt: skip

TRACES = [
    Case(name, ("simulate", "bundle", "--no-queries", "--trace", "t.csv"), USAGE, ("t.csv", *says),
         write("t.csv", content))
    for name, content, says in [
        ("missing columns", "time_s,battery_pct\n0,1\n", ("lacks the columns on_mains, temperature_c",)),
        ("an empty trace", "", ("is empty", "time_s,battery_pct,on_mains,temperature_c")),
        ("a header alone", TRACE_HEAD, ("has a header and no rows",)),
        ("a row that was cut", TRACE_HEAD + "0,80,1,40\n5,80\n", ("line 3: 2 cells under a header of 4",)),
        ("no number", TRACE_HEAD + "0,full,1,40\n", ("line 2: battery_pct is 'full', not a number",)),
        ("time runs backwards", TRACE_HEAD + "5,80,1,40\n0,80,1,40\n", ("line 3: time_s runs backwards", "sort")),
        ("a binary trace", b"\xff\xfe", ("is not a CSV text file",)),
    ]
]  # fmt: skip

CASES = [*BUNDLES, *CHECKPOINTS, *MODELS, *OUTPUTS, *REQUESTS, *ARRAYS, *POLICIES, *TRACES]


def test_every_case_has_its_own_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input(run: Run, place: Place, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    case.damage(place)
    before = snapshot(place.root)
    failed = run(*case.line)
    assert failed.code == case.code, failed
    for words in case.says:
        assert words in failed.message
    assert failed.out == ""
    assert snapshot(place.root) == before, "nothing was written and nothing was lost"


@pytest.mark.parametrize("case", [BUNDLES[0], CHECKPOINTS[5], POLICIES[0]], ids=str)
def test_with_debug_there_is_a_traceback(place: Place, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    case.damage(place)
    with pytest.raises(Exception, match=r".") as caught:
        run_main(main, [*case.line, "--debug"])
    assert caught.value.exit_code == case.code
    assert len(caught.traceback) > 3


def test_an_unknown_hub_id_without_a_network(run: Run, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)
    before = snapshot(place.root)
    failed = run("adapt", "nobody/no-such-model-here", "-o", place.checkpoint)
    assert failed.code == FAILURE
    assert "cannot load nobody/no-such-model-here: " in failed.message
    assert "check the name and the network, or name a local folder" in failed.message
    assert snapshot(place.root) == before


def disk_is_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        (EXPORT, (onnx_ir, "save")),
        (EXPORT, (os, "fsync")),
        (ADAPT, (os, "fsync")),
        (("inspect", "bundle", "--json-file", "old.json"), (os, "fsync")),
        (("profile", "bundle", "--repetitions", "2", "--min-time", "0", "-o", "old.json"), (os, "fsync")),
        (VERIFY, (os, "fsync")),
    ],
    ids=["export a graph", "export at the end", "adapt", "inspect --json-file", "profile -o", "verify's quality"],
)
def test_a_full_disk(
    run: Run, place: Place, line: tuple[str, ...], broken: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.root)
    place.file("old.json", "{}")
    before = snapshot(place.root)
    monkeypatch.setattr(*broken, disk_is_full)
    failed = run(*line)
    assert failed.code == FAILURE
    assert "no space left on the disk while writing" in failed.message
    assert "MB are free there: make room or write elsewhere" in failed.message
    assert snapshot(place.root) == before


def test_a_full_disk_reported_by_safetensors(run: Run, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has an error of its own for that, with the number in the text."""
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    before = snapshot(place.root)
    failed = run("adapt", place.model, "-o", place.checkpoint)
    assert failed.code == FAILURE
    assert f"no space left on the disk while writing {place.checkpoint}" in failed.message
    assert snapshot(place.root) == before


def test_a_sensor_that_vanishes(run: Run, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The battery is there when the policy chooses, and gone before the first query: every query is answered."""
    device = tmp_path / "device"
    write_supply(device, "BAT0", {"type": "Battery", "status": "Discharging", "capacity": 80, "present": 1})
    monkeypatch.setattr("nsn_edge.runtimes.telemetry.device_telemetry", lambda: device_telemetry(device))
    policy = place.file("p.toml", POLICY_HEAD + "[[battery]]\nenter_pct = 90\nleave_pct = 95\nmax_flops = 0.5\n")
    queries = ["the file is closed\n", "an error\n", ""]

    class Vanishing:
        def isatty(self) -> bool:
            return False

        def readline(self) -> str:
            shutil.rmtree(device, ignore_errors=True)
            return queries.pop(0)

    monkeypatch.setattr("sys.stdin", Vanishing())
    done = run("run", place.bundle, "--policy", policy, "--json")
    assert done.code == 0
    assert not device.exists()
    assert "rank 16: battery 80 % is at or below 90 %: at most 50 % of FLOPs" in done.complaints
    assert [json.loads(line)["query"] for line in done.out.splitlines()] == ["the file is closed", "an error"]
