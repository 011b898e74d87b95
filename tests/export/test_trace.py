"""The trace: one node per nested layer, factors as views, and the model left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nsn_edge.bundle import TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import ExportError, UnsupportedModelError, UsageError
from nsn_edge.export.graph import Graph, nested_nodes
from nsn_edge.export.trace import trace, trace_module
from nsn_edge.layers import nsn_layers


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 4, bias=False)
        self.spare = nn.Linear(4, 4)
        self.use_spare = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(torch.relu(self.first(x)))
        return self.spare(y) if self.use_spare else y


def nested_module() -> TwoLayers:
    torch.manual_seed(1)
    model = TwoLayers().eval()
    nsnify_(model, NSNConfig(method="svd", align=1))
    return model


AXES = {"x": {0: "batch_size"}, "y": {0: "batch_size"}}


def test_one_node_per_nested_layer_with_its_factors(bert_checkpoint: Checkpoint, bert_graph: Graph) -> None:
    layers = nsn_layers(bert_checkpoint.model)
    nodes = nested_nodes(bert_graph.model)
    assert sorted(node.layer for node in nodes) == sorted(layers)
    assert len(nodes) == 2 * 6
    for node in nodes:
        layer = layers[node.layer]
        np.testing.assert_array_equal(node.a.const_value.numpy(), layer.A.detach().numpy())
        np.testing.assert_array_equal(node.b.const_value.numpy(), layer.B.detach().numpy())
        np.testing.assert_array_equal(node.weight.const_value.numpy(), layer.weight.numpy())


def test_factors_are_views_not_copies(bert_checkpoint: Checkpoint, bert_graph: Graph) -> None:
    layers = nsn_layers(bert_checkpoint.model)
    node = nested_nodes(bert_graph.model)[0]
    assert np.shares_memory(node.a.const_value.numpy(), layers[node.layer].A.detach().numpy())


def test_the_model_answers_as_before_after_a_trace() -> None:
    model = nested_module()
    x = torch.randn(3, 6)
    before = model(x)
    trace_module(model, {"x": torch.randn(2, 6)}, ["y"], AXES)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert all("forward" not in layer.__dict__ for layer in nsn_layers(model).values())


def test_a_failed_trace_names_the_model_and_restores_it() -> None:
    model = nested_module()
    x = torch.randn(3, 6)
    before = model(x)
    with pytest.raises(ExportError, match="tracing TwoLayers failed: AttributeError"):
        trace_module(model, {"x": "not a tensor"}, ["y"], AXES)  # type: ignore[dict-item]
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_a_layer_that_is_never_reached_is_named() -> None:
    model = nested_module()
    model.use_spare = False
    with pytest.raises(ExportError, match="never reaches the nested layer 'spare'"):
        trace_module(model, {"x": torch.randn(2, 6)}, ["y"], AXES)


def test_a_layer_used_twice_becomes_two_nodes_over_one_set_of_factors() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.relu(self.layer(x)))

    model = Twice().eval()
    nsnify_(model, NSNConfig(method="svd", align=1))
    nodes = nested_nodes(trace_module(model, {"x": torch.randn(2, 6)}, ["y"], AXES).model)
    assert [node.layer for node in nodes] == ["layer", "layer"]
    assert nodes[0].a is nodes[1].a


def test_a_model_without_nested_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no nested layers"):
        trace_module(TwoLayers(), {"x": torch.randn(2, 6)}, ["y"], AXES)


def test_a_plain_module_is_sent_to_trace_module() -> None:
    checkpoint = Checkpoint(model=nested_module(), task=TaskSpec("custom"), name="plain", provenance={})
    with pytest.raises(UsageError, match="trace_module"):
        trace(checkpoint)


def test_a_task_that_the_architecture_does_not_have_is_named(bert_checkpoint: Checkpoint) -> None:
    checkpoint = Checkpoint(
        model=bert_checkpoint.model, task=TaskSpec("image-classification"), name="bert", provenance={}
    )
    with pytest.raises(UnsupportedModelError, match="image-classification"):
        trace(checkpoint)
