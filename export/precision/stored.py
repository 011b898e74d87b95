"""Do the graphs of a quantised bundle refer to what the checkpoint's weights quantise to, bit by bit?

Outputs alone would not tell: one wrong scale among thousands changes them less than rounding does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from torch import nn

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.manifest import Artifact
from nsn_edge.bundle.quantisation import Quantisation
from nsn_edge.errors import VerificationError
from nsn_edge.export.precision.int4 import BLOCK_SIZE, quantise_blocks
from nsn_edge.export.precision.int8 import quantise
from nsn_edge.layers import nsn_layers

_Array = npt.NDArray[Any]
_PREFIX = re.compile(r"\[:\d+\]$")


def check_stored(bundle: Bundle, artifact: Artifact, model: nn.Module, how: Quantisation) -> None:
    """Compare every weight of a static graph that the bundle quantised with the checkpoint's.

    Raises:
        VerificationError: one is missing, is cut at another rank, or differs; names it.
    """
    graph = ir.load(bundle.file(artifact)).graph
    found = {_PREFIX.sub("", str(name)): value for name, value in graph.initializers.items()}
    again = "is this the checkpoint that the bundle was exported from? if so, export it again"
    for name, wanted in _expected(bundle, artifact, model, how):
        if name not in found:
            raise VerificationError(f"{artifact.path} does not use the weight {name!r}", again)
        tensor = found[name].const_value
        assert tensor is not None
        stored, right = tensor.numpy(), wanted()
        if stored.shape != right.shape:
            shapes = f"{list(stored.shape)}, not {list(right.shape)}"
            raise VerificationError(f"{artifact.path}: {name} has the shape {shapes}", again)
        if not np.array_equal(stored, right):
            count = int(np.count_nonzero(stored != right))
            raise VerificationError(
                f"{artifact.path}: {count} of {right.size} values of {name} are not what the checkpoint gives", again
            )


def _expected(
    bundle: Bundle, artifact: Artifact, model: nn.Module, how: Quantisation
) -> Iterator[tuple[str, Callable[[], _Array]]]:
    """Names of the stored tensors of a rung's graph, each with what makes the right one."""
    assert artifact.rank is not None
    how = how.at_rung(artifact.rank)
    ladder = bundle.manifest.ladder
    dense = ladder.rung(artifact.rank).dense
    ranks = ladder.layer_ranks(artifact.rank)
    modules = nsn_layers(model)
    for layer in ladder.layers:
        module, rank = modules[layer.name], ranks[layer.name]
        precision = "int8" if layer.name in how.kept else how.precision
        if dense or (how.originals and module.weight is not None and layer.is_merged(rank)):
            assert module.weight is not None
            yield from _outputs(f"{layer.name}.weight.T", module.weight.numpy().T, precision)
        else:
            a, b = module.A.detach().numpy(), module.B.detach().numpy()
            yield from _first(f"{layer.name}.A", a, rank, precision)
            yield from _second(f"{layer.name}.B", b, rank, precision)
    parameters = {name: value.detach().numpy() for name, value in model.named_parameters(remove_duplicate=False)}
    for name in how.tables:
        yield from _eight_bits(name, parameters[name], 1)
    for name in how.products:
        if name in parameters:
            yield from _eight_bits(name, parameters[name], 1)
        else:
            yield from _eight_bits(name, parameters[name.removesuffix(".T")].T, 0)


def _first(name: str, a: _Array, rank: int, precision: str) -> Iterator[tuple[str, Callable[[], _Array]]]:
    if precision == "int8":
        yield from _eight_bits(name, a, 1, rank)
    else:
        yield f"{name}.int4", lambda: quantise_blocks(name, np.ascontiguousarray(a.T))[0][:rank]
        yield f"{name}.int4.scale", lambda: quantise_blocks(name, np.ascontiguousarray(a.T))[1][:rank]


def _second(name: str, b: _Array, rank: int, precision: str) -> Iterator[tuple[str, Callable[[], _Array]]]:
    blocks = -(-rank // BLOCK_SIZE)
    if precision == "int8":
        yield from _eight_bits(name, b, 0, rank)
    else:
        yield f"{name}.int4", lambda: quantise_blocks(name, b)[0].swapaxes(0, 1)[:blocks]
        yield f"{name}.int4.scale", lambda: quantise_blocks(name, b)[1].swapaxes(0, 1)[:blocks]


def _outputs(name: str, matrix: _Array, precision: str) -> Iterator[tuple[str, Callable[[], _Array]]]:
    if precision == "int8":
        yield from _eight_bits(name, matrix, 0)
    else:
        yield f"{name}.int4", lambda: quantise_blocks(name, np.ascontiguousarray(matrix))[0]
        yield f"{name}.int4.scale", lambda: quantise_blocks(name, np.ascontiguousarray(matrix))[1]


def _eight_bits(
    name: str, matrix: _Array, axis: int, rank: int | None = None
) -> Iterator[tuple[str, Callable[[], _Array]]]:
    yield f"{name}.int8", lambda: quantise(name, matrix, axis=axis)[0][:rank]
    yield f"{name}.scale", lambda: quantise(name, matrix, axis=axis)[1][: rank if axis == 1 else None]
