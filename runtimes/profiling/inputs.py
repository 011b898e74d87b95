"""Made-up inputs of the right shape, for measuring a graph that nobody has data for.

Latency does not depend on the values as long as they are valid: ids inside the vocabulary, nothing masked, no NaN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.bundle import Bundle, TensorSpec
from nsn_edge.errors import UsageError

Inputs = dict[str, npt.NDArray[Any]]

PAST_LENGTH = "past_sequence_length"
"""The dimension of a decoder's cache: tokens that it holds. The only one that may be 0, an empty cache."""

_SUM = " + "
"""Stands between the parts of a dimension that is a sum: a decoder's mask covers the past and the new tokens."""

SAFE_IDS = 8
"""Ids below this exist in any vocabulary; used where the model's own size is not known."""


def synthesise_inputs(
    specs: Sequence[TensorSpec], sizes: Mapping[str, int], *, vocabulary: int = SAFE_IDS, seed: int = 0
) -> Inputs:
    """One array per spec: C-contiguous, of the spec's dtype and of its shape with the names filled in.

    Whole numbers: masks are 1, `token_type_ids` 0, `position_ids` count up along the last axis from the length of the
    cache, everything else is taken as ids, random in `[0, vocabulary)`. Floats are standard normal.

    Args:
        specs: the graph's inputs.
        sizes: how large each named dimension is; one called `a + b` is the sum of `a` and `b`.
        vocabulary: number of ids.
        seed: of the random ids and floats.

    Raises:
        UsageError: a named dimension without a size, a size below 1, or a dtype that cannot be made up.
    """
    generator = np.random.default_rng(seed)
    past = sizes.get(PAST_LENGTH, 0)
    return {spec.name: _array(spec, _shape(spec, sizes), max(vocabulary, 1), past, generator) for spec in specs}


def dimension_names(specs: Sequence[TensorSpec]) -> set[str]:
    """The named dimensions that a caller sizes: of one called `a + b` its parts."""
    named = {size for spec in specs for size in spec.shape if isinstance(size, str)}
    return {part for name in named for part in name.split(_SUM)}


def vocabulary_size(bundle: Bundle) -> int:
    """The number of ids the bundle's tokenizer gives, which the model knows; `SAFE_IDS` where nothing says.

    Read from `tokenizer.json` (the format of the tokenizers library) without that library. Added tokens are left out:
    their ids may lie past the model's table.
    """
    try:
        vocabulary = json.loads((bundle.path / "tokenizer.json").read_bytes())["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return SAFE_IDS
    return max(len(vocabulary), 1) if isinstance(vocabulary, (dict, list)) else SAFE_IDS


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    shape = tuple(_size(spec, size, sizes) if isinstance(size, str) else size for size in spec.shape)
    if any(size < (0 if name == PAST_LENGTH else 1) for name, size in zip(spec.shape, shape, strict=True)):
        raise UsageError(f"input {spec.name!r} would have the shape {list(shape)}", "sizes are 1 or more")
    return shape


def _size(spec: TensorSpec, name: str, sizes: Mapping[str, int]) -> int:
    if name in sizes:
        return sizes[name]
    if _SUM in name:
        return sum(_size(spec, part, sizes) for part in name.split(_SUM))
    raise UsageError(
        f"input {spec.name!r} has the dimension {name!r}, and nothing says how large it is",
        f"say it with --dim {name}=N; known are {', '.join(sorted(sizes)) or 'none'}",
    )


def _array(
    spec: TensorSpec, shape: tuple[int, ...], vocabulary: int, past: int, generator: np.random.Generator
) -> npt.NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind == "b" or (dtype.kind in "iu" and "mask" in spec.name):
        return np.ones(shape, dtype)
    if dtype.kind not in "iu":
        raise UsageError(
            f"input {spec.name!r} has the dtype {spec.dtype}, which cannot be made up",
            "floats, whole numbers and booleans can",
        )
    if spec.name == "token_type_ids":
        return np.zeros(shape, dtype)
    if spec.name == "position_ids":
        return np.ascontiguousarray(np.broadcast_to(np.arange(past, past + shape[-1], dtype=dtype), shape))
    return generator.integers(0, min(vocabulary, np.iinfo(dtype).max), size=shape, dtype=dtype)
