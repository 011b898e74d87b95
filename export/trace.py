"""Trace a nested model once, every nested layer as a single `NestedLinear` node.

Optimum's exporter traces transformers models (it knows 100+ architectures, their input names and caches);
`torch.onnx.export` does plain modules. A decoder is traced with its cache, in Optimum's names:

    input_ids, attention_mask, position_ids, past_key_values.{i}.key/value  ->  logits, present.{i}.key/value

One graph does prefill (an empty cache) and decoding (a filled one): batch, sequence and past lengths all vary.
While it runs, each nested layer's `forward` stands for one opaque operator, and every other weight is an input of the
graph. No weight enters the ONNX file, which ends at 2 GB: they are attached afterwards as views of the torch
parameters, so each is copied once only, from torch into `weights.bin`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from nsn_edge.atomic import named_disk_errors
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.errors import ExportError, UnsupportedModelError, UsageError
from nsn_edge.export.graph import DOMAIN, NESTED_LINEAR, PRECISIONS, Graph, transposed
from nsn_edge.export.half import half_precision_attention
from nsn_edge.export.simplify import simplify_
from nsn_edge.export.weights import shape_of
from nsn_edge.layers import NSNLinear, ladder_of, nsn_layers

_OPSET = 18

FAMILIES = (
    *("bert", "roberta", "vit"),
    *("gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma"),
)
"""Model types, as `config.model_type` spells them, of which every form at several ranks was compared with torch."""

_CACHED_TASKS = frozenset({"text-generation"})
"""Tasks whose graph takes and gives the keys and values of the tokens so far."""

_MARKER = "com.microsoft::Gelu"
"""What a nested layer is called while the tracer works. For an operator of an unknown domain the tracer writes a
warning per node to stderr, from C++, past Python's filters; it is silent, and keeps the declared shape, for a few
that it knows, of which this is one. The attribute `layer` tells ours apart; no marker outlives `_attach_tensors`."""


class _NestedLinearNode(torch.autograd.Function):
    """Stands for a nested layer while the model is traced. Its values are zeros: only shapes matter to a trace."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: str, d_out: int) -> torch.Tensor:
        return x.new_zeros((*x.shape[:-1], d_out))

    @staticmethod
    def symbolic(g: Any, x: Any, layer: str, d_out: int) -> Any:
        y = g.op(_MARKER, x, layer_s=layer)
        sizes = x.type().sizes()
        if sizes is not None:
            y.setType(x.type().with_sizes([*sizes[:-1], d_out]))
        return y


def trace(checkpoint: Checkpoint) -> Graph:
    """Trace a checkpoint's transformers model through Optimum.

    Raises:
        UnsupportedModelError: Optimum does not know the architecture or the task, or a trace would fix what must vary.
        ExportError: the tracer failed.
    """
    model = checkpoint.model
    if not hasattr(model, "config"):
        raise UsageError(
            f"{type(model).__name__} is not a transformers model",
            "trace it with trace_module(model, example_inputs, ...)",
        )
    _refuse_growing_positions(model.config)
    return _trace(model, functools.partial(_optimum_export, model, checkpoint.task.name))


def trace_module(
    model: nn.Module,
    example_inputs: Mapping[str, torch.Tensor],
    output_names: Sequence[str],
    dynamic_axes: Mapping[str, Mapping[int, str]],
) -> Graph:
    """Trace a plain module.

    Args:
        model: converted by `nsnify_`.
        example_inputs: by the names of `forward`'s arguments, in their order.
        output_names: names for the outputs, in order.
        dynamic_axes: `{tensor name: {axis: size name}}` for every size that varies.

    Raises:
        ExportError: the tracer failed.
    """

    def export(file: Path) -> None:
        torch.onnx.export(
            model,
            (dict(example_inputs),),
            str(file),
            input_names=list(example_inputs),
            output_names=list(output_names),
            dynamic_axes={name: dict(axes) for name, axes in dynamic_axes.items()},
            opset_version=_OPSET,
            do_constant_folding=False,
            dynamo=False,
        )

    return _trace(model, export)


