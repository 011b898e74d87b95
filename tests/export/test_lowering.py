"""Every form against torch, at every rank; and the promises that each form makes about its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from nsn_edge.bundle import Bundle, TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.trace import trace_module
from nsn_edge.layers import at_dense, at_rank
from nsn_edge.runtimes.engines import OnnxRuntimeEngine


def torch_answer(checkpoint: Checkpoint, batch: dict[str, np.ndarray], rank: int | None) -> np.ndarray:
    scope = at_dense(checkpoint.model) if rank is None else at_rank(checkpoint.model, rank)
    with scope, torch.no_grad():
        return checkpoint.model(**{k: torch.from_numpy(v) for k, v in batch.items()}).last_hidden_state.numpy()


@pytest.mark.parametrize("form", ["sliced", "masked"])
def test_dynamic_forms_equal_torch_at_every_rank(
    form: str, bert_checkpoint: Checkpoint, bert_bundle: Bundle, bert_batches: list[dict[str, np.ndarray]]
) -> None:
    session = ort.InferenceSession(str(bert_bundle.file(bert_bundle.graph(form=form))))
    batch = bert_batches[1]
    for rank in range(1, 33):
        (found,) = session.run(None, {**batch, "rank": np.array(rank)})
        np.testing.assert_allclose(found, torch_answer(bert_checkpoint, batch, rank), atol=1e-5, err_msg=f"rank {rank}")


def test_static_rungs_equal_torch_at_every_rank(
    bert_checkpoint: Checkpoint, bert_graph: object, bert_batches: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    config = ExportConfig(fractions=(), ranks=tuple(range(1, 33)), dense_top=False, forms=("static",))
    bundle = export_bundle(bert_checkpoint, tmp_path / "all", config, graph=bert_graph)
    for rank in range(1, 33):
        session = ort.InferenceSession(str(bundle.file(bundle.graph(rank))))
        for batch in bert_batches:
            (found,) = session.run(None, batch)
            np.testing.assert_allclose(found, torch_answer(bert_checkpoint, batch, rank), atol=1e-5)


def test_the_dense_rung_is_the_original(
    bert_checkpoint: Checkpoint, bert_bundle: Bundle, bert_batches: list[dict[str, np.ndarray]]
) -> None:
    session = ort.InferenceSession(str(bert_bundle.file(bert_bundle.graph(32))))
    for batch in bert_batches:
        (found,) = session.run(None, batch)
        np.testing.assert_allclose(found, torch_answer(bert_checkpoint, batch, None), atol=1e-5)


@pytest.mark.parametrize("form", ["sliced", "masked"])
@pytest.mark.parametrize("rank", [0, -1, -32, 33, 2**40, -(2**63)])
def test_a_rank_outside_fails_instead_of_clamping(
    form: str, rank: int, bert_bundle: Bundle, bert_batches: list[dict[str, np.ndarray]]
) -> None:
    graph = OnnxRuntimeEngine().load(bert_bundle.file(bert_bundle.graph(form=form)))
    with pytest.raises(Exception, match=r"out of data bounds|outside"):
        graph.run({**bert_batches[0], "rank": np.array(rank)})


def test_every_graph_passes_the_onnx_checker(bert_bundle: Bundle) -> None:
    for artifact in bert_bundle.manifest.artifacts:
        if artifact.kind == "graph":
            onnx.checker.check_model(str(bert_bundle.file(artifact)), full_check=True)


def test_rungs_are_prefixes_of_the_same_bytes(bert_bundle: Bundle) -> None:
    """The external data of a factor starts at one offset in all graphs, and is longer at higher ranks."""
    spans: dict[str, set[tuple[int, int]]] = {}
    for rank in bert_bundle.manifest.ladder.ranks[:-1]:
        model = onnx.load(str(bert_bundle.file(bert_bundle.graph(rank))), load_external_data=False)
        for tensor in model.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if "offset" in entries and "[:" in tensor.name:
                spans.setdefault(tensor.name.split("[")[0], set()).add((int(entries["offset"]), tensor.dims[0]))
    assert len(spans) == 2 * 12
    for name, found in spans.items():
        assert len({offset for offset, _ in found}) == 1, name
        assert {rows for _, rows in found} == set(bert_bundle.manifest.ladder.ranks[:-1]), name


def test_past_break_even_a_layer_runs_merged(bert_bundle: Bundle, tmp_path: Path) -> None:
    """After onnxruntime folded its constants, a merged layer is one product, a factored one is two."""
    ladder = bert_bundle.manifest.ladder

    def products(rank: int) -> int:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / f"{rank}.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(str(bert_bundle.file(bert_bundle.graph(rank))), options)
        model = onnx.load(options.optimized_model_filepath, load_external_data=False)
        return sum(node.op_type in ("MatMul", "Gemm", "FusedMatMul") for node in model.graph.node)

    attention = 2 * 2  # scores and values, in each of two blocks: activations only
    merged_at_31 = sum(layer.is_merged(31) for layer in ladder.layers)
    assert merged_at_31 == 12
    assert products(31) == 12 + attention
    assert products(1) == 2 * 12 + attention
    half = ladder.rank_for_fraction(0.75)
    merged = sum(layer.is_merged(layer.curve(half)) for layer in ladder.layers)
    assert products(half) == 2 * (12 - merged) + merged + attention


def test_layers_of_different_sizes_without_bias_in_a_plain_module(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 12, bias=False), torch.nn.Linear(12, 3)
    ).eval()
    nsnify_(model, NSNConfig(method="svd", align=1))
    checkpoint = Checkpoint(model=model, task=TaskSpec("custom"), name="plain", provenance={})
    axes = {"input": {0: "batch_size", 1: "steps"}, "output": {0: "batch_size", 1: "steps"}}
    graph = trace_module(model, {"input": torch.randn(2, 4, 5)}, ["output"], axes)
    bundle = export_bundle(checkpoint, tmp_path / "plain", ExportConfig(fractions=(), ranks=(1, 4, 9)), graph=graph)
    x = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    for form in ("sliced", "masked"):
        session = ort.InferenceSession(str(bundle.file(bundle.graph(form=form))))
        for rank in range(1, 13):
            with at_rank(model, rank), torch.no_grad():
                wanted = model(torch.from_numpy(x)).numpy()
            (found,) = session.run(None, {"input": x, "rank": np.array(rank)})
            np.testing.assert_allclose(found, wanted, atol=1e-5)
