"""`gated`: one file that holds every rung's graph, each weight once, and serves any rank."""

from __future__ import annotations

from collections.abc import Iterator
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
from nsn_edge.layers import at_dense, at_rank
from nsn_edge.runtimes.engines import OnnxRuntimeEngine

Batch = dict[str, np.ndarray]


def answer(checkpoint: Checkpoint, batch: Batch, rank: int | None) -> np.ndarray:
    scope = at_dense(checkpoint.model) if rank is None else at_rank(checkpoint.model, rank)
    with scope, torch.no_grad():
        return checkpoint.model(**{k: torch.from_numpy(v) for k, v in batch.items()}).last_hidden_state.numpy()


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from subgraphs(attribute.g)


def test_it_equals_torch_at_every_rank_and_shape(
    bert_checkpoint: Checkpoint, bert_bundle: Bundle, bert_batches: list[Batch]
) -> None:
    session = ort.InferenceSession(str(bert_bundle.file(bert_bundle.graph(form="gated"))))
    for rank in range(1, 33):
        batch = bert_batches[rank % len(bert_batches)]
        (found,) = session.run(None, {**batch, "rank": np.array(rank)})
        np.testing.assert_allclose(found, answer(bert_checkpoint, batch, rank), atol=1e-5, err_msg=f"rank {rank}")


def test_its_top_rung_is_the_original_where_the_ladder_says_so(
    bert_checkpoint: Checkpoint, bert_graph: Graph, bert_batches: list[Batch], tmp_path: Path
) -> None:
    """Trained on, the factors no longer multiply to the original: the dense rung must not notice."""
    layer = bert_checkpoint.model.encoder.layer[0].output.dense
    with torch.no_grad():
        layer.A.mul_(2)  # a power of two: undone exactly
    try:
        answers = {}
        for dense in (True, False):
            config = ExportConfig(fractions=(), ranks=(9, 32), dense_top=dense, forms=("gated",))
            bundle = export_bundle(bert_checkpoint, tmp_path / str(dense), config, graph=bert_graph)
            session = ort.InferenceSession(str(bundle.file(bundle.graph(form="gated"))))
            (answers[dense],) = session.run(None, {**bert_batches[1], "rank": np.array(32)})
        nested = answer(bert_checkpoint, bert_batches[1], 32)
        original = answer(bert_checkpoint, bert_batches[1], None)
    finally:
        with torch.no_grad():
            layer.A.div_(2)
    np.testing.assert_allclose(answers[True], original, atol=1e-5)
    np.testing.assert_allclose(answers[False], nested, atol=1e-5)
    assert np.abs(nested - original).max() > 1e-3


@pytest.mark.parametrize("rank", [0, -1, -32, 33, 2**40, -(2**63)])
def test_a_rank_outside_fails_instead_of_clamping(rank: int, bert_bundle: Bundle, bert_batches: list[Batch]) -> None:
    graph = OnnxRuntimeEngine().load(bert_bundle.file(bert_bundle.graph(form="gated")))
    with pytest.raises(Exception, match=r"rank_outside_1\.\.32"):
        graph.run({**bert_batches[0], "rank": np.array(rank)})


def test_every_branch_refers_to_the_same_bytes(bert_bundle: Bundle) -> None:
    """Each factor begins at one offset in all branches, and no branch brings weights of its own."""
    artifact = bert_bundle.graph(form="gated")
    model = onnx.load(str(bert_bundle.file(artifact)), load_external_data=False)
    graphs = list(subgraphs(model.graph))
    rungs = bert_bundle.manifest.ladder.rungs
    assert sum(graph.name.startswith("rank-") for graph in graphs) == len(rungs)
    offsets: dict[str, set[int]] = {}
    ends: dict[int, int] = {}
    for graph in graphs:
        for tensor in graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert len(tensor.raw_data) <= 1 << 16
            if entries:
                name = tensor.name.split("/", 1)[1].split("[")[0]
                offset = int(entries["offset"])
                offsets.setdefault(name, set()).add(offset)
                ends[offset] = max(ends.get(offset, 0), offset + int(entries["length"]))
    assert sum(".A" in name or ".B" in name for name in offsets) == 2 * 12
    assert all(len(found) == 1 for found in offsets.values())
    assert artifact.weight_bytes == sum(end - offset for offset, end in ends.items())


def test_a_ladder_without_rungs_still_serves_every_rank(
    bert_checkpoint: Checkpoint, bert_graph: Graph, bert_batches: list[Batch], tmp_path: Path
) -> None:
    config = ExportConfig(fractions=(), ranks=(32,), dense_top=False, forms=("gated",))
    bundle = export_bundle(bert_checkpoint, tmp_path / "b", config, graph=bert_graph)
    session = ort.InferenceSession(str(bundle.file(bundle.graph(form="gated"))))
    for rank in (1, 17, 32):
        (found,) = session.run(None, {**bert_batches[0], "rank": np.array(rank)})
        np.testing.assert_allclose(found, answer(bert_checkpoint, bert_batches[0], rank), atol=1e-5)
