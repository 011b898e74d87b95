"""The forms `bound` and `gated` behind a session, and damaged descriptions of the factors."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nsn_edge.bundle import Bundle, Manifest, MappedFactors, TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import BundleError, EngineError, RankError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.trace import trace_module
from nsn_edge.layers import at_dense, at_rank
from nsn_edge.runtimes.engines import LoadedGraph, OnnxRuntimeEngine, fix_inputs
from nsn_edge.runtimes.engines.onnxruntime_graph import OnnxRuntimeGraph
from nsn_edge.runtimes.profiling import MeasureSettings, ProfileSettings, profile_bundle
from nsn_edge.runtimes.session import EdgeSession

TOP = 12
X = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 16)).eval()
    nsnify_(model, NSNConfig(method="svd", align=1))
    return model


@pytest.fixture(scope="module")
def bundle(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    axes = {"input": {0: "batch_size"}, "y": {0: "batch_size"}}
    graph = trace_module(model, {"input": torch.randn(2, 20)}, ["y"], axes)
    checkpoint = Checkpoint(model=model, task=TaskSpec("custom"), name="plain", provenance={})
    path = tmp_path_factory.mktemp("bound") / "bundle"
    return export_bundle(checkpoint, path, ExportConfig(fractions=(), ranks=(3, 8), merge=False), graph=graph)


def wanted(model: nn.Module, rank: int, form: str) -> np.ndarray:
    dense = rank == TOP and form != "sliced"
    with at_dense(model) if dense else at_rank(model, rank), torch.no_grad():
        return model(torch.from_numpy(X)).numpy()


@pytest.mark.parametrize("form", ["bound", "gated"])
@pytest.mark.parametrize("share_weights", [False, True])
def test_a_session_answers_at_every_rank(model: nn.Module, bundle: Bundle, form: str, share_weights: bool) -> None:
    with EdgeSession.open(bundle, form=form, engine=OnnxRuntimeEngine(share_weights=share_weights)) as session:
        for rank in range(1, TOP + 1):
            answer = session.run({"input": X}, rank=rank)
            assert answer.rank == rank
            np.testing.assert_allclose(answer.outputs["y"], wanted(model, rank, form), atol=1e-5)
        assert not session.switch(5).result().cold
        np.testing.assert_allclose(session.run({"input": X}).outputs["y"], wanted(model, 5, form), atol=1e-5)
        originals = sum(w.nbytes for w in MappedFactors(bundle).originals().values()) if form == "bound" else 0
        assert session.resident_bytes == (bundle.graph(form=form).weight_bytes or 0) + originals


def test_static_rungs_answer_alike_when_they_share_the_mapped_weights(model: nn.Module, bundle: Bundle) -> None:
    with EdgeSession.open(bundle, engine=OnnxRuntimeEngine(share_weights=True)) as session:
        for rank in (3, 8):
            found = session.run({"input": X}, rank=rank).outputs["y"]
            np.testing.assert_allclose(found, wanted(model, rank, "static"), atol=1e-5)


@pytest.mark.parametrize("form", ["bound", "gated"])
@pytest.mark.parametrize("rank", [0, -1, TOP + 1, 2.0, True])
def test_a_rank_outside_is_refused(bundle: Bundle, form: str, rank: Any) -> None:
    with EdgeSession.open(bundle, form=form) as session, pytest.raises(RankError):
        session.run({"input": X}, rank=rank)


def test_requests_at_many_ranks_at_once_keep_apart(model: nn.Module, bundle: Bundle) -> None:
    answers: dict[int, np.ndarray] = {}
    with EdgeSession.open(bundle, form="bound") as session:

        def ask(rank: int) -> None:
            for _ in range(20):
                answers[rank] = session.run({"input": X}, rank=rank).outputs["y"]

        threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers) == list(range(1, 7))
    for rank, found in answers.items():
        np.testing.assert_allclose(found, wanted(model, rank, "bound"), atol=1e-5)


def test_full_power_is_the_original(model: nn.Module, bundle: Bundle) -> None:
    """The factors of full rank give the same up to rounding, so what differs must be looked for in the graph."""
    graph = bundle.graph(TOP, "bound")
    assert graph.rank == TOP
    assert bundle.graph(TOP - 1, "bound").rank is None
    weights = MappedFactors(bundle).originals()
    loaded = OnnxRuntimeEngine().load(bundle.file(graph))
    assert {spec.name for spec in loaded.inputs} == {"input", *weights}
    (first, second) = (weights[f"{layer}.weight.T"] for layer in ("0", "2"))
    np.testing.assert_array_equal(first.T, model[0].weight.detach().numpy())
    np.testing.assert_array_equal(second.T, model[2].weight.detach().numpy())


def test_inputs_fixed_once_serve_calls_from_many_threads(model: nn.Module, bundle: Bundle) -> None:
    loaded = OnnxRuntimeEngine().load(bundle.file(bundle.graph(form="bound")))
    fixed = fix_inputs(loaded, MappedFactors(bundle).at(5))
    assert [spec.name for spec in fixed.inputs] == ["input"]
    questions = [np.random.default_rng(n).normal(size=(n, 20)).astype(np.float32) for n in range(1, 5)]
    with at_rank(model, 5), torch.no_grad():
        expected = [model(torch.from_numpy(x)).numpy() for x in questions]
    right: list[bool] = []

    def ask(index: int) -> None:
        x = questions[index]
        right.extend(np.allclose(fixed.run({"input": x})["y"], expected[index], atol=1e-5) for _ in range(50))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 200
    assert all(right)


def test_an_input_that_cannot_be_fixed_is_refused_at_once(bundle: Bundle) -> None:
    loaded = OnnxRuntimeEngine().load(bundle.file(bundle.graph(form="bound")))
    factors = MappedFactors(bundle).at(5)
    with pytest.raises(EngineError, match=r"'0\.A' of bound\.onnx is float64"):
        fix_inputs(loaded, {**factors, "0.A": factors["0.A"].astype(np.float64)})
    fixed = fix_inputs(loaded, factors)
    with pytest.raises(EngineError, match="has no input"):
        fixed.run({"input": X, "0.A": factors["0.A"]})
    loaded.close()
    with pytest.raises(EngineError, match="was closed"):
        fixed.run({"input": X})


def test_prefixes_are_views_of_one_mapping(bundle: Bundle) -> None:
    factors = MappedFactors(bundle)
    low, high = factors.at(2), factors.at(TOP)
    for name, array in low.items():
        assert array.shape[0] <= high[name].shape[0]
        assert array.ctypes.data == high[name].ctypes.data
        assert array.flags.c_contiguous
        assert not array.flags.writeable
    with pytest.raises(RankError, match=r"outside 1\.\.12"):
        factors.at(TOP + 1)


def test_a_factor_that_is_missing_is_named(bundle: Bundle) -> None:
    graph = OnnxRuntimeEngine().load(bundle.file(bundle.graph(form="bound")))
    with pytest.raises(EngineError, match=r"lacks the input '0\.A'"):
        graph.run({"input": X})


def test_a_profile_of_each_form(bundle: Bundle) -> None:
    few = MeasureSettings(warmup=1, min_repetitions=2, min_time_s=0.0, calls_per_turn=1)
    for form in ("bound", "gated"):
        profile = profile_bundle(bundle, OnnxRuntimeEngine(), ProfileSettings(form=form, measure=few))
        assert [rung.rank for rung in profile.rungs] == [3, 8, TOP]
        assert profile.rungs[-1].dense


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", -64, "leads out"),
        ("offset", 1 << 40, "leads out"),
        ("offset", 2, "misaligned"),
        ("shape", [13, 20], "does not fit the layer"),
        ("shape", [12, 1 << 40], "leads out"),
        ("shape", [12, 0], "leads out"),
        ("shape", [12], "bad shape"),
        ("shape", [12, "n"], "bad shape"),
        ("layer", "9", "does not fit the layer '9'"),
        ("name", "input", "names the input 'input' twice"),
        ("dtype", "object", "cannot be object"),
        ("dtype", "nothing", "unknown dtype"),
    ],
)
def test_a_description_that_leads_astray_is_refused(bundle: Bundle, key: str, value: Any, message: str) -> None:
    data = copy.deepcopy(json.loads((bundle.path / "manifest.json").read_text()))
    data["bound_tensors"][0][key] = value
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(data)


@pytest.mark.parametrize("tensors", [[], None, 3, "0.A", [3]])
def test_a_bound_graph_needs_its_description(bundle: Bundle, tensors: Any) -> None:
    data = json.loads((bundle.path / "manifest.json").read_text())
    data["bound_tensors"] = tensors
    with pytest.raises(BundleError):
        Manifest.from_json(data)


def test_a_bundle_without_the_form_binds_nothing(tiny_bundle: tuple[Path, object]) -> None:
    with pytest.raises(BundleError, match="describes no factors"):
        MappedFactors(Bundle.open(tiny_bundle[0]))


def placing(graph: LoadedGraph) -> OnnxRuntimeGraph:
    """As on a GPU: fixed inputs are put on the device, here the processor's own memory."""
    assert isinstance(graph, OnnxRuntimeGraph)
    graph._places = True
    return graph


