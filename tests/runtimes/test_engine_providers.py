"""GPU providers without a GPU: what they are asked, what is noted, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from tiny_bundle import ALL_RUNGS, RUNGS, TinyModel, sign

from nsn_edge.bundle import Bundle, TensorSpec
from nsn_edge.errors import EngineError, ProviderError, UsageError
from nsn_edge.runtimes.engines import OnnxRuntimeEngine
from nsn_edge.runtimes.engines.onnxruntime_graph import first_line
from nsn_edge.runtimes.engines.onnxruntime_providers import (
    PROVIDERS,
    RECORD_PLACEMENT,
    check_placement,
    placement,
    provider_chain,
)
from nsn_edge.runtimes.engines.onnxruntime_tensorrt import profile_options, tensorrt_options, usual_shapes

TinyBundle = tuple[Path, TinyModel]
CPU, CUDA, TENSORRT = PROVIDERS["cpu"], PROVIDERS["cuda"], PROVIDERS["tensorrt"]
TOKENS = TensorSpec("input_ids", "int64", ("batch_size", "sequence_length"))
MASK = TensorSpec("attention_mask", "int64", ("batch_size", "past_sequence_length + sequence_length"))
RANK = TensorSpec("rank", "int64", ())
RANGES = {
    "batch_size": (1, 1, 8),
    "sequence_length": (1, 16, 32),
    "past_sequence_length": (0, 64, 96),
    "rank": (64, 192, 384),
}


class GpuSession:
    """A session as it comes out of onnxruntime's GPU build, with the nodes where `nodes` says."""

    nodes: dict[str, dict[str, int]]
    asked: list[Any]
    failure: Exception | None = None

    def __init__(self, path: str, sess_options: Any, providers: list[Any], enable_fallback: int) -> None:
        if self.failure is not None:
            raise self.failure
        type(self).asked = providers
        assert sess_options.get_session_config_entry(RECORD_PLACEMENT) == "1"

    def get_providers(self) -> list[str]:
        return [entry[0] if isinstance(entry, tuple) else entry for entry in self.asked]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {name: {"device_id": "0"} for name in self.get_providers()}

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=provider, get_nodes=lambda op=op, n=n: [SimpleNamespace(op_type=op)] * n)
            for provider, ops in self.nodes.items()
            for op, n in ops.items()
        ]

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_inputs


@pytest.fixture
def gpu_session(monkeypatch: pytest.MonkeyPatch) -> type[GpuSession]:
    class Session(GpuSession):
        nodes = {CUDA: {"MatMul": 4, "Relu": 1}, CPU: {"Shape": 2, "Gather": 3}}  # noqa: RUF012

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return Session


def test_what_ran_where_is_described(tiny_bundle: TinyBundle, gpu_session: type[GpuSession]) -> None:
    engine = OnnxRuntimeEngine(provider="cuda", provider_options={"device_id": "0"})
    engine.load(tiny_bundle[0] / "rank-005.onnx")
    noted = engine.describe()["loaded"]["rank-005.onnx"]
    assert noted["nodes"] == {CUDA: 5, CPU: 5}
    assert noted["provider_options"][CUDA] == {"device_id": "0"}


def test_products_left_to_the_cpu_are_an_error(tiny_bundle: TinyBundle, gpu_session: type[GpuSession]) -> None:
    gpu_session.nodes = {CUDA: {"Relu": 1}, CPU: {"MatMulInteger": 4, "Shape": 1}}
    with pytest.raises(ProviderError, match=r"cuda provider leaves 4 MatMulInteger of rank-005\.onnx to the CPU"):
        OnnxRuntimeEngine(provider="cuda").load(tiny_bundle[0] / "rank-005.onnx")
    automatic = OnnxRuntimeEngine(provider="auto")
    automatic.load(tiny_bundle[0] / "rank-005.onnx")
    assert automatic.describe()["loaded"]["rank-005.onnx"]["nodes"] == {CUDA: 1, CPU: 5}


