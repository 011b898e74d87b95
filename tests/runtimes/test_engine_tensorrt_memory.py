"""Memory of TensorRT engines on a made-up GPU: shared by all rungs, held tensors, kernels that are kept, and everything
given back in the end."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from built_engines import Device, build_engines, pretend_device
from tensorrt_cases import TENSORRTS, TinyBundle, batch, check, engine_of, load
from tiny_bundle import ALL_RUNGS

from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines import LoadedGraph, TensorRtEngine, run_holding
from nsn_edge.runtimes.engines.tensorrt.cuda import Cuda
from nsn_edge.runtimes.engines.tensorrt.memory import DeviceTensor, Pool, block_bytes


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tiny_bundle: TinyBundle) -> Device:
    build_engines(tiny_bundle[0])
    return pretend_device(monkeypatch)


@pytest.fixture(params=TENSORRTS, ids="-".join)
def any_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny_bundle: TinyBundle) -> Device:
    build_engines(tiny_bundle[0], *request.param)
    return pretend_device(monkeypatch, *request.param)


@pytest.fixture
def graph(device: Device, tiny_bundle: TinyBundle) -> Iterator[LoadedGraph]:
    graph = load(TensorRtEngine(), tiny_bundle, 5)
    yield graph
    graph.close()


# --- memory ---------------------------------------------------------------------------------------------------------


def test_rungs_share_everything_but_weights(any_device: Device, tiny_bundle: TinyBundle) -> None:
    engine = engine_of(any_device)
    first = load(engine, tiny_bundle, 2)
    check(first, tiny_bundle, rank=2)
    before, pinned = any_device.cuda.used_bytes, len(any_device.cuda.pinned)
    others = {rank: load(engine, tiny_bundle, rank) for rank in (5, 8, 16)}
    for rank, graph in others.items():
        check(graph, tiny_bundle, rank=rank)
    weights = 100 * (5 + 8 + 16)
    assert any_device.cuda.used_bytes - before == weights
    assert len(any_device.cuda.pinned) == pinned
    for graph in (first, *others.values()):
        graph.close()
    assert any_device.cuda.is_clean


def test_a_rank_more_of_the_dynamic_engine_costs_no_memory(any_device: Device, tiny_bundle: TinyBundle) -> None:
    graph = load(engine_of(any_device), tiny_bundle, None)
    contexts = [profile for profile, _ in any_device.library.contexts]
    assert len(contexts) == len(ALL_RUNGS), "a context per rung, made when the engine is loaded"

    def ask(rank: int) -> None:
        found = graph.run({"x": batch(), "rank": np.array(rank)})["y"]
        np.testing.assert_allclose(found, tiny_bundle[1](batch(), rank, dense=False), rtol=1e-4, atol=1e-4)

    ask(2)
    before = any_device.cuda.used_bytes
    for rank in (5, 8, 16, 3, 1, 11):
        ask(rank)
    assert any_device.cuda.used_bytes == before
    assert [profile for profile, _ in any_device.library.executions] == [0, 1, 2, 3, 1, 0, 3]
    graph.close()


def test_a_load_without_room_leaves_the_others_their_scratch_memory(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = pretend_device(monkeypatch, memory_bytes=1_000_000)
    build_engines(tiny_bundle[0])
    engine = TensorRtEngine()
    graph = load(engine, tiny_bundle, 5)
    for seed in range(3):
        check(graph, tiny_bundle, seed=seed)
    build_engines(tiny_bundle[0], scratch_bytes=2_000_000)
    with pytest.raises(EngineError, match="CUDA cannot allocate 2 MB"):
        load(engine, tiny_bundle, 8)
    for seed in range(3):
        check(graph, tiny_bundle, seed=seed)
    graph.close()
    assert device.cuda.is_clean


def test_a_graph_recorded_at_one_rank_does_not_answer_for_another(device: Device, tiny_bundle: TinyBundle) -> None:
    graph = load(TensorRtEngine(), tiny_bundle, None)
    for rank in (7, 6, 7, 6, 7, 6, 8, 8, 8, 7, 6):  # of one profile
        found = graph.run({"x": batch(), "rank": np.array(rank)})["y"]
        np.testing.assert_allclose(found, tiny_bundle[1](batch(), rank, dense=False), rtol=1e-4, atol=1e-4)
    assert "cudaGraphLaunch" in device.cuda.calls
    graph.close()


def test_blocks_waste_an_eighth_at_most_and_serve_many_sizes() -> None:
    for size in (0, 1, 255, 256, 257, 4097, 10**6, 3 * 10**9 + 1):
        block = block_bytes(size)
        assert block >= max(size, 1)
        assert block % 256 == 0
        assert block <= max(256, size * 1.125 + 256)
    assert len({block_bytes(n * 3072) for n in range(500, 1000)}) < 12, "a growing cache seldom needs a new block"


def test_everything_is_given_back_contexts_before_engines_before_the_runtime(
    any_device: Device, tiny_bundle: TinyBundle
) -> None:
    engine = engine_of(any_device)
    graphs = [load(engine, tiny_bundle, rank) for rank in (5, 8, None)]
    for seed in range(3):
        check(graphs[0], tiny_bundle, seed=seed)
        check(graphs[1], tiny_bundle, rank=8, seed=seed)
    _, held = run_holding(graphs[0], {"x": batch()}, {}, {"y"})
    del held
    for graph in graphs:
        assert not any_device.cuda.is_clean
        graph.close()
        graph.close()
    assert any_device.cuda.is_clean
    assert not any_device.library.alive
    died = any_device.library.order_of_death
    assert died[-1] == "runtime"
    assert died.count("engine") == 3
    again = load(engine, tiny_bundle, 5)  # the engine can be used anew
    check(again, tiny_bundle)
    again.close()
    assert any_device.cuda.is_clean


def test_a_graph_that_is_forgotten_is_freed(any_device: Device, tiny_bundle: TinyBundle) -> None:
    graph = load(engine_of(any_device), tiny_bundle, 5)
    for seed in range(3):
        check(graph, tiny_bundle, seed=seed)
    gc.disable()  # it must not take a collection
    try:
        del graph
        assert any_device.cuda.is_clean
        assert not any_device.library.alive
    finally:
        gc.enable()


# --- kernels --------------------------------------------------------------------------------------------------------


def rungs_used(bundle: TinyBundle, device: Device, **settings: bool) -> list[str]:
    """What is compiled while two rungs are loaded, one of them twice, and held tensors are asked for."""
    device.library.compiled.clear()
    engine = TensorRtEngine("tensorrt-rtx", **settings)
    graphs = [load(engine, bundle, rank) for rank in (5, 8, 5)]
    check(graphs[0], bundle)
    run_holding(graphs[1], {"x": batch()}, {}, {"y"})
    for graph in graphs:
        graph.close()
    assert device.cuda.is_clean
    return list(device.library.compiled)


def test_kernels_are_compiled_once_and_kept(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_device(monkeypatch, "tensorrt-rtx")
    folder = build_engines(tiny_bundle[0], "tensorrt-rtx")[5].parent
    both = ["rank-005.onnx", "rank-008.onnx"]
    assert rungs_used(tiny_bundle, device, keep_kernels=False) == both
    assert not list(folder.glob("*.cache"))
    assert rungs_used(tiny_bundle, device) == both
    (kept,) = folder.glob("*.cache")
    assert kept.name == "kernels-orin-sm87.cache"
    state = kept.stat()
    assert rungs_used(tiny_bundle, device) == []
    assert kept.stat() == state, "nothing new, nothing written"
    kept.write_bytes(kept.read_bytes()[:20])
    assert rungs_used(tiny_bundle, device) == both, "a damaged one is begun anew"
    assert rungs_used(tiny_bundle, device) == []


def test_kernels_that_cannot_be_kept_are_compiled_again(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = pretend_device(monkeypatch, "tensorrt-rtx")
    folder = build_engines(tiny_bundle[0], "tensorrt-rtx")[5].parent
    (folder / "kernels-orin-sm87.cache").mkdir()  # as good as a medium that cannot be written to
    for _ in range(2):
        assert rungs_used(tiny_bundle, device) == ["rank-005.onnx", "rank-008.onnx"]


# --- held tensors ---------------------------------------------------------------------------------------------------


def test_held_tensors_never_leave_the_gpu_and_outlive_their_graph(any_device: Device, tiny_bundle: TinyBundle) -> None:
    engine = engine_of(any_device)
    graph = load(engine, tiny_bundle, 5)
    any_device.cuda.calls.clear()
    _, held = run_holding(graph, {"x": batch()}, {}, {"y"})
    assert any_device.cuda.calls.count("cudaMemcpyAsync") == 1, "the input goes there, the output stays"
    y = held["y"]
    graph.close()
    assert not any_device.cuda.is_clean
    np.testing.assert_allclose(y.numpy(), tiny_bundle[1](batch(), 5), rtol=1e-4, atol=1e-4)
    del held, y
    assert any_device.cuda.is_clean


def test_a_held_input_is_used_where_it_lies(device: Device, tiny_bundle: TinyBundle, graph: LoadedGraph) -> None:
    other = load(TensorRtEngine(), tiny_bundle, 5)  # of another engine object, on the same GPU
    workspace = other._resources.workspace  # type: ignore[attr-defined]
    x = DeviceTensor(workspace.pool, device.cuda and workspace.cuda, np.dtype(np.float32), (3, 16))
    device.cuda.view(x.address, x.size_bytes)[:] = np.frombuffer(batch().tobytes(), np.uint8)
    device.cuda.calls.clear()
    outputs, _ = run_holding(graph, {}, {"x": x}, ())
    np.testing.assert_allclose(outputs["y"], tiny_bundle[1](batch(), 5), rtol=1e-4, atol=1e-4)
    assert device.cuda.calls.count("cudaMemcpyAsync") == 1
    np.testing.assert_array_equal(x.numpy(), batch())
    other.close()


def test_blocks_of_held_tensors_are_used_again(device: Device, tiny_bundle: TinyBundle, graph: LoadedGraph) -> None:
    run_holding(graph, {"x": batch()}, {}, {"y"})
    device.cuda.calls.clear()
    for seed in range(5):
        run_holding(graph, {"x": batch(seed=seed)}, {}, {"y"})
    assert "cudaMalloc" not in device.cuda.calls
    assert "cudaFree" not in device.cuda.calls
    assert "cudaStreamBeginCapture" not in device.cuda.calls, "what lies elsewhere each time is not worth recording"


def test_a_cache_that_grows_does_not_pile_up_outgrown_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_device(monkeypatch)
    cuda = Cuda.open()
    pool = Pool(cuda)
    for _ in range(2):  # two texts
        cache: list[DeviceTensor] = []
        for length in range(1, 1500):
            cache = [DeviceTensor(pool, cuda, np.dtype(np.float32), (length, 64)) for _ in range(4)]
            live = sum(tensor.size_bytes for tensor in cache)
            assert device.cuda.used_bytes <= 5 * live + 16 * 256
        del cache
    assert device.cuda.calls.count("cudaMalloc") < 2 * 600, "of 12000 tensors"
    pool.close()
    assert device.cuda.is_clean


def test_idle_blocks_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_device(monkeypatch, memory_bytes=20_000)
    cuda = Cuda.open()
    pool = Pool(cuda)
    kept = [DeviceTensor(pool, cuda, np.dtype(np.uint8), (4096,)) for _ in range(2)]
    DeviceTensor(pool, cuda, np.dtype(np.uint8), (8192,))  # given back at once
    large = DeviceTensor(pool, cuda, np.dtype(np.uint8), (10_000,))
    assert device.cuda.used_bytes < 20_000
    with pytest.raises(EngineError, match="CUDA cannot allocate"):
        DeviceTensor(pool, cuda, np.dtype(np.uint8), (8192,))
    del kept, large
    pool.close()
    assert device.cuda.is_clean
