"""Rungs that share the mapped weights: nothing is multiplied out, nothing is folded, nothing differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from nsn_edge.bundle import Bundle
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.graph import Graph
from nsn_edge.layers import at_rank
from nsn_edge.runtimes.engines import OnnxRuntimeEngine


@pytest.fixture(scope="module")
def unmerged(bert_checkpoint: Checkpoint, bert_graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = ExportConfig(fractions=(), ranks=(7, 31), forms=("static", "gated"), merge=False)
    return export_bundle(bert_checkpoint, tmp_path_factory.mktemp("unmerged") / "bundle", config, graph=bert_graph)


def test_no_layer_is_merged(unmerged: Bundle) -> None:
    ladder = unmerged.manifest.ladder
    assert all(layer.is_merged(layer.curve(31)) for layer in ladder.layers)
    attention = 2 * 2  # scores and values, in each of two blocks
    model = onnx.load(str(unmerged.file(unmerged.graph(31))), load_external_data=False)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 2 * len(ladder.layers) + attention


def test_a_sharing_engine_keeps_the_transposed_factors_out_of_memory(unmerged: Bundle, tmp_path: Path) -> None:
    """What the engine executes has every transposition inside a product, and every factor still in the weights file."""
    options = OnnxRuntimeEngine(share_weights=True)._options(ort)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(unmerged.file(unmerged.graph(7))), options)
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    fused = [node for node in graph.node if node.op_type == "FusedMatMul" and ".A[" in node.input[1]]
    assert len(fused) == len(unmerged.manifest.ladder.layers)
    assert {tensor.name for tensor in graph.initializer} >= {node.input[1] for node in fused}


@pytest.mark.parametrize("share_weights", [False, True])
def test_the_answers_are_torchs(
    unmerged: Bundle, bert_checkpoint: Checkpoint, bert_batches: list[dict[str, np.ndarray]], share_weights: bool
) -> None:
    engine = OnnxRuntimeEngine(share_weights=share_weights)
    gated = engine.load(unmerged.file(unmerged.graph(form="gated")))
    for rank in (7, 31):
        static = engine.load(unmerged.file(unmerged.graph(rank)))
        for batch in bert_batches:
            with at_rank(bert_checkpoint.model, rank), torch.no_grad():
                wanted = bert_checkpoint.model(**{k: torch.from_numpy(v) for k, v in batch.items()}).last_hidden_state
            (found,) = static.run(batch).values()
            (also,) = gated.run({**batch, "rank": np.array(rank)}).values()
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
            np.testing.assert_allclose(also, wanted.numpy(), atol=1e-5)