def test_an_onnxruntime_that_does_not_say_is_let_pass(tiny_bundle: TinyBundle, gpu_session: type[GpuSession]) -> None:
    del GpuSession.get_provider_graph_assignment_info
    try:
        engine = OnnxRuntimeEngine(provider="cuda")
        engine.load(tiny_bundle[0] / "rank-005.onnx")
    finally:
        GpuSession.get_provider_graph_assignment_info = _REPORT  # type: ignore[method-assign]
    assert engine.describe()["loaded"]["rank-005.onnx"]["nodes"] is None


_REPORT = GpuSession.get_provider_graph_assignment_info


def test_placement_of_a_real_session(tiny_bundle: TinyBundle) -> None:
    options = onnxruntime.SessionOptions()
    path = str(tiny_bundle[0] / "rank-005.onnx")
    options.add_session_config_entry(RECORD_PLACEMENT, "1")
    counts = placement(onnxruntime.InferenceSession(path, options))
    assert counts is not None
    assert counts[CPU]["MatMul"] == 4
    with pytest.raises(ProviderError, match="4 MatMul"):
        check_placement("cuda", "g", counts)
    check_placement("cpu", "g", counts)
    check_placement("cuda", "g", {CUDA: Counter(MatMul=4), CPU: Counter(Shape=9)})


# The messages are those of onnxruntime-gpu 1.31.1 on a machine without a GPU.
@pytest.mark.parametrize(
    ("provider", "message", "said"),
    [
        (
            "tensorrt",
            "/onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:729 void onnxruntime::python::Register("
            "PySessionOptions&, const onnxruntime::ProviderOptions&) Please install TensorRT libraries as mentioned in "
            "the GPU requirements page, make sure they're in the PATH or LD_LIBRARY_PATH",
            r"cannot load rank-005\.onnx: Please install TensorRT libraries .*--provider cuda",
        ),
        (
            "cuda",
            "CUDA failure 100: no CUDA-capable device is detected",
            r"CUDA failure 100.*\(install the CUDA libraries",
        ),
    ],
)
def test_a_provider_that_does_not_start(
    tiny_bundle: TinyBundle, gpu_session: type[GpuSession], provider: str, message: str, said: str
) -> None:
    gpu_session.failure = RuntimeError(message)
    with pytest.raises(ProviderError, match=said):
        OnnxRuntimeEngine(provider=provider).load(tiny_bundle[0] / "rank-005.onnx")


def test_weights_that_do_not_go_onto_the_gpu(tiny_bundle: TinyBundle, gpu_session: type[GpuSession]) -> None:
    with pytest.raises(EngineError, match=r"MB of weights\.bin do not go onto cuda"):
        OnnxRuntimeEngine(provider="cuda", share_weights=True).load(tiny_bundle[0] / "rank-005.onnx")


def test_a_graph_that_fails_is_no_matter_of_the_provider(
    tiny_bundle: TinyBundle, gpu_session: type[GpuSession]
) -> None:
    gpu_session.failure = RuntimeError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model failed")
    with pytest.raises(EngineError, match="INVALID_PROTOBUF") as caught:
        OnnxRuntimeEngine(provider="cuda").load(tiny_bundle[0] / "rank-005.onnx")
    assert not isinstance(caught.value, ProviderError)


def test_messages_lose_the_place_in_onnxruntimes_sources() -> None:
    text = "/onnxruntime_src/onnxruntime/core/session/provider.cc:2465 Info& Get(int) CUDA Provider not available"
    assert first_line(RuntimeError(text)) == "CUDA Provider not available"
    assert first_line(RuntimeError("[ONNXRuntimeError] : 1 : FAIL\nmore")) == "[ONNXRuntimeError] : 1 : FAIL"


def test_the_chain_keeps_to_one_gpu() -> None:
    assert provider_chain(CPU, {}) == [(CPU, {})]
    assert provider_chain(CUDA, {"device_id": "1"}) == [(CUDA, {"device_id": "1"}), CPU]
    chain = provider_chain(TENSORRT, {"device_id": "1", "trt_fp16_enable": "1"})
    assert chain == [(TENSORRT, {"device_id": "1", "trt_fp16_enable": "1"}), (CUDA, {"device_id": "1"}), CPU]


# --- TensorRT: everything is built once ------------------------------------------------------------------------------


