"""The onnxruntime engine: right answers, and one line for what is not there. What it shares with the others is asked of
all of them in test_engines.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_bundle import ALL_RUNGS, TinyModel, sign

from nsn_edge.bundle import Bundle
from nsn_edge.errors import EngineError, MissingDependencyError, UsageError
from nsn_edge.runtimes.engines import HoldsTensors, OnnxRuntimeEngine
from nsn_edge.runtimes.engines.onnxruntime import PROVIDERS

TinyBundle = tuple[Path, TinyModel]


def batch(rows: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)


@pytest.mark.parametrize("share_weights", [False, True])
@pytest.mark.parametrize("rank", ALL_RUNGS)
def test_every_rung_agrees_with_numpy(tiny_bundle: TinyBundle, rank: int, share_weights: bool) -> None:
    path, model = tiny_bundle
    bundle = Bundle.open(path)
    graph = OnnxRuntimeEngine(share_weights=share_weights).load(bundle.file(bundle.graph(rank)))
    x = batch()
    np.testing.assert_allclose(graph.run({"x": x})["y"], model(x, rank), rtol=1e-4, atol=1e-4)


def test_a_failure_inside_onnxruntime_names_the_graph(text_bundle: TinyBundle) -> None:
    graph = OnnxRuntimeEngine().load(text_bundle[0] / "rank-005.onnx")
    ids = np.full((1, 2), 999)
    with pytest.raises(EngineError, match=r"failed while running rank-005\.onnx") as caught:
        graph.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["no graph", "not a graph", "no weights", "cut weights"])
def test_files_that_cannot_be_loaded_are_named(tiny_bundle: TinyBundle, damage: str) -> None:
    graph, weights = tiny_bundle[0] / "rank-005.onnx", tiny_bundle[0] / "weights.bin"
    if damage == "no graph":
        graph.unlink()
    elif damage == "not a graph":
        graph.write_bytes(b"not a graph")
    elif damage == "no weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"cannot load rank-005\.onnx: .+") as caught:
        OnnxRuntimeEngine().load(graph)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"threads": -1}, {"threads": True}, {"threads": 1.5}, {"provider": "npu"}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        OnnxRuntimeEngine(**settings)


def test_it_describes_what_was_measured_with() -> None:
    description = OnnxRuntimeEngine(threads=2).describe()
    assert description["engine"] == "onnxruntime-cpu"
    assert description["version"] == onnxruntime.__version__
    assert description["threads"] == 2
    assert PROVIDERS["cpu"] in description["available_providers"]


def test_only_one_thread_on_the_cpu_runs_on_the_callers(tiny_bundle: TinyBundle) -> None:
    assert not OnnxRuntimeEngine().owns_threads
    assert OnnxRuntimeEngine(threads=2).owns_threads
    assert OnnxRuntimeEngine(provider="auto").owns_threads


def test_without_onnxruntime_the_pip_line_is_given(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'nsn-edge\[ort\]'"):
        OnnxRuntimeEngine().load(tiny_bundle[0] / "rank-005.onnx")


# --- providers: what is asked for must be what runs ----------------------------------------------------------------


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_built_in(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDERS["cpu"]])
    with pytest.raises(EngineError, match=rf"no {provider} provider; it has cpu .*nsn-edge\[ort-gpu\]"):
        OnnxRuntimeEngine(provider=provider).load(tiny_bundle[0] / "rank-005.onnx")


class _Session:
    """An onnxruntime session as it comes out where a GPU provider could not start."""

    started: tuple[str, ...] = (PROVIDERS["cpu"],)
    asked: tuple[str, ...] = ()

    def __init__(self, path: str, sess_options: object, providers: list[Any], enable_fallback: int) -> None:
        type(self).asked = tuple(entry[0] if isinstance(entry, tuple) else entry for entry in providers)
        assert enable_fallback == 0

    def get_providers(self) -> list[str]:
        return list(self.started)

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_inputs


def test_a_silent_fall_back_to_the_cpu_is_an_error(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", _Session)
    graph = tiny_bundle[0] / "rank-005.onnx"
    with pytest.raises(EngineError, match="cuda provider but could not start it, and would use CPUExecutionProvider"):
        OnnxRuntimeEngine(provider="cuda").load(graph)
    with pytest.raises(EngineError, match="tensorrt provider but could not start it"):
        OnnxRuntimeEngine(provider="tensorrt").load(graph)
    assert _Session.asked == (PROVIDERS["tensorrt"], PROVIDERS["cuda"], PROVIDERS["cpu"])
    OnnxRuntimeEngine(provider="auto").load(graph)
    assert _Session.asked == (PROVIDERS["cuda"], PROVIDERS["cpu"])


def test_auto_goes_on_with_the_cpu_where_the_gpu_fails(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime.InferenceSession

    def failing(path: str, providers: list[Any], **others: Any) -> Any:
        if providers[0][0] != PROVIDERS["cpu"]:
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        return real(path, providers=providers, **others)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", failing)
    path, model = tiny_bundle
    graph = OnnxRuntimeEngine(provider="auto").load(path / "rank-005.onnx")
    np.testing.assert_allclose(graph.run({"x": batch()})["y"], model(batch(), 5), rtol=1e-4, atol=1e-4)
    with pytest.raises(EngineError, match="no CUDA-capable device"):
        OnnxRuntimeEngine(provider="cuda").load(path / "rank-005.onnx")


def test_a_graph_with_strings_is_refused(tiny_bundle: TinyBundle) -> None:
    from onnx import TensorProto, helper

    text = [helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "strings", text[:1], text[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tiny_bundle[0] / "rank-005.onnx"
    path.write_bytes(model.SerializeToString())
    sign(tiny_bundle[0])
    with pytest.raises(EngineError, match=r"tensor 'a' of type tensor\(string\)"):
        OnnxRuntimeEngine().load(path)


def test_a_scalar_stays_one_when_tensors_are_held(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    graph = OnnxRuntimeEngine().load(path / "sliced.onnx")
    assert isinstance(graph, HoldsTensors)
    _, held = graph.run_holding({"x": batch(), "rank": np.array(7)}, {}, {"y"})
    np.testing.assert_allclose(held["y"].numpy(), model(batch(), 7), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_threads_of_an_idle_graph_stop_spinning(threads: int) -> None:
    """Decision 0016: by default each loaded rung's threads spin on the cores that the rung in use needs."""
    options = OnnxRuntimeEngine(threads=threads)._options(onnxruntime)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
