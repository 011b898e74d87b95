"""What every engine owes to a session, asked of each: onnxruntime, and the three ages of TensorRT on a made-up GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from built_engines import build_engines, pretend_device
from tensorrt_cases import TENSORRTS, TinyBundle, batch
from tiny_bundle import ALL_RUNGS

from nsn_edge.bundle import Bundle, TensorSpec
from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines import Engine, LoadedGraph, OnnxRuntimeEngine, TensorRtEngine, run_holding


@pytest.fixture(params=["onnxruntime", *TENSORRTS], ids=lambda p: p if isinstance(p, str) else "-".join(p))
def engine(request: pytest.FixtureRequest, tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> Engine:
    if request.param == "onnxruntime":
        return OnnxRuntimeEngine()
    backend, version = request.param
    pretend_device(monkeypatch, backend, version)
    build_engines(tiny_bundle[0], backend, version)
    return TensorRtEngine(backend)


@pytest.fixture
def graph(engine: Engine, tiny_bundle: TinyBundle) -> Iterator[LoadedGraph]:
    graph = engine.load(tiny_bundle[0] / "rank-005.onnx")
    yield graph
    graph.close()


def agrees(found: np.ndarray, expected: np.ndarray) -> bool:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    return True


@pytest.mark.parametrize("rank", ALL_RUNGS)
def test_every_rung_agrees_with_numpy(engine: Engine, tiny_bundle: TinyBundle, rank: int) -> None:
    path, model = tiny_bundle
    bundle = Bundle.open(path)
    graph = engine.load(bundle.file(bundle.graph(rank)))
    for seed in range(4):  # the same shape again and again: the first, the recorded, the repeated run
        assert agrees(graph.run({"x": batch(3, seed)})["y"], model(batch(3, seed), rank))
    graph.close()


def test_any_rank_of_the_one_graph_agrees_with_numpy(engine: Engine, tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    graph = engine.load(path / "sliced.onnx")
    assert TensorSpec("rank", "int64", ()) in graph.inputs
    for seed, rank in enumerate((7, 16, 1, 7, 7, 7, 2, 16, 7)):
        x = batch(2, seed)
        assert agrees(graph.run({"x": x, "rank": np.array(rank)})["y"], model(x, rank, dense=False))
    with pytest.raises(EngineError, match=r"the shape \[1\], which does not fit \[\]"):
        graph.run({"x": batch(), "rank": np.array([7])})
    graph.close()


def test_specs_are_those_of_the_manifest(tiny_bundle: TinyBundle, graph: LoadedGraph) -> None:
    manifest = Bundle.open(tiny_bundle[0]).manifest
    assert graph.inputs == manifest.inputs
    assert graph.outputs == manifest.outputs


def test_arrays_need_not_be_contiguous_and_outputs_are_the_callers(tiny_bundle: TinyBundle, graph: LoadedGraph) -> None:
    x = np.asfortranarray(batch(6))[::2]
    first = graph.run({"x": x})["y"]
    kept = first.copy()
    assert agrees(first, tiny_bundle[1](x, 5))
    x[:] = 0  # the caller's again as soon as the call is over
    graph.run({"x": batch(seed=1)})
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    assert agrees(graph.run({"x": batch(seed=1)})["y"], tiny_bundle[1](batch(seed=1), 5))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"rank-005\S+ lacks the input 'x' \(it takes x \(float32\)\)"),
        ({"x": batch(), "z": batch(), "a": batch()}, "has no input 'a', 'z'"),
        ({"x": batch().astype(np.float64)}, r"is float64, not float32 \(convert it with .astype\('float32'\)\)"),
        ({"x": batch()[0]}, r"the shape \[16\], which does not fit \[batch_size, 16\]"),
        ({"x": batch()[:, :5]}, r"the shape \[3, 5\], which does not fit"),
        ({"x": [[0.0] * 16]}, "is a list, not a numpy array"),
    ],
)
def test_inputs_that_do_not_fit_are_named(graph: LoadedGraph, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        graph.run(inputs)
    graph.run({"x": batch()})


def test_a_closed_graph_says_so(graph: LoadedGraph) -> None:
    graph.close()
    graph.close()
    with pytest.raises(EngineError, match="was closed"):
        graph.run({"x": batch()})
    with pytest.raises(EngineError, match="was closed"):
        run_holding(graph, {"x": batch()}, {}, {"y"})


def test_held_outputs_stay_as_they_are(tiny_bundle: TinyBundle, graph: LoadedGraph) -> None:
    outputs, held = run_holding(graph, {"x": batch()}, {}, {"y"})
    assert not outputs
    first = held["y"]
    run_holding(graph, {"x": batch(seed=1)}, {}, {"y"})
    graph.run({"x": batch(seed=2)})
    assert list(first.shape()) == [3, 8]
    assert agrees(first.numpy(), tiny_bundle[1](batch(), 5))


def test_a_held_tensor_under_a_name_that_is_no_input(tiny_bundle: TinyBundle, graph: LoadedGraph) -> None:
    _, held = run_holding(graph, {"x": batch()}, {}, {"y"})
    with pytest.raises(EngineError):
        run_holding(graph, {"x": batch(seed=1)}, held, ())
    assert agrees(held["y"].numpy(), tiny_bundle[1](batch(), 5))
    assert agrees(graph.run({"x": batch(seed=1)})["y"], tiny_bundle[1](batch(seed=1), 5))


def test_threads_get_their_own_answers(engine: Engine, tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    graphs = {rank: engine.load(path / f"rank-{rank:03}.onnx") for rank in ALL_RUNGS}
    wrong: list[Any] = []

    def ask(thread: int) -> None:
        try:
            for turn in range(12):
                rank = ALL_RUNGS[(thread + turn // 3) % 4]
                x = batch(1 + (turn // 6 + thread) % 2, 100 * thread + turn)
                agrees(graphs[rank].run({"x": x})["y"], model(x, rank))
        except BaseException as error:
            wrong.append(error)

    _together(ask, 6)
    assert not wrong
    for graph in graphs.values():
        graph.close()


def _together(work: Callable[[int], None], n: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
