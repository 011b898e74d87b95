"""TensorRT engines: the right file is found, the wrong one is never deserialised, and one line says what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from built_engines import Device, build_engines, pretend_device
from tensorrt_cases import TinyBundle, load_fails
from tiny_bundle import write_tiny_bundle

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engine_record import EngineDevice, EngineRecord
from nsn_edge.errors import EngineError, StaleEngineError, UsageError
from nsn_edge.nvidia import reason
from nsn_edge.runtimes.engines import TensorRtEngine

BUILD = "nsn-edge build BUNDLE --backend tensorrt"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return pretend_device(monkeypatch)


def nothing_was_deserialised(device: Device) -> bool:
    return "engine" not in (*device.library.alive, *device.library.order_of_death)


# --- which engine ---------------------------------------------------------------------------------------------------


def test_without_a_built_engine_the_command_is_named(tiny_bundle: TinyBundle, device: Device) -> None:
    message = load_fails(tiny_bundle[0], StaleEngineError)
    assert message.startswith("no engine tensorrt-10.3.0-orin-sm87/rank-005-fp32 in ")
    assert f"build it: {BUILD}" in message


def test_the_command_that_builds_the_engine_for_every_rank(tiny_bundle: TinyBundle, device: Device) -> None:
    path = tiny_bundle[0]
    with pytest.raises(StaleEngineError, match=r"build it: nsn-edge build BUNDLE --backend tensorrt --kind dynamic"):
        TensorRtEngine().load(path / "sliced.onnx")
    build_engines(path, change=lambda record: replace(record, bundle_hash="0" * 64))
    with pytest.raises(StaleEngineError, match=r"another bundle \(build it again: .* --kind dynamic\)$"):
        TensorRtEngine().load(path / "sliced.onnx")


def test_forms_of_which_no_engines_are_built(tiny_bundle: TinyBundle, device: Device) -> None:
    build_engines(tiny_bundle[0])
    with pytest.raises(UsageError, match=r"engines are built from the form masked \(take static, .* sliced"):
        TensorRtEngine().load(tiny_bundle[0] / "masked.onnx")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"library_version": "10.7.0"}, "was built by tensorrt 10.7.0, and 10.3.0 is here"),
        ({"library": "tensorrt_rtx"}, "is an engine of tensorrt_rtx, not of tensorrt"),
        ({"device": EngineDevice("Orin", "8.6")}, "was built for Orin (sm86), and this is Orin (sm87)"),
        ({"device": EngineDevice("Xavier", "8.7")}, "was built for Xavier (sm87), and this is Orin (sm87)"),
        ({"bundle_hash": "0" * 64}, "was built from another bundle"),
        ({"rank": 8}, "is the engine of rank 8, by its record"),
        ({"form": "sliced", "kind": "dynamic", "rank": None}, "is the engine of the form sliced, by its record"),
        ({"size_bytes": 7}, "bytes, not 7: it was cut or altered"),
        ({"sha256": "0" * 64}, "is not what was built: it was altered"),
    ],
)
def test_a_foreign_or_damaged_engine_is_refused_unread(
    tiny_bundle: TinyBundle, device: Device, changes: dict[str, Any], said: str
) -> None:
    def change(record: EngineRecord) -> EngineRecord:
        return replace(record, **changes)

    build_engines(tiny_bundle[0], change=change)
    message = load_fails(tiny_bundle[0], StaleEngineError)
    assert message.startswith("rank-005-fp32.engine ")
    assert said in message
    assert f"build it again: {BUILD}" in message
    assert nothing_was_deserialised(device)


def test_an_engine_whose_bytes_changed_is_refused_even_between_loads(tiny_bundle: TinyBundle, device: Device) -> None:
    path = tiny_bundle[0]
    file = build_engines(path)[5]
    engine = TensorRtEngine()
    engine.load(path / "rank-005.onnx").close()
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    assert "it was altered" in load_fails(path, StaleEngineError, engine)


def test_each_engine_is_hashed_once(tiny_bundle: TinyBundle, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    from nsn_edge.bundle import engines

    path, hashed = tiny_bundle[0], []
    build_engines(path)
    real = engines.sha256_of
    monkeypatch.setattr(engines, "sha256_of", lambda file: hashed.append(file.name) or real(file))
    engine = TensorRtEngine()
    for rank in (5, 8, 5, 5):
        engine.load(path / f"rank-{rank:03}.onnx").close()
    assert hashed == ["rank-005-fp32.engine", "rank-008-fp32.engine"]
    TensorRtEngine(check_hashes=False).load(path / "rank-005.onnx").close()
    assert len(hashed) == 2


def test_a_bundle_exported_again_makes_its_engines_stale(tiny_bundle: TinyBundle, device: Device) -> None:
    path = tiny_bundle[0]
    build_engines(path)
    write_tiny_bundle(path, seed=1)
    assert "was built from another bundle" in load_fails(path, StaleEngineError)
    assert nothing_was_deserialised(device)


def test_recorded_quality_does_not_make_engines_stale(tiny_bundle: TinyBundle, device: Device) -> None:
    path = tiny_bundle[0]
    build_engines(path)
    Bundle.open(path).record_quality({5: {"spearman": 0.9}})
    TensorRtEngine().load(path / "rank-005.onnx").close()


def test_an_engine_without_a_record_was_never_finished(tiny_bundle: TinyBundle, device: Device) -> None:
    file = build_engines(tiny_bundle[0])[5]
    file.with_suffix(".json").unlink()
    assert "build it" in load_fails(tiny_bundle[0], StaleEngineError)
    assert nothing_was_deserialised(device)


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"schema_version": 99})])
def test_a_record_that_makes_no_sense(tiny_bundle: TinyBundle, device: Device, text: str) -> None:
    build_engines(tiny_bundle[0])[5].with_suffix(".json").write_text(text)
    assert "build the engine again" in load_fails(tiny_bundle[0], StaleEngineError)


def test_the_precision_is_the_most_exact_one_that_was_built(tiny_bundle: TinyBundle, device: Device) -> None:
    path = tiny_bundle[0]
    build_engines(path, precision="fp16", types={"y": "HALF"})
    assert TensorRtEngine().load(path / "rank-005.onnx").inputs
    asked = TensorRtEngine(precision="fp32")
    assert "it has tensorrt-10.3.0-orin-sm87/rank-002-fp16" in load_fails(path, StaleEngineError, asked)
    build_engines(path, precision="fp32", weights_bytes=12345)
    graph = TensorRtEngine().load(path / "rank-005.onnx")
    assert 12345 in [block.nbytes for block in device.cuda.memory.values()]
    graph.close()


def test_an_engine_built_for_a_kind_of_gpu_serves_it(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_bundle[0]
    device = pretend_device(monkeypatch, "tensorrt-rtx", devices=(("NVIDIA GeForce RTX 4070", 8, 9),))
    build_engines(path, "tensorrt-rtx", device=EngineDevice.kind("8.0+"))
    TensorRtEngine("tensorrt-rtx").load(path / "rank-005.onnx").close()
    build_engines(path, "tensorrt-rtx", device=EngineDevice.kind("8.6"))
    TensorRtEngine("tensorrt-rtx").load(path / "rank-005.onnx").close()
    assert device.cuda.is_clean


def test_engines_may_be_kept_elsewhere(tiny_bundle: TinyBundle, device: Device, tmp_path: Path) -> None:
    path = tiny_bundle[0]
    build_engines(path)
    (path / "engines").rename(tmp_path / "cache")
    TensorRtEngine(engines=tmp_path / "cache").load(path / "rank-005.onnx").close()
    load_fails(path, StaleEngineError)


def test_a_graph_that_is_not_of_a_bundle(tiny_bundle: TinyBundle, device: Device) -> None:
    with pytest.raises(EngineError, match="is no graph of its bundle"):
        TensorRtEngine().load(tiny_bundle[0] / "rank-003.onnx")


# --- what the library says ------------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Engines whose records are true and whose bytes are not TensorRT's."""
    import hashlib

    for file in path.glob("engines/*/*.engine"):
        file.write_bytes(change(file.read_bytes()))
        record = json.loads(file.with_suffix(".json").read_text())
        record.update(sha256=hashlib.sha256(file.read_bytes()).hexdigest(), size_bytes=file.stat().st_size)
        file.with_suffix(".json").write_text(json.dumps(record))