class PlacingEngine(OnnxRuntimeEngine):
    def load(self, graph_path: Path) -> LoadedGraph:
        return placing(super().load(graph_path))


def test_factors_on_the_device_serve_every_rank(model: nn.Module, bundle: Bundle) -> None:
    with EdgeSession.open(bundle, form="bound", engine=PlacingEngine()) as session:
        for rank in range(1, TOP + 1):
            np.testing.assert_allclose(
                session.run({"input": X}, rank=rank).outputs["y"], wanted(model, rank, "bound"), atol=1e-5
            )


def test_factors_lie_on_the_device_once(model: nn.Module, bundle: Bundle) -> None:
    graph = placing(OnnxRuntimeEngine().load(bundle.file(bundle.graph(form="bound"))))
    factors = MappedFactors(bundle)
    at = {rank: fix_inputs(graph, factors.at(rank)) for rank in (TOP, 3, 8)}  # the largest first
    assert sum(whole.tensor_size_in_bytes() for _, whole in graph._placed.values()) == sum(
        array.nbytes for array in factors.at(TOP).values()
    )
    addresses = [{name: value.data_ptr() for name, value in fixed._placed.items()} for fixed in at.values()]  # type: ignore[attr-defined]
    assert addresses[0] == addresses[1] == addresses[2]
    for rank in (3, 8):
        np.testing.assert_allclose(at[rank].run({"input": X})["y"], wanted(model, rank, "bound"), atol=1e-5)
    graph.close()
    with pytest.raises(EngineError, match="was closed"):
        fix_inputs(graph, factors.at(3))


def test_a_larger_rank_that_comes_later_is_served(model: nn.Module, bundle: Bundle) -> None:
    graph = placing(OnnxRuntimeEngine().load(bundle.file(bundle.graph(form="bound"))))
    small, large = (fix_inputs(graph, MappedFactors(bundle).at(rank)) for rank in (3, 8))
    for rank, fixed in ((3, small), (8, large)):
        np.testing.assert_allclose(fixed.run({"input": X})["y"], wanted(model, rank, "bound"), atol=1e-5)


def test_a_rank_is_left_on_the_processor(model: nn.Module, bundle: Bundle) -> None:
    graph = placing(OnnxRuntimeEngine().load(bundle.file(bundle.graph(form="sliced"))))
    fixed = fix_inputs(graph, {"rank": np.array(5)})
    assert not graph._placed
    np.testing.assert_allclose(fixed.run({"input": X})["y"], wanted(model, 5, "sliced"), atol=1e-5)
