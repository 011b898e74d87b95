"""Models larger than a protobuf may be, and than memory holds twice: no weight passes through the tracer, each is
written from where it lies, and offsets have no end."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from families import family_checkpoint
from torch import nn

from nsn_edge.bundle import TaskSpec
from nsn_edge.checkpoint import WEIGHTS_NAME as CHECKPOINT_WEIGHTS
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.graph import Graph, transposed
from nsn_edge.export.trace import trace, trace_module
from nsn_edge.export.weights import WEIGHTS_NAME, WeightStore
from nsn_edge.ladder import uniform_ladder
from nsn_edge.layers import NSNLinear

MEGABYTE = 1 << 20
GIGABYTE = 1 << 30


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_every_weight_of_a_trace_is_the_model_s_own_memory(family: str) -> None:
    checkpoint = family_checkpoint(family)
    owned = {tensor.data_ptr() for tensor in checkpoint.model.state_dict().values()}
    found = set()
    for name, value in trace(checkpoint).model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        # What is made when it is written, and the sizes and indices that the tracer computed, is no weight.
        if not isinstance(tensor, ir.LazyTensor) and tensor.nbytes > 512:
            address = tensor.numpy().__array_interface__["data"][0]
            assert address in owned, f"{name} is a copy"
            found.add(address)
    assert len(found) > 20


def test_a_head_used_transposed_alone_is_made_when_it_is_written_and_kept_by_nobody() -> None:
    checkpoint = family_checkpoint("qwen2")
    head = trace(checkpoint).model.graph.initializers["lm_head.weight.T"].const_value
    assert isinstance(head, ir.LazyTensor)
    np.testing.assert_array_equal(head.numpy(), checkpoint.model.lm_head.weight.detach().numpy().T)
    assert head.numpy() is not head.numpy()


def test_the_tracer_is_put_back_even_when_a_trace_fails() -> None:
    export = torch.onnx.export
    trace(family_checkpoint("bert"))
    assert torch.onnx.export is export
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    nsnify_(model, NSNConfig(method="svd", align=1))
    with pytest.raises(Exception, match="tracing Sequential failed"):
        trace_module(model, {"input": "not a tensor"}, ["y"], {})  # type: ignore[dict-item]
    assert torch.onnx.export is export


@pytest.mark.parametrize("start", [2 * GIGABYTE, 4 * GIGABYTE, 9 * GIGABYTE])
def test_weights_past_any_number_of_gigabytes_are_found_by_onnxruntime(start: int, tmp_path: Path) -> None:
    import onnxruntime

    factor = np.random.default_rng(0).normal(size=(48, 64)).astype(np.float32)
    with WeightStore(tmp_path) as store:
        store._stream.seek(start)  # a hole: the file takes no room
        store._offset = start
        store.add("A", ir.Tensor(factor))
    reference = store.reference("A", rows=32)
    assert reference.offset == start
    np.testing.assert_array_equal(reference.numpy(), factor[:32])
    x = ir.Value(name="x", shape=ir.Shape(["n", 32]), type=ir.TensorType(ir.DataType.FLOAT))
    a = ir.Value(name="A", shape=reference.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=reference)
    node = ir.Node("", "MatMul", [x, a])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[a], opset_imports={"": 18}, name="far")
    ir.save(ir.Model(graph, ir_version=8), tmp_path / "far.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "far.onnx", providers=["CPUExecutionProvider"])
    eye = np.eye(32, dtype=np.float32)
    np.testing.assert_allclose(session.run(None, {"x": eye})[0], factor[:32], rtol=1e-6)


def test_a_store_holds_no_tensor_and_one_transposed_layer_at_most(tmp_path: Path) -> None:
    layers = [np.full((1024, 1024), number, np.float32) for number in range(4)]  # 4 MB each
    with WeightStore(tmp_path) as store:
        tracemalloc.start()
        try:
            for number, layer in enumerate(layers):
                store.add(f"{number}", ir.Tensor(layer))
            as_they_are = tracemalloc.get_traced_memory()[1]
            for number, layer in enumerate(layers):
                layer[0, 1] = -1.0
                store.add(f"{number}.T", transposed(ir.Tensor(layer)))
            _, at_most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert as_they_are < MEGABYTE
    assert 4 * MEGABYTE < at_most < 6 * MEGABYTE
    assert (tmp_path / WEIGHTS_NAME).stat().st_size == 8 * 4 * MEGABYTE
    assert store.sha256 == hashlib.sha256((tmp_path / WEIGHTS_NAME).read_bytes()).hexdigest()


def wide() -> nn.ModuleList:
    """Layers that are large for their number, their weights not initialised."""
    return nn.ModuleList(nn.utils.skip_init(nn.Linear, 1024, 1024, bias=False) for _ in range(16))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory cannot be reset here")
def test_a_checkpoint_is_loaded_without_holding_its_file_besides(tmp_path: Path) -> None:
    model = wide()
    for layer in uniform_ladder([(str(number), 1024, 1024, 1024) for number in range(16)]).layers:
        factor = torch.full((1024, 1024), float(layer.name))
        model[int(layer.name)] = NSNLinear.from_factors(factor, factor + 1, None, layer.curve)
    Checkpoint(model, TaskSpec("custom"), "wide").save(tmp_path / "wide")
    file_bytes = (tmp_path / "wide" / CHECKPOINT_WEIGHTS).stat().st_size
    assert file_bytes > 128e6
    fresh = wide()
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before = _peak_bytes()
    Checkpoint.load(tmp_path / "wide", model=fresh)
    assert _peak_bytes() - before < 1.25 * file_bytes


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_an_export_tells_of_the_weights_as_they_are_written(
    bert_checkpoint: Checkpoint, bert_graph: Graph, tmp_path: Path
) -> None:
    reports: list[tuple[str, int, int]] = []
    export_bundle(
        bert_checkpoint,
        tmp_path / "bundle",
        ExportConfig(fractions=(0.5,)),
        graph=bert_graph,
        progress=lambda *report: reports.append(report),
    )
    written = [(done, total) for stage, done, total in reports if stage == "weights, MB"]
    assert [done for done, _ in written] == sorted({done for done, _ in written})
    assert written[0] == (0, written[-1][1])
    assert written[-1][0] == written[-1][1] >= 1