def test_bytes_that_the_library_refuses(tiny_bundle: TinyBundle, device: Device) -> None:
    build_engines(tiny_bundle[0])
    rewritten(tiny_bundle[0], lambda data: b"no engine")
    message = load_fails(tiny_bundle[0], EngineError)
    assert message == (
        "tensorrt cannot load rank-005-fp32.engine: Error Code 2: Internal Error "
        f"(Assertion bufferSize >= minBufferSize failed.) (build it again: {BUILD})"
    )
    assert device.cuda.is_clean
    assert not device.library.alive


def test_an_engine_that_is_not_as_its_record_says(tiny_bundle: TinyBundle, device: Device) -> None:
    path = tiny_bundle[0]
    build_engines(path)
    rewritten(path, lambda data: data.replace(b"rank-005.onnx", b"sliced.onnx"))
    assert "is not the engine that its record describes: it has rank, x, y" in load_fails(path, EngineError)
    build_engines(path, change=lambda record: replace(record, profiles=record.profiles * 2))
    assert "and 1 profiles" in load_fails(path, EngineError)
    assert device.cuda.is_clean
    assert not device.library.alive


def test_an_empty_engine_file(tiny_bundle: TinyBundle, device: Device) -> None:
    build_engines(tiny_bundle[0])
    rewritten(tiny_bundle[0], lambda data: b"")
    assert load_fails(tiny_bundle[0], EngineError).startswith("rank-005-fp32.engine cannot be read: ")
    assert not device.library.alive


