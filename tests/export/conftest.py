"""A small random BERT, cut into nested factors, and its bundle: everything that export does, in a second."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from nsn_edge.bundle import Bundle, TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.graph import Graph
from nsn_edge.export.trace import trace


@pytest.fixture(scope="session")
def bert_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():  # biases start at zero: make them count
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    nsnify_(model, NSNConfig(method="svd", align=1))
    return Checkpoint(
        model=model, task=TaskSpec("feature-extraction", "mean", True, 64), name="tiny-bert", provenance={}
    )


@pytest.fixture(scope="session")
def bert_graph(bert_checkpoint: Checkpoint) -> Graph:
    return trace(bert_checkpoint)


@pytest.fixture(scope="session")
def bert_bundle(bert_checkpoint: Checkpoint, bert_graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("export") / "bundle"
    config = ExportConfig(fractions=(0.75, 0.5, 0.25), ranks=(1, 31))
    return export_bundle(bert_checkpoint, path, config, graph=bert_graph)


@pytest.fixture(scope="session")
def bert_batches() -> list[dict[str, np.ndarray]]:
    """Other shapes than the traced one, one of them padded on the left and on the right."""
    rng = np.random.default_rng(0)
    batches = []
    for batch, length in ((1, 1), (3, 17), (5, 40)):
        mask = np.ones((batch, length), np.int64)
        if length > 4:
            mask[0, -3:] = 0
            mask[1, :2] = 0
        batches.append(
            {
                "input_ids": rng.integers(0, 120, (batch, length)),
                "attention_mask": mask,
                "token_type_ids": rng.integers(0, 2, (batch, length)),
            }
        )
    return batches


@pytest.fixture(scope="session")
def wide_checkpoint() -> Checkpoint:
    """One layer, and ranks up to 128: enough for weights to count beside an engine's kernels."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=32,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    nsnify_(model, NSNConfig(method="svd"))
    return Checkpoint(model=model, task=TaskSpec("feature-extraction", "mean", True, 32), name="wide", provenance={})


@pytest.fixture(scope="session")
def wide_bundle(wide_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Rungs 40, factored, 120, past the break-even of every layer, and 128, dense; forms static and sliced."""
    config = ExportConfig(fractions=(), ranks=(40, 120), forms=("static", "sliced"))
    return export_bundle(wide_checkpoint, tmp_path_factory.mktemp("wide") / "bundle", config)
