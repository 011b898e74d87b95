"""Settle the sizes of a traced graph: arithmetic on sizes is left out wherever its outcome can be told beforehand.

    Reshape(x, Concat(size of x's axis 0, size of its axis 1, 12, 32))   ->  Reshape(x, [0, -1, 12, 32])
    Slice(Shape(x), the last), where that is a number                    ->  [32]
    Add(scores, Sub(1, Expand(mask)))                                    ->  Add(scores, Sub(1, mask))

A tracer writes some hundred such nodes for MiniLM. They cost time where products are quick (int8, few tokens), and what
holds graphs apart (`gated`) or shares weights between them never folds them.

Sizes go through the graph by name, in one pass: those of the inputs have names, a nested layer keeps all but the last,
`Reshape` keeps the product, and onnx knows the rule of every standard operator. What the names do not prove is left as
it is: a graph's own sizes must vary as before.

One size of each `Reshape` stays open (-1) on purpose. Where onnxruntime knows all sizes it merges a residual `Add` with
the normalisation after it into one that takes several times as long as the two (1.31, on a processor).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from nsn_edge.export.graph import is_nested_linear, take_apart

Size = int | str | None
"""A number, the name of a size that varies, or nothing known."""

_FEW = 16
"""Elements up to which a tensor of integers may be sizes."""
_SAME_SHAPE = frozenset({"Cast", "Identity", "Neg", "Not", "Sqrt"})
_ELEMENTWISE = _SAME_SHAPE | {"Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Sub", "Where"}


def settle_sizes_(model: ir.Model) -> None:
    """Rewrite a traced graph in place; see the module. Inner graphs are left alone."""
    known = _Known(model)
    for node in list(model.graph):
        known.visit(node)
    for node in list(model.graph):
        if node.op_type == "Expand" and node.domain == "":
            known.drop(node)


class _Known:
    """What is known of a graph's values, node by node in its order."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports.get("", 0)
        self._shapes: dict[ir.Value, list[Size] | None] = {}
        self._contents: dict[ir.Value, list[Size]] = {}
        """Elements of tensors that hold sizes, scalars and vectors alike."""

    def visit(self, node: ir.Node) -> None:
        """Learn of a node's outputs, and simplify it."""
        if is_nested_linear(node):
            nested = take_apart(node)
            before, after = self._shape(nested.x), nested.b.shape
            self._shapes[nested.y] = None if before is None or after is None else [*before[:-1], _size(after[-1])]
            nested.y.type = nested.x.type
            return
        if node.domain != "":
            return
        self._infer(node)
        contents = self._contents_after(node)
        if contents is not None and len(contents) <= _FEW:
            self._contents[node.outputs[0]] = contents
        if node.op_type == "Slice":
            self._slice(node)
        if node.op_type == "Expand":
            target, before = self._numbers(node.inputs[1]), self._shape(node.inputs[0])  # type: ignore[arg-type]
            grown = None if target is None else _broadcast([before, target])
            if grown is not None and None not in grown:
                self._shapes[node.outputs[0]] = grown
        if node.op_type == "Reshape":
            self._fix_target(node)
        elif node.op_type in ("Gather", "Slice"):
            self._fix_numbers(node)

    def drop(self, expand: ir.Node) -> None:
        """Let what an `Expand` feeds broadcast by itself, where that comes to the same shapes in the end."""
        (grown,) = expand.outputs
        x = expand.inputs[0]
        if x is None or self._shape(x) is None:
            return
        changed: dict[ir.Value, list[Size]] = {grown: self._shape(x) or []}
        waiting = [grown]
        while waiting:
            value = waiting.pop()
            if value.is_graph_output():
                return
            for node in value.consumers():
                if node.domain != "" or node.op_type not in _ELEMENTWISE:
                    return
                (output,) = node.outputs
                shapes = [changed[v] if v in changed else self._shape(v) for v in node.inputs if v is not None]
                shape = _broadcast(shapes)
                if shape is None or None in shape or self._shape(output) is None:
                    return
                if shape != self._shape(output) and changed.get(output) != shape:
                    changed[output] = shape
                    waiting.append(output)
        self._shapes.update(changed)
        ir.convenience.replace_all_uses_with(grown, x)
        self._graph.remove(expand, safe=True)

    def _shape(self, value: ir.Value) -> list[Size] | None:
        if value in self._shapes:
            found = self._shapes[value]
            return None if found is None else list(found)
        if value.shape is None or (value.producer() is not None):
            return None
        return [_size(size) for size in value.shape]

    def _infer(self, node: ir.Node) -> None:
        """By onnx's rule for the operator."""
        inputs = {value.name: value for value in node.inputs if value is not None}
        if any(value.type is None for value in inputs.values()):
            return
        types, data = {}, {}
        for name, value in inputs.items():
            assert value.type is not None
            types[name] = ir.serde.serialize_type(value.type)
            shape = self._shape(value)
            if shape is not None:
                ir.serde.serialize_shape_into(types[name], ir.Shape(shape))
            if value.const_value is not None and value.const_value.size <= _FEW:
                data[name] = ir.serde.serialize_tensor(value.const_value)
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
            found: dict[str, Any] = onnx.shape_inference.infer_node_outputs(
                schema, ir.serde.serialize_node(node), types, data
            )
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, ValueError):
            return  # then nothing is known
        for value in node.outputs:
            if value.name in found:
                inferred = ir.serde.deserialize_type_proto_for_shape(found[value.name])
                value.type = ir.serde.deserialize_type_proto_for_type(found[value.name])
                self._shapes[value] = None if inferred is None else [_size(size) for size in inferred]

    def _slice(self, node: ir.Node) -> None:
        """A table's first rows, as many as a size says: that many, for what reads them fails where there are fewer."""
        limits = [self._numbers(value) for value in node.inputs[1:]]
        shape = self._shape(node.inputs[0]) if node.inputs[0] is not None else None
        if shape is None or len(limits) < 3 or any(limit is None or len(limit) != 1 for limit in limits):
            return
        start, stop, axis, step = [limit[0] for limit in limits if limit] + [1][len(limits) - 3 :]
        if (start, step) == (0, 1) and isinstance(stop, str) and isinstance(axis, int) and isinstance(shape[axis], int):
            shape[axis] = stop
            self._shapes[node.outputs[0]] = shape

    def _numbers(self, value: ir.Value | None) -> list[Size] | None:
        """The elements of a tensor of sizes."""
        if value is None:
            return None
        tensor = value.const_value
        if tensor is not None and tensor.size <= _FEW and tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32):
            return [int(number) for number in tensor.numpy().reshape(-1)]
        return self._contents.get(value)

    def _contents_after(self, node: ir.Node) -> list[Size] | None:
        inputs = list(node.inputs)
        first = inputs[0] if inputs else None
        if first is None:
            return None
        kind = node.op_type
        if kind == "Shape":
            shape = self._shape(first)
            start, end = (node.attributes.get(name) for name in ("start", "end"))
            return None if shape is None else shape[start.as_int() if start else 0 : end.as_int() if end else None]
        if kind == "Concat":
            parts = [self._numbers(part) or [None] for part in inputs]
            if any(part == [None] and self._shape(v) != [1] for part, v in zip(parts, inputs, strict=True) if v):
                return None  # how many elements are unknown is unknown, too
            return [size for part in parts for size in part]
        numbers = self._numbers(first)
        if numbers is None:
            return None
        if kind in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            return numbers
        if kind == "ConstantOfShape":
            filled = node.attributes.get("value")
            count = math.prod(number for number in numbers if isinstance(number, int))
            if filled is None or filled.as_tensor().dtype != ir.DataType.INT64 or count > _FEW or None in numbers:
                return None
            return [int(filled.as_tensor().numpy()[0])] * count
        others = [self._numbers(value) for value in inputs[1:]]
        if kind == "Slice":
            return _sliced(numbers, others)
        if kind == "Gather" and others[0] is not None:
            return [numbers[at] for at in others[0] if isinstance(at, int)]
        if kind == "Mul" and others[0] is not None:
            return [a * b if isinstance(a, int) and isinstance(b, int) else None for a, b in _pairs(numbers, others[0])]
        if kind == "Equal" and others[0] is not None:
            return [_equal(a, b) for a, b in _pairs(numbers, others[0])]
        if kind == "Where" and others[0] is not None and others[1] is not None:
            pairs = list(_pairs(others[0], others[1]))
            return [None if yes is None else pair[0 if yes else 1] for yes, pair in zip(numbers, pairs, strict=False)]
        return None

    def _fix_target(self, node: ir.Node) -> None:
        """Name a `Reshape`'s sizes by numbers where at most one is neither a number nor its input's own."""
        x, target = node.inputs
        zero = node.attributes.get("allowzero")  # then a 0 means none, not as many as the input has
        asked = self._numbers(target)
        if x is None or asked is None or (zero and zero.as_int()):
            return
        before = self._shape(x)
        after = _reshaped(before, asked) if before is not None else asked
        self._shapes[node.outputs[0]] = [size if size != -1 else None for size in after]
        if target is not None and target.const_value is not None:
            return
        own = [
            before is not None and axis < len(before) and isinstance(size, str) and before[axis] == size
            for axis, size in enumerate(after)
        ]
        numbers = [
            size if isinstance(size, int) else 0 if is_own else -1 for size, is_own in zip(after, own, strict=True)
        ]
        if -1 not in numbers and numbers.count(0) > 1:
            numbers[len(numbers) - 1 - numbers[::-1].index(0)] = -1
        if numbers.count(-1) <= 1:
            node.replace_input_with(1, self._constant(numbers))

    def _fix_numbers(self, node: ir.Node) -> None:
        """Replace a part of a tensor's sizes by its outcome where that is all numbers."""
        (output,) = node.outputs
        contents, shape = self._contents.get(output), self._shape(output)
        if output.dtype != ir.DataType.INT64:
            return
        numbers = [size for size in contents or [] if isinstance(size, int)]
        if contents and shape is not None and len(numbers) == len(contents) and not output.is_graph_output():
            ir.convenience.replace_all_uses_with(output, self._constant(numbers, scalar=not shape))

    def _constant(self, numbers: Sequence[int], *, scalar: bool = False) -> ir.Value:
        name = ("size." if scalar else "sizes.") + ".".join(map(str, numbers))
        if name not in self._graph.initializers:
            array = np.array(numbers[0] if scalar else numbers, dtype=np.int64)
            tensor = ir.Tensor(array, name=name)
            self._graph.register_initializer(
                ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            )
        return self._graph.initializers[name]