def _trace(model: nn.Module, export: Any) -> Graph:
    ladder = ladder_of(model)
    layers = nsn_layers(model)
    attention = half_precision_attention() if _dtype(model) == torch.float16 else contextlib.nullcontext()
    with tempfile.TemporaryDirectory(prefix="nsn-edge-trace-") as folder:
        file = Path(folder) / "traced.onnx"
        with (
            named_disk_errors(file),
            _as_single_nodes(layers),
            _without_weights(),
            attention,
            _quiet_tracer(),
            torch.no_grad(),
        ):
            try:
                export(file)
            except (UnsupportedModelError, ExportError, OSError):
                raise
            except Exception as error:
                raise ExportError(
                    f"tracing {type(model).__name__} failed: {type(error).__name__}: {str(error)[:300]}",
                    "run with --debug for the traceback",
                ) from error
        traced = ir.load(file)
        ir.external_data.load_to_model(traced)
    _attach_weights(traced.graph, model)
    _attach_tensors(traced, layers)
    _store_transposed(traced.graph)
    ClearMetadataAndDocStringPass()(traced)
    simplify_(traced)
    return Graph(traced, ladder)


def _dtype(model: nn.Module) -> torch.dtype:
    """Of all weights. A graph has one precision, and numpy, in which every runtime takes its tensors, no bfloat16."""
    found = {parameter.dtype for parameter in model.parameters()}
    if found != {torch.float32} and found != {torch.float16}:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
        raise UsageError(
            f"the model holds {names} weights; export takes either float32 or float16",
            "call model.float() or model.half() first",
        )
    return found.pop()


def _refuse_growing_positions(config: Any) -> None:
    """`dynamic` rotary scaling computes its frequencies from the length of the text, in Python: a trace keeps those of
    the example. (`longrope` does too, and Optimum traces both of its cases.)"""
    scaling = getattr(config, "rope_scaling", None) or {}
    if scaling.get("rope_type", scaling.get("type")) == "dynamic":
        raise UnsupportedModelError(
            f"this {config.model_type} scales its rotary positions by the length of the text (rope type 'dynamic'), "
            "which a traced graph cannot",
            "for texts within its original length, set rope_scaling to null in config.json; linear, llama3, yarn and "
            "longrope scaling work as they are",
        )


def _optimum_export(model: Any, task: str, file: Path) -> None:
    from optimum.exporters.onnx.convert import export_pytorch
    from optimum.exporters.tasks import TasksManager

    cached = task in _CACHED_TASKS
    try:
        constructor = TasksManager.get_exporter_config_constructor(
            exporter="onnx", model=model, task=f"{task}-with-past" if cached else task, library_name="transformers"
        )
    except (KeyError, ValueError) as error:
        raise UnsupportedModelError(
            f"Optimum's exporter cannot trace {type(model).__name__} ({model.config.model_type}) for the task {task!r}",
            f"tested are {', '.join(FAMILIES)}, and it knows more; add yours with its register_tasks_manager_onnx, or "
            "trace a plain module with trace_module",
        ) from error
    settings = {"float_dtype": PRECISIONS[ir.tensor_adapters.from_torch_dtype(_dtype(model))]}
    config = constructor(model.config, **settings, **({"use_past_in_inputs": True} if cached else {}))
    opset = max(_OPSET, config.DEFAULT_ONNX_OPSET)
    export_pytorch(model, config, opset=opset, output=file, do_constant_folding=False)


@contextlib.contextmanager
def _as_single_nodes(layers: Mapping[str, NSNLinear]) -> Iterator[None]:
    """Let each layer's `forward` emit one node. An instance attribute shadows the method and is removed after."""
    try:
        for name, layer in layers.items():
            layer.forward = functools.partial(_emit, name, layer.out_features)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers.values():
            layer.__dict__.pop("forward", None)


