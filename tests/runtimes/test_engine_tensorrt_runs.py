"""Runs of TensorRT engines on a made-up GPU that computes what lies in its memory: CUDA graphs, scratch memory,
buffers, held tensors, and everything given back in the end."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from built_engines import Device, build_engines, pretend_device
from fake_cuda import cudaError_t
from tiny_bundle import ALL_RUNGS, TinyModel

from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines import LoadedGraph, TensorRtEngine, run_holding
from nsn_edge.runtimes.engines.tensorrt.cuda import Cuda
from nsn_edge.runtimes.engines.tensorrt.memory import DeviceTensor, Pool, block_bytes

TinyBundle = tuple[Path, TinyModel]
TENSORRTS = [("tensorrt", "8.6.2"), ("tensorrt", "10.3.0"), ("tensorrt-rtx", "1.7.1.116")]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tiny_bundle: TinyBundle) -> Device:
    build_engines(tiny_bundle[0])
    return pretend_device(monkeypatch)


@pytest.fixture(params=TENSORRTS, ids="-".join)
def any_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny_bundle: TinyBundle) -> Device:
    build_engines(tiny_bundle[0], *request.param)
    return pretend_device(monkeypatch, *request.param)


def engine_of(device: Device, **settings: bool) -> TensorRtEngine:
    return TensorRtEngine(device.library.__name__.replace("_", "-"), **settings)


def load(engine: TensorRtEngine, bundle: TinyBundle, rank: int | None) -> LoadedGraph:
    return engine.load(bundle[0] / ("sliced.onnx" if rank is None else f"rank-{rank:03}.onnx"))


@pytest.fixture
def graph(device: Device, tiny_bundle: TinyBundle) -> Iterator[LoadedGraph]:
    graph = load(TensorRtEngine(), tiny_bundle, 5)
    yield graph
    graph.close()


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


# --- CUDA graphs ----------------------------------------------------------------------------------------------------


def test_a_shape_that_comes_again_is_recorded_and_replayed(
    device: Device, tiny_bundle: TinyBundle, graph: LoadedGraph
) -> None:
    check(graph, tiny_bundle, seed=0)
    assert kinds(device) == ["queued 1"]
    check(graph, tiny_bundle, seed=1)
    assert kinds(device) == ["queued 2", "recorded"]
    check(graph, tiny_bundle, seed=2)
    assert kinds(device) == ["queued 0", "replayed"]
    check(graph, tiny_bundle, rows=2, seed=3)
    assert kinds(device) == ["queued 1"]
    check(graph, tiny_bundle, seed=4)
    assert kinds(device) == ["queued 0", "replayed"], "another shape in between must not cost the first its graph"


def test_shapes_that_never_come_again_are_never_recorded(
    device: Device, tiny_bundle: TinyBundle, graph: LoadedGraph
) -> None:
    contexts = len(device.library.contexts)
    for rows in range(1, 9):
        check(graph, tiny_bundle, rows=rows)
    assert kinds(device) == ["queued 8"]
    assert len(device.library.contexts) == contexts


def test_more_shapes_than_lanes_turn_over_the_one_longest_unused(
    device: Device, tiny_bundle: TinyBundle, graph: LoadedGraph
) -> None:
    for rows in (1, 2, 3, 4, 5, 6, 5, 6, 1, 2):
        for seed in range(3):
            check(graph, tiny_bundle, rows=rows, seed=seed)
            assert len(device.cuda.executables) <= 4
    assert device.library.alive.count("context") == 4
    kinds(device)
    for rows in (1, 2, 5, 6):
        check(graph, tiny_bundle, rows=rows, seed=9)
    assert kinds(device) == ["queued 0", *["replayed"] * 4]


def test_a_buffer_that_grew_elsewhere_makes_graphs_stale(
    device: Device, tiny_bundle: TinyBundle, graph: LoadedGraph
) -> None:
    for seed in range(3):
        check(graph, tiny_bundle, seed=seed)
    check(graph, tiny_bundle, rows=8)  # the buffers move
    kinds(device)
    check(graph, tiny_bundle, seed=3)
    assert kinds(device) == ["queued 2", "recorded"], "once queued, once recorded at the new places"
    check(graph, tiny_bundle, seed=4)
    assert kinds(device) == ["queued 0", "replayed"]


def test_scratch_memory_that_moved_makes_graphs_stale(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_device(monkeypatch)
    build_engines(tiny_bundle[0], scratch_bytes=1000)
    engine = TensorRtEngine()
    small = load(engine, tiny_bundle, 5)
    for seed in range(3):
        check(small, tiny_bundle, seed=seed)
    before = set(device.cuda.memory)
    build_engines(tiny_bundle[0], scratch_bytes=50_000)
    large = load(engine, tiny_bundle, 8)
    assert len(before - set(device.cuda.memory)) == 1, "one scratch memory, and it has moved"
    for seed in range(4):
        check(small, tiny_bundle, seed=seed)
        check(large, tiny_bundle, rank=8, seed=seed)
    small.close()
    large.close()
    assert device.cuda.is_clean


def test_a_library_that_records_by_itself_is_left_to_it(
    tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engines(tiny_bundle[0], "tensorrt-rtx")
    for wanted in (True, False):
        device = pretend_device(monkeypatch, "tensorrt-rtx")
        graph = load(TensorRtEngine("tensorrt-rtx", cuda_graphs=wanted), tiny_bundle, 5)
        for seed in range(4):
            check(graph, tiny_bundle, seed=seed)
        run_holding(graph, {"x": batch()}, {}, {"y"})
        assert kinds(device) == ["queued 5"]
        # The second context is for tensors that lie elsewhere each time: nothing to be recorded there.
        assert device.library.contexts == [(True, wanted), (True, False)]
        graph.close()
        assert device.cuda.is_clean


def test_without_cuda_graphs(device: Device, tiny_bundle: TinyBundle) -> None:
    graph = load(TensorRtEngine(cuda_graphs=False), tiny_bundle, 5)
    for seed in range(4):
        check(graph, tiny_bundle, seed=seed)
    assert kinds(device) == ["queued 4"]
    graph.close()


@pytest.mark.parametrize(
    "fault", ["the library", "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"]
)
def test_what_cannot_be_recorded_runs_without(
    device: Device, tiny_bundle: TinyBundle, graph: LoadedGraph, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    if fault == "the library":
        device.library.refuses_to_record = True
    check(graph, tiny_bundle)
    with caplog.at_level(logging.WARNING, "nsn_edge.tensorrt"):
        if fault != "the library":
            device.cuda.failures[fault] = cudaError_t.cudaErrorStreamCaptureUnsupported
        for seed in range(5):
            check(graph, tiny_bundle, seed=seed)
    (said,) = caplog.messages
    assert said.startswith("rank-005-fp32.engine runs without CUDA graphs: ")
    assert "cudaGraphLaunch" not in device.cuda.calls
    assert not device.cuda.executables
    assert not device.cuda._graphs


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


# --- faults ---------------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_named_and_the_next_one_answers(
    any_device: Device, tiny_bundle: TinyBundle, caplog: pytest.LogCaptureFixture
) -> None:
    graph = load(engine_of(any_device), tiny_bundle, 5)
    for seed in range(3):
        check(graph, tiny_bundle, seed=seed)
    any_device.library.refuses_to_run = True
    with pytest.raises(EngineError) as caught:
        graph.run({"x": batch(2)})
    assert str(caught.value) == (
        f"{engine_of(any_device).name} failed while running rank-005-fp32.engine: "
        "IExecutionContext::enqueueV3: Error Code 1: Myelin (the kernels are on strike)"
    )
    any_device.library.refuses_to_run = False
    for rows in (2, 3, 2, 3):
        check(graph, tiny_bundle, rows=rows)
    graph.close()
    assert any_device.cuda.is_clean


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_call_of_cuda_that_fails_is_named_and_forgotten(device: Device, tiny_bundle: TinyBundle, call: str) -> None:
    graph = load(TensorRtEngine(), tiny_bundle, 5)
    device.cuda.failures[call] = cudaError_t.cudaErrorInvalidValue
    with pytest.raises(EngineError, match=r"^CUDA cannot .+: the words for 1 \(cudaErrorInvalidValue\)$"):
        graph.run({"x": batch()})
    for seed in range(4):
        check(graph, tiny_bundle, seed=seed)
    graph.close()
    assert device.cuda.is_clean


def test_a_cuda_graph_that_fails_is_not_tried_again(
    device: Device, tiny_bundle: TinyBundle, graph: LoadedGraph
) -> None:
    for seed in range(3):
        check(graph, tiny_bundle, seed=seed)
    device.cuda.failures["cudaGraphLaunch"] = cudaError_t.cudaErrorInvalidValue
    with pytest.raises(EngineError, match="CUDA cannot launch a CUDA graph"):
        graph.run({"x": batch()})
    assert not device.cuda.executables
    for seed in range(3):
        check(graph, tiny_bundle, seed=seed)


def test_no_memory_for_a_larger_input(tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_device(monkeypatch, memory_bytes=4000)
    build_engines(tiny_bundle[0], largest={"batch_size": 1000})
    graph = load(TensorRtEngine(), tiny_bundle, 5)
    check(graph, tiny_bundle)
    with pytest.raises(EngineError, match=r"CUDA cannot allocate 0\.06.* MB: .* \(keep fewer rungs in memory"):
        graph.run({"x": batch(1000)})
    check(graph, tiny_bundle)
    graph.close()
    assert device.cuda.is_clean


def test_values_beyond_a_narrower_type_are_refused(text_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = text_bundle
    build_engines(path, "tensorrt", "8.6.2")
    pretend_device(monkeypatch, "tensorrt", "8.6.2")
    graph = TensorRtEngine().load(path / "rank-005.onnx")
    ids = np.array([[1, 2**40]])
    with pytest.raises(EngineError, match=r"input 'input_ids' of rank-005-fp32\.engine holds values beyond int32"):
        graph.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    graph.close()


def test_outputs_whose_size_depends_on_values(device: Device, tiny_bundle: TinyBundle, graph: LoadedGraph) -> None:
    device.library.data_dependent = True
    with pytest.raises(EngineError, match="the size of the output 'y' depends on values, which is not supported"):
        graph.run({"x": batch()})


def test_a_recording_lets_other_threads_allocate(device: Device, tiny_bundle: TinyBundle, graph: LoadedGraph) -> None:
    """CUDA forbids some calls to the thread that records, and to no other: a load gets its weights meanwhile."""
    codes: list[int] = []

    def allocate() -> None:
        code, address = device.cuda.cudaMalloc(100)
        codes.append(code)
        device.cuda.memory.pop(address, None)

    def elsewhere() -> None:
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()

    device.library.while_recording = elsewhere
    for seed in range(3):
        check(graph, tiny_bundle, seed=seed)
    assert codes == [0]
    assert "cudaGraphLaunch" in device.cuda.calls


def test_graphs_load_and_close_while_others_are_recorded(device: Device, tiny_bundle: TinyBundle) -> None:
    engine = TensorRtEngine()
    graph = load(engine, tiny_bundle, 5)
    wrong: list[BaseException] = []
    done = threading.Event()

    def load_and_close() -> None:
        try:
            while not done.is_set():
                load(engine, tiny_bundle, 8).close()
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=load_and_close)
    thread.start()
    try:
        for rows in (1, 2, 3, 4, 5, 6) * 4:
            check(graph, tiny_bundle, rows=rows)
    finally:
        done.set()
        thread.join()
    assert not wrong
    graph.close()
    assert device.cuda.is_clean