def _sliced(numbers: list[Size], limits: Sequence[list[Size] | None]) -> list[Size] | None:
    """Of a vector: from, to, and where given the axis and the step."""
    found = [limit[0] for limit in limits if limit is not None and len(limit) == 1]
    whole = [number for number in found if isinstance(number, int)]
    if len(whole) != len(limits):
        return None
    start, stop, axis, step = [*whole, *(0, 1)[len(whole) - 2 :]]
    return numbers[start:stop:step] if axis in (0, -1) and step else None


def _pairs(left: list[Size], right: list[Size]) -> Iterator[tuple[Size, Size]]:
    """Elements side by side; a single one stands beside each of the others."""
    count = max(len(left), len(right))
    return zip(left * (count // len(left)), right * (count // len(right)), strict=False)


def _equal(a: Size, b: Size) -> Size:
    """1 or 0 where it can be told: a size is never negative."""
    if a is None or b is None:
        return None
    if isinstance(a, int) == isinstance(b, int):
        return int(a == b) if isinstance(a, int) or a == b else None
    number = a if isinstance(a, int) else b
    return 0 if isinstance(number, int) and number < 0 else None


def _size(size: int | ir.SymbolicDim) -> Size:
    return size if isinstance(size, int) else size.value


def _reshaped(before: Sequence[Size], asked: Sequence[Size]) -> list[Size]:
    """The shape after a `Reshape`: with 0 as the input has it, and -1 whatever is left of the product."""
    after = [before[axis] if size == 0 and axis < len(before) else size for axis, size in enumerate(asked)]
    if after.count(-1) != 1 or None in before or None in after:
        return after
    rest, taken = Counter(_names(before)), Counter(_names(after))
    numbers = math.prod(size for size in before if isinstance(size, int))
    others = math.prod(size for size in after if isinstance(size, int) and size != -1)
    left = rest - taken
    if taken - rest or left.total() > 1 or others == 0 or numbers % others:
        return after
    number, names = numbers // others, list(left)
    if names and number != 1:
        return after
    after[after.index(-1)] = names[0] if names else number
    return after


def _names(shape: Sequence[Size]) -> list[str]:
    return [size for size in shape if isinstance(size, str)]


def _broadcast(shapes: Sequence[Sequence[Size] | None]) -> list[Size] | None:
    """The shape of an elementwise operator's output; None where it cannot be told."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes):
        return None
    result: list[Size] = []
    for axis in range(1, max(map(len, known), default=0) + 1):
        sizes = {shape[-axis] for shape in known if len(shape) >= axis} - {1}
        if len(sizes) > 1:
            return None
        result.insert(0, sizes.pop() if sizes else 1)
    return result
