"""What tests of TensorRT engines share: the ages of the library, made-up devices, and a check of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from built_engines import Device
from tiny_bundle import TinyModel

from nsn_edge.errors import NsnEdgeError
from nsn_edge.runtimes.engines import LoadedGraph, TensorRtEngine

TinyBundle = tuple[Path, TinyModel]
TENSORRTS = [("tensorrt", "8.6.2"), ("tensorrt", "10.3.0"), ("tensorrt-rtx", "1.7.1.116")]
"""Backend and version: JetPack 6's two, and the one of PyPI."""


def engine_of(device: Device, **settings: bool) -> TensorRtEngine:
    return TensorRtEngine(device.library.__name__.replace("_", "-"), **settings)


def load(engine: TensorRtEngine, bundle: TinyBundle, rank: int | None) -> LoadedGraph:
    return engine.load(bundle[0] / ("sliced.onnx" if rank is None else f"rank-{rank:03}.onnx"))


def batch(rows: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)


def check(graph: LoadedGraph, bundle: TinyBundle, rank: int = 5, rows: int = 3, seed: int = 0) -> None:
    found = graph.run({"x": batch(rows, seed)})["y"]
    np.testing.assert_allclose(found, bundle[1](batch(rows, seed), rank), rtol=1e-4, atol=1e-4)


def kinds(device: Device) -> list[str]:
    """How each run since the last question was done."""
    names = {"cudaGraphLaunch": "replayed", "cudaStreamBeginCapture": "recorded"}
    calls = [names[call] for call in device.cuda.calls if call in names]
    done = [f"queued {len(device.library.executions)}", *calls]
    device.cuda.calls.clear()
    device.library.executions.clear()
    return done


def load_fails(path: Path, kind: type[NsnEdgeError], engine: TensorRtEngine | None = None) -> str:
    """What a load says: one line."""
    with pytest.raises(kind) as caught:
        (engine or TensorRtEngine()).load(path / "rank-005.onnx")
    assert "\n" not in str(caught.value)
    return str(caught.value)
