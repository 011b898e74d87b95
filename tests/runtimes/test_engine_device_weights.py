"""Weights on the device once: on the processor's memory, where it can be run, and by every rung of a bundle."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tiny_bundle import ALL_RUNGS, RUNGS, TinyModel

from nsn_edge.bundle import Bundle
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.runtimes.engines import OnnxRuntimeEngine, onnxruntime_weights
from nsn_edge.runtimes.engines.graph_file import external_tensors
from nsn_edge.runtimes.engines.onnxruntime_graph import OnnxRuntimeGraph
from nsn_edge.runtimes.engines.onnxruntime_prefix import first_rows
from nsn_edge.runtimes.engines.onnxruntime_weights import DeviceWeights

TinyBundle = tuple[Path, TinyModel]
X = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)


def load(weights: DeviceWeights, path: Path) -> OnnxRuntimeGraph:
    options = OnnxRuntimeEngine(share_weights=True)._options(ort)
    keep = weights.add_to(options, path, ort)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return OnnxRuntimeGraph(path.name, session, weights=keep)


def rung(path: Path, rank: int) -> Path:
    bundle = Bundle.open(path)
    return bundle.file(bundle.graph(rank))


def test_first_rows_are_the_same_memory_and_outlive_the_rest() -> None:
    whole = ort.OrtValue.ortvalue_from_numpy(np.arange(12, dtype=np.float16).reshape(4, 3))
    part = first_rows(ort, whole, 2)
    assert (whole.shape(), part.shape()) == ([4, 3], [2, 3])
    assert part.data_ptr() == whole.data_ptr()
    del whole
    gc.collect()
    np.testing.assert_array_equal(part.numpy(), [[0, 1, 2], [3, 4, 5]])


def test_every_rung_agrees_with_numpy(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    weights = DeviceWeights("cpu")
    graphs = {rank: load(weights, rung(path, rank)) for rank in ALL_RUNGS}
    for rank, graph in graphs.items():
        np.testing.assert_allclose(graph.run({"x": X})["y"], model(X, rank), rtol=1e-4, atol=1e-4)


def test_a_second_rung_adds_nothing(tiny_bundle: TinyBundle) -> None:
    path, _ = tiny_bundle
    weights = DeviceWeights("cpu")
    first = load(weights, rung(path, RUNGS[0]))
    after_one = weights.resident_bytes
    others = [load(weights, rung(path, rank)) for rank in RUNGS[1:]]
    assert weights.resident_bytes == after_one
    # What the largest factored graph needs, and not more: the dense weights come with the dense rung.
    assert after_one >= sum(tensor.size_bytes for tensor in external_tensors(rung(path, RUNGS[-1])))
    dense = load(weights, rung(path, ALL_RUNGS[-1]))
    assert weights.resident_bytes > after_one
    for graph in (first, *others, dense):
        graph.close()
    del first, others, dense, graph
    gc.collect()
    assert weights.resident_bytes == 0


def test_sessions_compute_with_the_shared_tensors(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime could read the file itself. It does not: what is changed in the shared memory changes both rungs."""
    path, model = tiny_bundle
    arrays: list[np.ndarray] = []
    mapped = onnxruntime_weights._mapped

    def copied(*arguments: Any) -> np.ndarray:
        arrays.append(np.array(mapped(*arguments)))
        return arrays[-1]

    monkeypatch.setattr(onnxruntime_weights, "_mapped", copied)
    weights = DeviceWeights("cpu")
    small, large = (load(weights, rung(path, rank)) for rank in RUNGS[:2])
    before = [graph.run({"x": X})["y"] for graph in (small, large)]
    for array in arrays:
        array *= 2  # two layers of two factors: the answer grows by 2^4
    after = [graph.run({"x": X})["y"] for graph in (small, large)]
    for rank, old, new in zip(RUNGS, before, after, strict=False):
        np.testing.assert_allclose(old, model(X, rank), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(new, 16 * old, rtol=1e-4)


def test_the_tensors_live_as_long_as_a_graph_uses_them(tiny_bundle: TinyBundle) -> None:
    weights = DeviceWeights("cpu")
    graph = load(weights, rung(tiny_bundle[0], 5))
    gc.collect()
    assert weights.resident_bytes > 0
    lost = weakref.ref(next(iter(weights._whole.values())))
    np.testing.assert_allclose(graph.run({"x": X})["y"], tiny_bundle[1](X, 5), rtol=1e-4, atol=1e-4)
    graph.close()
    gc.collect()
    assert lost() is None


def test_a_weights_file_that_is_too_short(tiny_bundle: TinyBundle) -> None:
    file = tiny_bundle[0] / "weights.bin"
    graph = rung(tiny_bundle[0], 5)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"weights\.bin does not hold the tensor"):
        DeviceWeights("cpu").add_to(ort.SessionOptions(), graph, ort)


def test_an_onnxruntime_that_is_too_old_says_so(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ort.OrtValue, "from_dlpack")
    with pytest.raises(EngineError, match=r"cannot share weights on the device .*newer onnxruntime-gpu"):
        DeviceWeights("cpu").add_to(ort.SessionOptions(), rung(tiny_bundle[0], 5), ort)


def test_a_device_that_is_not_there_or_full(tiny_bundle: TinyBundle) -> None:
    with pytest.raises(EngineError, match=r"MB of weights\.bin do not go onto cuda: .+ memory left"):
        DeviceWeights("cuda").add_to(ort.SessionOptions(), rung(tiny_bundle[0], 5), ort)


def test_an_engine_tells_what_lies_on_its_device(tiny_bundle: TinyBundle) -> None:
    engine = OnnxRuntimeEngine(share_weights=True)
    assert engine.describe()["device_weight_bytes"] == 0
    keep = engine._device_weights(("cpu", 0)).add_to(ort.SessionOptions(), rung(tiny_bundle[0], 5), ort)
    assert engine.describe()["device_weight_bytes"] == engine.device_weight_bytes > 0
    del keep
    gc.collect()
    assert engine.device_weight_bytes == 0


def test_tensorrt_cannot_share() -> None:
    with pytest.raises(UsageError, match="cannot be shared"):
        OnnxRuntimeEngine(provider="tensorrt", share_weights=True)
