"""Runs of TensorRT engines on a made-up GPU that computes what lies in its memory: CUDA graphs, and faults."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from built_engines import Device, build_engines, pretend_device
from fake_cuda import cudaError_t
from tensorrt_cases import TENSORRTS, TinyBundle, batch, check, engine_of, kinds, load

from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines import LoadedGraph, TensorRtEngine, run_holding


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
