"""`bound`: the factors as inputs, fed with prefixes of the mapped weights file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from nsn_edge.bundle import Bundle, MappedFactors, TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.trace import trace_module
from nsn_edge.layers import at_rank, nsn_layers

Batch = dict[str, np.ndarray]


def test_it_equals_torch_at_every_rank_and_shape(
    bert_checkpoint: Checkpoint, bert_bundle: Bundle, bert_batches: list[Batch]
) -> None:
    session = ort.InferenceSession(str(bert_bundle.file(bert_bundle.graph(form="bound"))))
    factors = MappedFactors(bert_bundle)
    for rank in range(1, 33):
        batch = bert_batches[rank % len(bert_batches)]
        (found,) = session.run(None, {**batch, **factors.at(rank)})
        with at_rank(bert_checkpoint.model, rank), torch.no_grad():
            wanted = bert_checkpoint.model(**{k: torch.from_numpy(v) for k, v in batch.items()}).last_hidden_state
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5, err_msg=f"rank {rank}")


def test_the_graph_holds_no_factor_and_the_manifest_says_where_each_is(
    bert_checkpoint: Checkpoint, bert_bundle: Bundle
) -> None:
    model = onnx.load(str(bert_bundle.file(bert_bundle.graph(form="bound"))), load_external_data=False)
    tensors = {tensor.name: tensor for tensor in bert_bundle.manifest.bound_tensors if not tensor.original}
    assert not set(tensors) & {initializer.name for initializer in model.graph.initializer}
    inputs = [value.name for value in model.graph.input]
    assert inputs == [*(spec.name for spec in bert_bundle.manifest.inputs), *tensors]
    data = (bert_bundle.path / "weights.bin").read_bytes()
    for name, layer in nsn_layers(bert_checkpoint.model).items():
        for factor, suffix in ((layer.A, "A"), (layer.B, "B")):
            tensor = tensors[f"{name}.{suffix}"]
            assert tensor.layer == name
            assert tensor.offset % 64 == 0
            found = np.frombuffer(data[tensor.offset : tensor.end], tensor.dtype).reshape(tensor.shape)
            np.testing.assert_array_equal(found, factor.detach().numpy())


def test_layers_that_share_their_module_share_their_factors(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.relu(self.layer(x)))

    torch.manual_seed(0)
    model = Twice().eval()
    nsnify_(model, NSNConfig(method="svd", align=1))
    checkpoint = Checkpoint(model=model, task=TaskSpec("custom"), name="twice", provenance={})
    graph = trace_module(model, {"x": torch.randn(2, 6)}, ["y"], {"x": {0: "n"}, "y": {0: "n"}})
    config = ExportConfig(fractions=(), ranks=(3,), forms=("bound", "gated"))
    bundle = export_bundle(checkpoint, tmp_path / "twice", config, graph=graph)
    assert [tensor.name for tensor in bundle.manifest.bound_tensors] == ["layer.A", "layer.B", "layer.weight.T"]
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    sessions = {form: ort.InferenceSession(str(bundle.file(bundle.graph(form=form)))) for form in ("bound", "gated")}
    for rank in range(1, 6):
        with at_rank(model, rank), torch.no_grad():
            wanted = model(torch.from_numpy(x)).numpy()
        (bound,) = sessions["bound"].run(None, {"x": x, **MappedFactors(bundle).at(rank)})
        (gated,) = sessions["gated"].run(None, {"x": x, "rank": np.array(rank)})
        np.testing.assert_allclose(bound, wanted, atol=1e-5)
        np.testing.assert_allclose(gated, wanted, atol=1e-5)
