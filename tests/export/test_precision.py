"""Quantised weights: a prefix stays a prefix, the graph computes what the integers say, and nothing else passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from families import family_checkpoint, left_padded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.quantisation import Quantisation
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.errors import BundleError, ExportError, UsageError, VerificationError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.graph import Graph
from nsn_edge.export.precision.int4 import BLOCK_SIZE, quantise_blocks, unpack
from nsn_edge.export.precision.int8 import LEVELS, quantise
from nsn_edge.export.precision.sensitivity import (
    lowest_sparing,
    measure_damage,
    measure_losses,
    parse_keep,
    worst_layers,
)
from nsn_edge.export.precision.simulated import as_quantised, rounded_activations
from nsn_edge.export.trace import trace_module
from nsn_edge.export.verify import verify_bundle
from nsn_edge.ladder import RankCurve
from nsn_edge.layers import NSNLinear, at_rank

Batches = list[dict[str, np.ndarray]]

sizes = st.integers(1, 70)


@given(rows=sizes, columns=sizes, seed=st.integers(0, 1000))
def test_int8_is_within_half_a_step_and_a_prefix_of_itself(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = (rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
    matrix[rng.integers(rows)] = 0
    for axis in (0, 1):
        integers, scales = quantise("w", matrix, axis=axis)
        steps = scales[:, None] if axis == 1 else scales
        assert np.abs(integers).max() <= LEVELS
        assert np.all(np.abs(matrix - integers * steps) <= steps * 0.5001)
    integers, scales = quantise("w", matrix, axis=1)
    rank = 1 + seed % rows
    prefix, prefix_scales = quantise("w", matrix[:rank], axis=1)
    assert np.array_equal(prefix, integers[:rank])
    assert np.array_equal(prefix_scales, scales[:rank])


@given(inputs=sizes, outputs=sizes, seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_int4_is_what_the_operator_computes_with_at_any_rank(inputs: int, outputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((inputs, outputs)).astype(np.float32)
    packed, scales = quantise_blocks("w", matrix)
    weights = unpack(packed, scales, inputs)
    per_weight = np.repeat(np.abs(scales), BLOCK_SIZE, axis=1)[:, :inputs].T
    # The sign of a block's largest weight decides which end gets the eighth step, so the other end may be cut by one.
    assert np.all(np.abs(matrix - weights) <= per_weight * 1.001)
    rank = 1 + seed % inputs
    x = rng.standard_normal((3, rank)).astype(np.float32)
    blocks = -(-rank // BLOCK_SIZE)
    found = run_blocks(x, packed[:, :blocks], scales[:, :blocks])
    assert np.allclose(found, x @ weights[:rank], atol=1e-4)


def run_blocks(x: np.ndarray, packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """`MatMulNBits` by itself, without rounding activations."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=x.shape[1],
        N=len(packed),
        bits=4,
        block_size=BLOCK_SIZE,
    )
    tensors = [numpy_helper.from_array(np.ascontiguousarray(a), n) for a, n in ((packed, "w"), (scales.ravel(), "s"))]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:], tensors),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def single_layer(d_in: int, d_out: int, full: int, seed: int) -> tuple[nn.Module, Graph]:
    torch.manual_seed(seed)
    curve = RankCurve(((1, 1), (full, full))) if full > 1 else RankCurve(((1, 1),))
    A, B = torch.randn(full, d_in), torch.randn(full, d_out)
    layer = NSNLinear.from_factors(A, B, torch.randn(d_out), curve, (A.t() @ B).t().contiguous())
    model = nn.Sequential(layer).eval()
    graph = trace_module(model, {"input": torch.zeros(2, d_in)}, ["y"], {"input": {0: "n"}, "y": {0: "n"}})
    return model, graph


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(("d_in", "d_out", "full"), [(1, 1, 1), (7, 3, 3), (33, 70, 33), (70, 65, 40), (64, 96, 64)])
def test_a_layer_of_odd_sizes_computes_what_its_integers_say(
    precision: str, d_in: int, d_out: int, full: int, tmp_path: Path
) -> None:
    model, graph = single_layer(d_in, d_out, full, seed=d_in)
    checkpoint = Checkpoint(model, plain_task(), "layer", {})
    ranks = tuple(sorted({1, (full + 1) // 2, full}))
    config = ExportConfig(fractions=(), ranks=ranks, dense_top=False, precision=precision, merge=False)
    bundle = export_bundle(checkpoint, tmp_path / "b", config, graph=graph)
    layer = model[0]
    assert isinstance(layer, NSNLinear)
    A, B = layer.A.detach().numpy(), layer.B.detach().numpy()
    x = np.random.default_rng(0).standard_normal((5, d_in)).astype(np.float32)
    for rank in ranks:
        if precision == "int8":
            (qa, sa), (qb, sb) = quantise("A", A, axis=1), quantise("B", B, axis=0)
            wa, wb = qa * sa[:, None], qb * sb
            wanted = rounded(rounded(x) @ wa[:rank].T) @ wb[:rank] + layer.bias.detach().numpy()
            steps = 1e-5
        else:
            wa = unpack(*quantise_blocks("A", np.ascontiguousarray(A.T)), d_in)
            wb = unpack(*quantise_blocks("B", B), full)
            wanted = x @ wa[:, :rank] @ wb[:rank] + layer.bias.detach().numpy()
            steps = 2e-2  # the engine rounds activations per block
        session = onnxruntime.InferenceSession(str(bundle.file(bundle.graph(rank))))
        found = session.run(None, {"input": x})[0]
        # One activation in a thousand may land on the other side of a step.
        assert np.abs(found - wanted).max() <= max(steps, 5e-3) * np.abs(wanted).max()
        with at_rank(model, rank), as_quantised(model, quantisation(bundle)), torch.no_grad():
            assert np.allclose(model(torch.from_numpy(x)).numpy(), wanted, atol=1e-2 * np.abs(wanted).max())


def rounded(x: np.ndarray) -> np.ndarray:
    """`DynamicQuantizeLinear` by the text of its specification."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    return np.asarray((np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point) * scale, dtype=np.float32)


def plain_task() -> Any:
    from nsn_edge.bundle import TaskSpec

    return TaskSpec("custom")


def quantisation(bundle: Bundle) -> Quantisation:
    assert bundle.manifest.quantisation is not None
    return bundle.manifest.quantisation


def test_activations_are_rounded_as_the_operator_does() -> None:
    from onnx import TensorProto, helper

    x = np.random.default_rng(1).standard_normal((4, 33)).astype(np.float32)
    for array in (x, np.abs(x), -np.abs(x), x * 1e-20, np.zeros_like(x)):
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 33]) for name in "xy"]
        model = helper.make_model(
            helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
        )
        found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": array})[0]
        assert np.allclose(found, rounded_activations(torch.from_numpy(array)).numpy(), rtol=1e-6, atol=0)


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantised(
    request: pytest.FixtureRequest,
    bert_checkpoint: Checkpoint,
    bert_graph: Graph,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    kept = bert_checkpoint.ladder.layers[3].name
    config = ExportConfig(fractions=(0.75, 0.5, 0.25), ranks=(1,), precision=request.param, keep_precise=(kept,))
    return export_bundle(bert_checkpoint, tmp_path_factory.mktemp("q") / "bundle", config, graph=bert_graph)


def test_a_quantised_bundle_agrees_with_torch_and_says_what_it_is(
    quantised: Bundle, bert_checkpoint: Checkpoint, bert_batches: Batches
) -> None:
    report = verify_bundle(quantised, bert_checkpoint, bert_batches)
    report.raise_if_failed()
    how = quantisation(quantised)
    assert quantised.manifest.precision == how.precision
    assert {check.precision for check in report.checks} == {how.precision}
    assert how.kept == (bert_checkpoint.ladder.layers[3].name,)
    assert "embeddings.word_embeddings.weight" in how.tables
    assert Bundle.open(quantised.path).manifest == quantised.manifest


def test_every_rung_is_a_prefix_of_the_same_integers(quantised: Bundle) -> None:
    """Same offset in `weights.bin`, shorter length; what is not cut is the same to the byte."""
    ladder = quantised.manifest.ladder
    places: dict[str, dict[int, tuple[int, int]]] = {}
    for rung in ladder.rungs:
        graph = ir.load(quantised.file(quantised.graph(rung.rank))).graph
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                tensor = value.const_value
                places.setdefault(name.split("[")[0], {})[rung.rank] = (tensor.offset or 0, tensor.length or 0)
    suffix = "int8" if quantised.manifest.precision == "int8" else "int4"
    factors = [name for name in places if name.endswith((f".A.{suffix}", f".B.{suffix}"))]
    assert factors
    cut = 0
    for name in factors:
        assert len({offset for offset, _ in places[name].values()}) == 1, name
        lengths = [places[name][rank][1] for rank in sorted(places[name])]
        assert lengths == sorted(lengths)
        cut += lengths[0] < lengths[-1]
    assert cut


def test_scales_do_not_depend_on_the_rungs(bert_checkpoint: Checkpoint, bert_graph: Graph, tmp_path: Path) -> None:
    def stored(ranks: tuple[int, ...]) -> dict[str, np.ndarray]:
        config = ExportConfig(fractions=(), ranks=ranks, dense_top=False, precision="int8")
        bundle = export_bundle(bert_checkpoint, tmp_path / f"to-{ranks[-1]}", config, graph=bert_graph)
        graph = ir.load(bundle.file(bundle.graph(ranks[0]))).graph
        return {name: value.const_value.numpy() for name, value in graph.initializers.items() if value.const_value}

    small, large = stored((4,)), stored((4, 15))
    assert set(small) == set(large)
    for name in small:
        assert np.array_equal(small[name], large[name]), name


def test_one_wrong_scale_is_found_by_name(
    quantised: Bundle, bert_checkpoint: Checkpoint, bert_batches: Batches, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(quantised.path, tmp_path / "damaged"))
    rank = quantised.manifest.ladder.ranks[0]
    graph = ir.load(quantised.file(quantised.graph(rank))).graph
    name, value = next((n, v) for n, v in graph.initializers.items() if ".A." in n and "scale" in n)
    tensor = value.const_value
    if isinstance(tensor, ir.ExternalTensor):
        weights = np.memmap(path / "weights.bin", dtype=np.float32, mode="r+", offset=tensor.offset or 0, shape=(1,))
        weights *= 1.01
        weights.flush()
        named = name.split("[")[0].replace(".", r"\.")
        with pytest.raises(VerificationError, match=f"1 of .* values of {named} are not what the checkpoint gives"):
            verify_bundle(Bundle.open(path, check_hashes=False), bert_checkpoint, bert_batches)
    else:
        pytest.fail(f"{name} is not in weights.bin")


def test_another_checkpoint_is_not_what_was_exported(quantised: Bundle, bert_batches: Batches) -> None:
    checkpoint = family_checkpoint("bert")
    with pytest.raises(UsageError, match="another model"):
        verify_bundle(quantised, checkpoint, bert_batches)


def test_the_engine_fuses_the_standard_operators(
    bert_checkpoint: Checkpoint, bert_graph: Graph, tmp_path: Path
) -> None:
    config = ExportConfig(fractions=(), ranks=(8,), precision="int8")
    bundle = export_bundle(bert_checkpoint, tmp_path / "b", config, graph=bert_graph)
    for rank, products in ((8, 2), (32, 1)):
        graph = ir.load(bundle.file(bundle.graph(rank))).graph
        assert {node.domain for node in graph} == {""}
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{rank}.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(bundle.file(bundle.graph(rank))), options)
        kinds = [node.op_type for node in ir.load(tmp_path / f"{rank}.onnx").graph]
        fused = kinds.count("DynamicQuantizeMatMul") + kinds.count("MatMulIntegerToFloat")
        assert fused == products * len(bert_checkpoint.ladder.layers)
        assert "MatMulInteger" not in kinds


def test_quantised_decoders_agree_with_torch_cache_and_head_included(tmp_path: Path) -> None:
    for family in ("llama", "gpt2"):
        checkpoint = family_checkpoint(family)
        for precision in ("int8", "int4"):
            config = ExportConfig(fractions=(), ranks=(9,), precision=precision)
            bundle = export_bundle(checkpoint, tmp_path / f"{family}-{precision}", config)
            verify_bundle(bundle, checkpoint, [left_padded(3, 17), left_padded(1, 1)]).raise_if_failed()
            how = quantisation(bundle)
            assert how.tables
            assert how.products, f"the head of {family} was not quantised"


def test_float16_from_float32_leaves_the_checkpoint_as_it_was(
    bert_checkpoint: Checkpoint, bert_batches: Batches, tmp_path: Path
) -> None:
    config = ExportConfig(fractions=(), ranks=(8,), forms=("static", "sliced"), precision="fp16")
    bundle = export_bundle(bert_checkpoint, tmp_path / "half", config)
    assert bundle.manifest.precision == "fp16"
    assert {parameter.dtype for parameter in bert_checkpoint.model.parameters()} == {torch.float32}
    verify_bundle(bundle, bert_checkpoint, bert_batches).raise_if_failed()


def test_weights_past_float16_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = family_checkpoint("bert")
    next(checkpoint.model.parameters()).data[0, 0] = 1e6
    with pytest.raises(UsageError, match=r"embeddings.*past float16's largest"):
        export_bundle(checkpoint, tmp_path / "half", ExportConfig(fractions=(), ranks=(8,), precision="fp16"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int3"}, "unknown precision 'int3' (the precisions are fp32, fp16, int8, int4)"),
        ({"precision": "int8", "forms": ("static", "sliced")}, "there is no sliced form in int8 (int8 has static;"),
        ({"precision": "int4", "forms": ("bound",)}, "there is no bound form in int4"),
        ({"precision": "fp16", "keep_precise": ("x",)}, "kept as it is"),
        ({"forms": ()}, "no form asked for"),
    ],
)
def test_pairs_that_do_not_exist_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ExportConfig(**arguments)
    assert message in str(caught.value)


def test_what_cannot_be_quantised_is_refused(bert_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no nested layer is called 'nowhere'"):
        export_bundle(bert_checkpoint, tmp_path / "b", ExportConfig(precision="int8", keep_precise=("nowhere",)))
    for precision in ("int8", "int4"):
        model, graph = single_layer(8, 8, 8, seed=0)
        model[0].A.data[3, 3] = torch.nan  # type: ignore[index, union-attr]
        checkpoint = Checkpoint(model, plain_task(), "nan", {})
        config = ExportConfig(fractions=(), ranks=(2,), dense_top=False, precision=precision)
        with pytest.raises(ExportError, match=r"0\.A.* holds values that are not finite"):
            export_bundle(checkpoint, tmp_path / "nan", config, graph=graph)
        assert not (tmp_path / "nan").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int3"}, "not of int8 or int4"),
        ({"kept": ["nowhere"]}, "which the ladder has not"),
        ({"tables": "all"}, "not a list of names"),
        ({"originals": 1}, "'originals'"),
        ({"block_size": 0}, "block size 0"),
        ({"kept_from": 0}, "'kept_from'"),
    ],
)
def test_a_manifest_with_a_senseless_quantisation_is_refused(
    quantised: Bundle, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(quantised.path, tmp_path / "b"))
    data = json.loads((path / "manifest.json").read_text())
    data["quantisation"].update(change)
    (path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=message):
        Bundle.open(path)


def test_the_layer_that_suffers_is_found(bert_batches: Batches) -> None:
    checkpoint = family_checkpoint("bert")
    names = [layer.name for layer in checkpoint.ladder.layers]
    config = ExportConfig(fractions=(), ranks=(4,), precision="int8")
    batches = [
        {"input_ids": batch["input_ids"] % 50, "attention_mask": batch["attention_mask"]} for batch in bert_batches
    ]
    before = measure_damage(checkpoint, config, batches)
    assert list(before) == names
    assert all(0 < value < 1 for value in before.values())
    victim = dict(checkpoint.model.named_modules())[names[4]]
    assert isinstance(victim, NSNLinear)
    assert victim.weight is not None
    victim.weight[:, 0] *= 1000  # one input so large that the step of its scale swallows all others
    after = measure_damage(checkpoint, config, batches)
    assert after[names[4]] > 3 * before[names[4]]
    ranked = sorted(names, key=lambda name: -after[name])
    assert worst_layers(after, 3) == tuple(ranked[:3])
    assert set(worst_layers({**before, "far out": 1.0}, "auto")) >= {"far out"}
    damage = after
    assert worst_layers(damage, 0) == ()
    with pytest.raises(UsageError, match=f"has {len(names)} nested layers"):
        worst_layers(damage, len(names) + 1)


def test_a_rung_that_loses_much_itself_spares_no_layer() -> None:
    damage = {"a": 0.03, "b": 0.04, "c": 1.0}
    losses = {16: 0.5, 32: 0.21, 64: 0.19, 96: 0.0}
    assert lowest_sparing(damage, ("a", "b"), losses) == 64  # together 0.05, more than a quarter of 0.19
    assert lowest_sparing(damage, (), losses) == 1


def test_the_loss_of_a_rung_is_what_torch_loses_at_its_rank(bert_batches: Batches) -> None:
    checkpoint = family_checkpoint("bert")
    batch = {name: bert_batches[0][name] % 50 for name in ("input_ids", "attention_mask")}
    batch["attention_mask"] = np.ones_like(batch["attention_mask"])
    losses = measure_losses(checkpoint, ExportConfig(fractions=(), ranks=(2, 8), precision="int8"), [batch])
    inputs = {name: torch.from_numpy(value) for name, value in batch.items()}
    with torch.no_grad():
        dense = checkpoint.model(**inputs).last_hidden_state
        with at_rank(checkpoint.model, 8):
            cut = checkpoint.model(**inputs).last_hidden_state
    top = checkpoint.ladder.max_rank
    assert list(losses) == [2, 8, top]
    assert losses[8] == pytest.approx(float((cut - dense).norm() / dense.norm()), rel=1e-3)
    assert losses[2] > losses[8] > losses[top] == 0


def test_layers_are_spared_from_a_rank_on(
    bert_checkpoint: Checkpoint, bert_graph: Graph, bert_batches: Batches, tmp_path: Path
) -> None:
    kept = bert_checkpoint.ladder.layers[3].name
    config = ExportConfig(fractions=(), ranks=(4, 8), precision="int8", keep_precise=(kept,), keep_from=8)
    bundle = export_bundle(bert_checkpoint, tmp_path / "b", config, graph=bert_graph)
    assert (quantisation(bundle).kept, quantisation(bundle).kept_from) == ((kept,), 8)
    ranges = {}
    for rank in bundle.manifest.ladder.ranks:
        nodes = ir.load(bundle.file(bundle.graph(rank))).graph
        ranges[rank] = sum(node.op_type == "ReduceMax" for node in nodes)
    assert ranges == {4: 0, 8: 1, bundle.manifest.ladder.max_rank: 1}
    verify_bundle(bundle, bert_checkpoint, bert_batches).raise_if_failed()


def test_how_many_layers_to_keep_is_read() -> None:
    assert (parse_keep(None, None), parse_keep("3", "int8"), parse_keep("auto", "int4")) == (0, 3, "auto")
    with pytest.raises(UsageError, match="add --precision int8 or int4"):
        parse_keep("3", "fp16")
    with pytest.raises(UsageError, match="a number of layers or auto, not '-1'"):
        parse_keep("-1", "int8")
