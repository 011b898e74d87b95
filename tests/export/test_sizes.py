"""Sizes are settled where their names prove them, and vary as before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nsn_edge.bundle import Bundle
from nsn_edge.export.simplify import simplify_


def _run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def _model(nodes: list[onnx.NodeProto], **constants: list[int] | int) -> onnx.ModelProto:
    """A graph from `x [batch, length, 6]` and `mask [batch, length]` to `y`."""
    graph = helper.make_graph(
        nodes,
        "traced",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 6]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", "length"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=[
            numpy_helper.from_array(np.array(numbers, dtype=np.int64), name) for name, numbers in constants.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _checked(model: onnx.ModelProto) -> onnx.GraphProto:
    """Simplified, and found to compute the same at several sizes."""
    changed = ir.from_proto(model)
    simplify_(changed)
    proto = ir.to_proto(changed)
    onnx.checker.check_model(proto)
    names = {value.name for value in proto.graph.input}
    for batch, length in ((1, 1), (2, 5), (5, 2), (3, 3)):
        rng = np.random.default_rng(batch)
        feeds = {
            "x": rng.standard_normal((batch, length, 6)).astype(np.float32),
            "mask": rng.standard_normal((batch, length)).astype(np.float32),
        }
        assert names == set(feeds)
        wanted, found = _run(model, **feeds), _run(proto, **feeds)
        assert wanted.shape == found.shape
        np.testing.assert_array_equal(wanted, found)
    return proto.graph


def _size(of: str, axis: str, name: str) -> list[onnx.NodeProto]:
    """`name [1]`: a size as a tracer writes it."""
    return [
        helper.make_node("Shape", [of], [f"{name}.shape"]),
        helper.make_node("Gather", [f"{name}.shape", axis], [f"{name}.number"], axis=0),
        helper.make_node("Unsqueeze", [f"{name}.number", "v0"], [name]),
    ]


NUMBERS = {"v0": [0], "v1": [1], "v2": [2], "v3": [3], "v6": [6], "minus": [-1], "zero": 0, "one": 1}


def _kinds(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


def _target(graph: onnx.GraphProto) -> list[int]:
    (node,) = [node for node in graph.node if node.op_type == "Reshape"]
    (tensor,) = [tensor for tensor in graph.initializer if tensor.name == node.input[1]]
    return [int(number) for number in numpy_helper.to_array(tensor)]


@pytest.mark.parametrize("parts", [["b", "s", "v2", "v3"], ["b", "minus", "v2", "v3"], ["b", "s", "minus", "v3"]])
def test_a_target_made_of_the_inputs_own_sizes_is_a_constant_with_one_size_open(parts: list[str]) -> None:
    graph = _checked(
        _model(
            [
                *_size("mask", "zero", "b"),  # of another tensor, whose size has the same name
                *_size("x", "one", "s"),
                helper.make_node("Concat", parts, ["target"], axis=0),
                helper.make_node("Reshape", ["x", "target"], ["y"]),
            ],
            **NUMBERS,
        )
    )
    assert _kinds(graph) == {"Reshape": 1}
    assert _target(graph) == [0, -1, 2, 3]


def test_sizes_in_another_order_are_left_to_the_run() -> None:
    """`[length, batch, 6]`: neither axis is the input's own, so both numbers are needed."""
    graph = _checked(
        _model(
            [
                *_size("x", "zero", "b"),
                *_size("x", "one", "s"),
                helper.make_node("Concat", ["s", "b", "v6"], ["target"], axis=0),
                helper.make_node("Reshape", ["x", "target"], ["y"]),
            ],
            **NUMBERS,
        )
    )
    assert _kinds(graph)["Concat"] == 1


def test_a_size_that_is_a_number_is_computed() -> None:
    graph = _checked(
        _model(
            [
                helper.make_node("Shape", ["x"], ["shape"]),
                helper.make_node("Slice", ["shape", "minus", "large"], ["last"]),
                helper.make_node("Cast", ["last"], ["width"], to=TensorProto.FLOAT),
                helper.make_node("Sqrt", ["width"], ["root"]),
                helper.make_node("Div", ["x", "root"], ["y"]),
            ],
            minus=[-1],
            large=[2**62],
        )
    )
    assert _kinds(graph) == {"Div": 1}


def _expanded(*rest: onnx.NodeProto) -> onnx.ModelProto:
    """`wide [batch, length, length]` of the mask, and what is done with it."""
    return _model(
        [
            *_size("mask", "zero", "b"),
            *_size("mask", "one", "s"),
            helper.make_node("Concat", ["b", "s", "s"], ["target"], axis=0),
            helper.make_node("Unsqueeze", ["mask", "v1"], ["narrow"]),
            helper.make_node("Expand", ["narrow", "target"], ["wide"]),
            helper.make_node("Transpose", ["x"], ["xt"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["x", "xt"], ["scores"]),
            *rest,
        ],
        **NUMBERS,
    )


def test_what_broadcasts_anyway_is_not_expanded_first() -> None:
    graph = _checked(
        _expanded(
            helper.make_node("Neg", ["wide"], ["negative"]),
            helper.make_node("Mul", ["negative", "negative"], ["square"]),
            helper.make_node("Add", ["scores", "square"], ["y"]),
        )
    )
    kinds = _kinds(graph)
    assert not kinds.keys() & {"Expand", "Shape", "Concat"}


@pytest.mark.parametrize(
    "rest",
    [
        [helper.make_node("Neg", ["wide"], ["y"])],
        [helper.make_node("Add", ["wide", "narrow"], ["y"])],
        [helper.make_node("MatMul", ["wide", "scores"], ["y"])],
        [helper.make_node("Neg", ["wide"], ["other"]), helper.make_node("ReduceSum", ["other"], ["y"])],
    ],
    ids=["an output", "widened by nothing else", "a product", "a sum"],
)
def test_an_expansion_that_counts_stays(rest: list[onnx.NodeProto]) -> None:
    assert _kinds(_checked(_expanded(*rest)))["Expand"] == 1


def test_a_size_that_depends_on_values_stays_computed() -> None:
    graph = _checked(
        _model(
            [
                helper.make_node("NonZero", ["mask"], ["places"]),
                helper.make_node("Shape", ["places"], ["found"]),
                helper.make_node("Slice", ["found", "v1", "v2"], ["count"]),
                helper.make_node("Cast", ["count"], ["y"], to=TensorProto.FLOAT),
            ],
            **NUMBERS,
        )
    )
    assert _kinds(graph)["Shape"] == 1


def test_every_form_of_a_transformer_has_its_sizes_settled(bert_bundle: Bundle, tmp_path: Path) -> None:
    """And onnxruntime is not led to merge additions with normalisations, which is slower."""
    for form in ("static", "sliced", "bound"):
        path = bert_bundle.file(bert_bundle.graph(bert_bundle.manifest.ladder.max_rank, form))
        nodes = list(ir.load(path).graph)
        targets = [node.inputs[1] for node in nodes if node.op_type == "Reshape"]
        assert targets
        for target in targets:
            assert target is not None
            assert target.const_value is not None
            assert (target.const_value.numpy() == -1).sum() == 1
        assert not [node for node in nodes if node.op_type == "Expand"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / f"{form}.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        fused = Counter(
            node.op_type for node in onnx.load(tmp_path / f"{form}.onnx", load_external_data=False).graph.node
        )
        assert fused["LayerNormalization"] == 5
        assert not fused["SkipLayerNormalization"]
