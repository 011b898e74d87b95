"""A simplified trace computes what the trace did, at every size, with fewer nodes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nsn_edge.export.simplify import simplify_


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def _model(nodes: list[onnx.NodeProto], notes: list[onnx.ValueInfoProto] = []) -> onnx.ModelProto:  # noqa: B006
    """A graph from `x [n, 4]` to `y [n, ...]`, with the weight `w [4, 400]`."""
    weight = np.random.default_rng(0).standard_normal((4, 400)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "traced",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=[numpy_helper.from_array(weight, "w")],
        value_info=notes,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _constant(name: str, values: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, dtype=np.int64)))


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = ir.from_proto(model)
    simplify_(changed)
    return ir.to_proto(changed)


def _kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_arithmetic_on_constants_is_done_and_repeats_are_shared() -> None:
    model = _model(
        [
            _constant("two", [2]),
            _constant("one", [1]),
            helper.make_node("Mul", ["two", "two"], ["four"]),
            helper.make_node("Concat", ["one", "four"], ["shape"], axis=0),
            helper.make_node("Expand", ["x", "shape"], ["a"]),
            helper.make_node("Expand", ["x", "shape"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("MatMul", ["sum", "w"], ["y"]),
        ]
    )
    changed = _simplified(model)
    assert _kinds(changed) == {"Add": 1, "MatMul": 1}, "and what it comes to widens nothing"
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(_run(changed, x), _run(model, x))


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_a_size_that_the_tracer_noted_from_its_example_is_not_believed(rows: int) -> None:
    """`h` is marked as `[3, 400]`, the size of the traced example; its rows vary."""
    model = _model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Shape", ["h"], ["size"]),
            _constant("start", [0]),
            _constant("end", [1]),
            helper.make_node("Slice", ["size", "start", "end"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["y"], to=TensorProto.FLOAT),
        ],
        [helper.make_tensor_value_info("h", TensorProto.FLOAT, [3, 400])],
    )
    x = np.ones((rows, 4), dtype=np.float32)
    assert _run(_simplified(model), x).tolist() == [rows]


def test_weights_are_not_computed_with() -> None:
    """A transposed weight would be stored twice; it stays a node, which every rung's graph shares."""
    model = _model(
        [
            helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
            helper.make_node("Transpose", ["wt"], ["back"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "back"], ["y"]),
        ]
    )
    changed = _simplified(model)
    assert [tensor.name for tensor in changed.graph.initializer] == ["w"]
    x = np.ones((2, 4), dtype=np.float32)
    np.testing.assert_array_equal(_run(changed, x), _run(model, x))
