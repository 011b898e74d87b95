"""TensorRT engines where something is not there: the library, CUDA, a driver, a GPU, a profile for a shape."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_engines import ORIN, Device, build_engines, pretend_device
from fake_cuda import cudaError_t
from tensorrt_cases import TinyBundle, batch, load_fails

from nsn_edge.errors import EngineError, MissingDependencyError, UsageError
from nsn_edge.runtimes.engines import TensorRtEngine


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return pretend_device(monkeypatch)


@pytest.mark.parametrize(
    ("library", "module", "hint"),
    [
        ("tensorrt", "tensorrt", "JetPack brings it: sudo apt install python3-libnvinfer"),
        ("tensorrt-rtx", "tensorrt_rtx", "pip install 'nsn-edge[rtx]'"),
    ],
)
def test_without_the_library(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch, library: str, module: str, hint: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = load_fails(tiny_bundle[0], MissingDependencyError, TensorRtEngine(library))
    assert message.startswith(f"running an engine of {library} needs the package '{library}', which is not installed")
    assert hint in message


def test_a_library_that_does_not_import(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    message = load_fails(tiny_bundle[0], EngineError)
    assert message.startswith("TensorRT is installed and cannot be imported: libnvinfer.so.10")


@pytest.mark.parametrize(("library", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")])
def test_without_cudas_bindings(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch, library: str, extra: str
) -> None:
    pretend_device(monkeypatch, library)
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    message = load_fails(tiny_bundle[0], MissingDependencyError, TensorRtEngine(library))
    assert message.endswith(f"'cuda-bindings', which is not installed (pip install 'nsn-edge[{extra}]')")


def test_older_bindings_have_another_name(tiny_bundle: TinyBundle, device: Device, monkeypatch: Any) -> None:
    build_engines(tiny_bundle[0])
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", device.cuda)
    TensorRtEngine().load(tiny_bundle[0] / "rank-005.onnx").close()


@pytest.mark.parametrize(
    ("error", "driver", "said"),
    [
        (cudaError_t.cudaErrorInsufficientDriver, 0, "this machine has no NVIDIA driver (install it"),
        (
            cudaError_t.cudaErrorInsufficientDriver,
            11040,
            "the NVIDIA driver knows CUDA up to 11.4, and cuda-bindings are of 12.6 (pip install 'cuda-bindings==11.*'",
        ),
        (cudaError_t.cudaErrorNoDevice, 12060, "the CUDA driver finds no GPU (check it with: nvidia-smi"),
        (cudaError_t.cudaErrorInvalidValue, 12060, "CUDA does not start: the words for 1 (cudaErrorInvalidValue)"),
    ],
)
def test_without_a_driver_or_a_gpu(
    tiny_bundle: TinyBundle, device: Device, error: cudaError_t, driver: int, said: str
) -> None:
    device.cuda.start_error, device.cuda.driver = error, driver
    assert load_fails(tiny_bundle[0], EngineError).startswith(said)


def test_a_gpu_that_is_not_there(tiny_bundle: TinyBundle, device: Device) -> None:
    message = load_fails(tiny_bundle[0], UsageError, TensorRtEngine(device_index=1))
    assert message == "there is no GPU 1 (there are 1, numbered from 0)"


def test_the_second_gpu(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = tiny_bundle
    device = pretend_device(monkeypatch, devices=(("Other", 7, 5), ("Orin", 8, 7)))
    build_engines(path)
    graph = TensorRtEngine(device_index=1).load(path / "rank-005.onnx")
    for seed in range(4):
        device.cuda.forget_device()
        np.testing.assert_allclose(
            graph.run({"x": batch(3, seed)})["y"], model(batch(3, seed), 5), rtol=1e-4, atol=1e-4
        )
    device.cuda.forget_device()
    graph.close()
    assert device.cuda.is_clean
    assert set(device.library.order_of_death) == {"context", "engine", "runtime"}


@pytest.mark.parametrize(
    "settings", [{"library": "trt"}, {"precision": "int3"}, {"device_index": -1}, {"device_index": True}]
)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TensorRtEngine(**settings)


def test_it_describes_what_was_measured_with(tiny_bundle: TinyBundle, device: Device) -> None:
    build_engines(tiny_bundle[0], precision="fp16")
    engine = TensorRtEngine()
    engine.load(tiny_bundle[0] / "rank-005.onnx").close()
    found = engine.describe()
    loaded = found.pop("loaded")
    assert found == {
        "engine": "tensorrt",
        "version": "10.3.0",
        "device": ORIN.name,
        "compute_capability": ORIN.compute_capability,
        "engine_precision": None,
        "cuda_graphs": True,
    }
    (entry,) = loaded.values()
    assert loaded.keys() == {"rank-005.onnx"}
    assert entry.pop("size_bytes") > 0
    assert entry == {"engine": "rank-005-fp16.engine", "precision": "fp16", "built_for": "orin-sm87"}
    assert json.dumps(TensorRtEngine().describe())
    assert not TensorRtEngine().owns_threads


# --- shapes beyond what was built -----------------------------------------------------------------------------------


def test_shapes_and_ranks_beyond_the_profiles_name_the_range(tiny_bundle: TinyBundle, device: Device) -> None:
    path = tiny_bundle[0]
    build_engines(path)
    graph = TensorRtEngine().load(path / "rank-005.onnx")
    with pytest.raises(EngineError, match=r"takes x of \[1, 16\] to \[8, 16\], not \[9, 16\] .*nsn-edge build"):
        graph.run({"x": batch(9)})
    graph.run({"x": batch(8)})
    graph.close()
    dynamic = TensorRtEngine().load(path / "sliced.onnx")
    for rank in (0, 17):
        with pytest.raises(EngineError, match=rf"no profile for rank {rank}; it takes 1\.\.2, 3\.\.5, 6\.\.8, 9\.\.16"):
            dynamic.run({"x": batch(), "rank": np.array(rank)})
    dynamic.close()