def _emit(name: str, d_out: int, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _NestedLinearNode.apply(x, name, d_out)  # type: ignore[no-untyped-call]
    return result


@contextlib.contextmanager
def _without_weights() -> Iterator[None]:
    """Let the tracer write no weights: each becomes an input that is named as in the model. Optimum has no option for
    it, so the function that it imports is shadowed meanwhile. Constants must then be left unfolded: what the tracer
    folds of weights it would copy, and rename."""
    export = torch.onnx.export
    torch.onnx.export = functools.partial(export, export_params=False)
    try:
        yield
    finally:
        torch.onnx.export = export


@contextlib.contextmanager
def _quiet_tracer() -> Iterator[None]:
    """The tracer warns about each Python number it fixes and about its own future; neither is the user's to mend.
    What it really fixed is caught by `verify`, which runs other shapes than the traced ones."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "optimum.exporters")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _attach_weights(graph: ir.Graph, model: nn.Module) -> None:
    """Make every input that is a weight an initializer that views the torch tensor."""
    tensors = model.state_dict()
    for value in [value for value in graph.inputs if value.name in tensors]:
        graph.inputs.remove(value)
        if value.uses():
            assert value.name is not None
            value.const_value = ir.tensor_adapters.TorchTensor(tensors[value.name], name=value.name)
            graph.register_initializer(value)


def _attach_tensors(traced: ir.Model, layers: Mapping[str, NSNLinear]) -> None:
    """Give every `NestedLinear` node its factors as named initializers that view the torch parameters."""
    graph = traced.graph
    seen: set[str] = set()
    markers = [node for node in graph if f"{node.domain}::{node.op_type}" == _MARKER and "layer" in node.attributes]
    for node in markers:
        name = node.attributes["layer"].as_string()
        layer = layers[name]
        seen.add(name)
        tensors = {"A": layer.A, "B": layer.B, "bias": layer.bias, "weight": layer.weight}
        inputs = [node.inputs[0]]
        for suffix, tensor in tensors.items():
            inputs.append(None if tensor is None else _initializer(graph, f"{name}.{suffix}", tensor))
        replacement = ir.Node(
            DOMAIN, NESTED_LINEAR, inputs, attributes=node.attributes.values(), num_outputs=1, name=node.name
        )
        output = replacement.outputs[0]
        output.name, output.shape, output.type = node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type
        ir.convenience.replace_nodes_and_values(graph, node, [node], [replacement], [node.outputs[0]], [output])
    if missing := sorted(set(layers) - seen):
        raise ExportError(
            f"the traced forward never reaches the nested layer {missing[0]!r}"
            + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            "leave such layers dense: adapt again with a filter that excludes them",
        )


def _store_transposed(graph: ir.Graph) -> None:
    """Store a matrix that is used transposed and not otherwise (a dense `lm_head`) as the product reads it. One with
    other uses (a tied `lm_head`) stays behind its `Transpose`: stored once, and folded by the runtime on loading."""
    for node in [node for node in graph if node.op_type == "Transpose"]:
        (matrix,) = node.inputs
        if matrix is None or matrix.const_value is None or len(matrix.uses()) > 1:
            continue
        if len(matrix.const_value.shape) != 2 or node.attributes["perm"].as_ints() != (1, 0):
            continue
        (output,) = node.outputs
        name, tensor = str(matrix.name), transposed(matrix.const_value)
        shape = ir.Shape(shape_of(tensor))
        value = ir.Value(name=f"{name}.T", shape=shape, type=matrix.type, const_value=tensor)
        graph.register_initializer(value)
        ir.convenience.replace_all_uses_with(output, value)
        graph.remove(node, safe=True)
        del graph.initializers[name]


def _initializer(graph: ir.Graph, name: str, tensor: torch.Tensor) -> ir.Value:
    if name not in graph.initializers:
        view = ir.tensor_adapters.TorchTensor(tensor.detach(), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(view.dtype), const_value=view)
        )
    return graph.initializers[name]