def test_a_profile_names_every_input_that_varies() -> None:
    fixed = TensorSpec("scale", "float32", (1, 4))
    options = profile_options([TOKENS, MASK, fixed, RANK], RANGES, "g")
    assert options == {
        "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1,rank:64",
        "trt_profile_opt_shapes": "input_ids:1x16,attention_mask:1x80,rank:192",
        "trt_profile_max_shapes": "input_ids:8x32,attention_mask:8x128,rank:384",
    }
    assert profile_options([fixed], RANGES, "g") == {}
    assert profile_options([TOKENS], {}, "g") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": None}, "g has the dimension 'sequence_length', and nothing says how large"),
        ({"batch_size": (4, 2, 8)}, "the range of 'batch_size' is"),
        ({"batch_size": (1, 2)}, "the range of 'batch_size' is"),
    ],
)
def test_ranges_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    ranges = {name: sizes for name, sizes in {**RANGES, **changes}.items() if sizes is not None}
    with pytest.raises(UsageError, match=message):
        profile_options([TOKENS, MASK], ranges, "g")


def test_usual_shapes_hold_every_rung_and_every_length(text_bundle: TinyBundle) -> None:
    manifest = Bundle.open(text_bundle[0]).manifest
    shapes = usual_shapes(manifest, batch_size=4)
    assert shapes["rank"] == (RUNGS[0], ALL_RUNGS[-1], ALL_RUNGS[-1])
    assert shapes["sequence_length"] == (1, 8, 8)
    assert shapes["batch_size"] == (1, 1, 4)
    for form in ("rank-005", "sliced"):
        options = tensorrt_options(text_bundle[0] / f"{form}.onnx", shapes, None, "1.0")
        assert ("rank:2" in options["trt_profile_min_shapes"]) == (form == "sliced")


def test_the_engine_asks_for_both_caches_and_the_profile(
    tiny_bundle: TinyBundle, gpu_session: type[GpuSession]
) -> None:
    gpu_session.nodes = {TENSORRT: {"MatMul": 4}}
    own = {"trt_fp16_enable": "True", "trt_timing_cache_enable": "False"}
    shapes = {"batch_size": (1, 1, 8)}
    OnnxRuntimeEngine(provider="tensorrt", shapes=shapes, provider_options=own).load(tiny_bundle[0] / "rank-005.onnx")
    name, options = gpu_session.asked[0]
    assert name == TENSORRT
    assert options["trt_profile_max_shapes"] == "x:8x16"
    assert options["trt_engine_cache_enable"] == "True"
    assert Path(options["trt_engine_cache_path"]).parent == tiny_bundle[0] / "engines"
    assert options["trt_timing_cache_enable"] == "False"  # the caller's word is the last
    assert options["trt_fp16_enable"] == "True"


def test_without_ranges_those_of_the_bundle_are_taken(text_bundle: TinyBundle) -> None:
    graph = text_bundle[0] / "sliced.onnx"
    usual = usual_shapes(Bundle.open(text_bundle[0]).manifest)
    options = tensorrt_options(graph, {}, None, "1.0")
    assert options == tensorrt_options(graph, usual, None, "1.0")
    assert options["trt_profile_max_shapes"] == "input_ids:8x8,attention_mask:8x8,rank:16"
    (text_bundle[0] / "manifest.json").unlink()
    assert "trt_profile_max_shapes" not in tensorrt_options(graph, {}, None, "1.0")


def test_engines_of_other_weights_are_kept_apart(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    path = tiny_bundle[0]

    def folder() -> str:
        return tensorrt_options(path / "rank-005.onnx", {}, tmp_path / "cache", "1.0")["trt_engine_cache_path"]

    first = folder()
    assert folder() == first
    assert Path(first).is_dir()
    weights = bytearray((path / "weights.bin").read_bytes())
    weights[0] ^= 1
    (path / "weights.bin").write_bytes(weights)
    sign(path)
    second = folder()
    assert second != first
    (path / "manifest.json").unlink()  # a graph outside of a bundle
    assert folder() not in (first, second)


def test_a_cache_that_cannot_be_written(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EngineError, match=r"engines cannot be kept in .*\(name a folder"):
        tensorrt_options(tiny_bundle[0] / "rank-005.onnx", {}, tmp_path / "cache", "1.0")