def test_a_type_that_numpy_lacks(tiny_bundle: TinyBundle, device: Device) -> None:
    build_engines(tiny_bundle[0], types={"y": "BF16"})
    assert "the tensor 'y' of the engine is BF16, which numpy cannot hold" in load_fails(tiny_bundle[0], EngineError)
    assert device.cuda.is_clean


def test_no_room_for_a_context(tiny_bundle: TinyBundle, device: Device) -> None:
    build_engines(tiny_bundle[0])
    device.library.contexts_left = 0
    message = load_fails(tiny_bundle[0], EngineError)
    assert message == "tensorrt made no execution context: Error Code 2: OutOfMemory (no further information)"
    assert device.cuda.is_clean
    assert not device.library.alive


def test_no_room_for_weights(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_device(monkeypatch, memory_bytes=1000)
    build_engines(tiny_bundle[0], weights_bytes=4_000)
    assert load_fails(tiny_bundle[0], EngineError) == (
        "tensorrt cannot load rank-005-fp32.engine: Error Code 2: OutOfMemory "
        "(keep fewer rungs in memory, or free the GPU)"
    )
    assert device.cuda.is_clean


def test_a_library_that_does_not_start(tiny_bundle: TinyBundle, device: Device) -> None:
    build_engines(tiny_bundle[0])
    device.library.starts = False
    message = load_fails(tiny_bundle[0], EngineError)
    assert message == "tensorrt does not start: CUDA initialization failure with error: 100"
    device.library.starts = True
    TensorRtEngine().load(tiny_bundle[0] / "rank-005.onnx").close()


def test_no_room_for_scratch_memory(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_device(monkeypatch, memory_bytes=9_000_000)
    build_engines(tiny_bundle[0], scratch_bytes=8_000_000, weights_bytes=4_000_000)
    message = load_fails(tiny_bundle[0], EngineError)
    assert message.startswith("CUDA cannot allocate 8 MB: 5 MB of the GPU's 9 MB are free")
    assert device.cuda.is_clean
    assert not device.library.alive


def test_reasons_are_one_line_without_places() -> None:
    said = (
        "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (In ScopedCudaStream at "
        "/_src/common/dispatch/cudaResources.cpp:25 (cudaError 35: CUDA driver version is insufficient for CUDA "
        "runtime version))"
    )
    assert reason([said, "a consequence"]) == (
        "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is "
        "insufficient for CUDA runtime version)"
    )
    assert reason([]) == "no reason was given"
    assert len(reason(["x\n" * 1000])) <= 300
