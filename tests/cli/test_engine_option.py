"""`run` and `profile` with `--engine`: built engines on a made-up GPU, and options that do not go together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from built_engines import build_engines, pretend_device
from tiny_bundle import TinyModel

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main

TinyBundle = tuple[Path, TinyModel]


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    return tmp_path / "in.npz"


def run(*arguments: object) -> int:
    return run_main(main, [*map(str, arguments)])


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("form", ["static", "sliced"])
def test_run_answers_with_a_built_engine(
    tiny_bundle: TinyBundle, arrays: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, form: str
) -> None:
    path, model = tiny_bundle
    device = pretend_device(monkeypatch, engine)
    build_engines(path, engine)
    outputs = tmp_path / "out.npz"
    options = ("--inputs", arrays, "--outputs", outputs, "--rank", 5, "--form", form)
    assert run("run", path, "--engine", engine, *options) == 0
    expected = model(np.load(arrays)["x"], 5)
    np.testing.assert_allclose(np.load(outputs)["y"], expected, rtol=1e-4, atol=1e-4)
    assert device.library.executions
    assert device.cuda.is_clean


def test_engines_may_be_kept_elsewhere(
    tiny_bundle: TinyBundle, arrays: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_device(monkeypatch)
    build_engines(tiny_bundle[0])
    (tiny_bundle[0] / "engines").rename(tmp_path / "cache")
    options = ("--engine", "tensorrt", "--inputs", arrays)
    assert run("run", tiny_bundle[0], *options, "--engines", tmp_path / "cache") == 0
    assert run("run", tiny_bundle[0], *options) == 1


def test_profile_measures_built_engines(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_bundle[0]
    device = pretend_device(monkeypatch)
    build_engines(path, precision="fp16")
    options = ("--repetitions", 3, "--warmup", 2, "--min-time", 0, "--engine-precision", "fp16")
    assert run("profile", path, "--engine", "tensorrt", *options, "--json") == 0
    (document,) = json.loads(capsys.readouterr().out)["configurations"]
    assert [rung["rank"] for rung in document["rungs"]] == [2, 5, 8, 16]
    settings = document["settings"]
    assert {key: settings[key] for key in ("engine", "version", "device", "engine_precision", "cuda_graphs")} == {
        "engine": "tensorrt",
        "version": "10.3.0",
        "device": "Orin",
        "engine_precision": "fp16",
        "cuda_graphs": True,
    }
    assert "cudaGraphLaunch" in device.cuda.calls
    assert device.cuda.is_clean
    assert run("profile", path, "--engine", "tensorrt", *options) == 0
    assert "tensorrt, static, batch 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "tensorrt", "--threads", 2), "--threads is an option of onnxruntime, not of tensorrt"),
        (("--engine", "tensorrt", "--provider", "cuda"), "--provider is an option of onnxruntime"),
        (("--engine", "tensorrt-rtx", "--share-weights"), "--share-weights is an option of onnxruntime"),
        (("--engine-precision", "fp16"), "--engine-precision is about engines that nsn-edge build made"),
        (("--engines", "cache"), "--engines is about engines that nsn-edge build made"),
        (("--engine", "npu"), "npu"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "profile"])
def test_options_that_do_not_go_together(
    tiny_bundle: TinyBundle, capsys: pytest.CaptureFixture[str], verb: str, options: tuple[object, ...], said: str
) -> None:
    assert run(verb, tiny_bundle[0], *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


def test_an_engine_that_was_not_built(
    tiny_bundle: TinyBundle, arrays: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_device(monkeypatch)
    assert run("run", tiny_bundle[0], "--engine", "tensorrt", "--inputs", arrays) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nsn-edge: no engine tensorrt-10.3.0-orin-sm87/rank-016-fp32 in ")
    assert line.endswith("build it: nsn-edge build BUNDLE --backend tensorrt")
