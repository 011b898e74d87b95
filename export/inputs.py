"""Real inputs to verify an export with: tokenised text in batches of different sizes and lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsn_edge.arrays import read_arrays
from nsn_edge.errors import UsageError

BATCH_SIZES = (1, 3, 8)
"""None is the traced size, so a size that the tracer fixed cannot pass."""

DECODER_BATCH_SIZES = (1, 3)
DECODER_TOKENS = 24
"""Few and short: every token of a decoder answers with a number per word of its vocabulary."""

PAST = "past_key_values."
"""How a decoder's inputs for its cache begin."""

POSITIONS = "position_ids"
"""The input that says where each token stands; it follows from `attention_mask`."""


def is_cached(names: Iterable[str]) -> bool:
    """Whether these are the inputs of a graph with a cache."""
    return any(name.startswith(PAST) for name in names)


def given_names(names: Sequence[str]) -> list[str]:
    """The inputs that somebody has to give: of a decoder, the cache and the positions follow from the others."""
    return [name for name in names if not is_cached(names) or not name.startswith((PAST, POSITIONS))]


def text_inputs(
    tokenizer: Any, texts: Sequence[str], names: Sequence[str], max_length: int | None
) -> list[dict[str, np.ndarray]]:
    """Batches of texts, padded within each (a decoder's on the left), as those inputs that `given_names` names.

    Args:
        tokenizer: a transformers tokenizer.
        texts: at least as many as the batches hold, `BATCH_SIZES` or `DECODER_BATCH_SIZES`.
        names: the graph's inputs.
        max_length: where to cut, in tokens.

    Raises:
        UsageError: too few texts, or an input that a tokenizer does not give.
    """
    sizes = DECODER_BATCH_SIZES if is_cached(names) else BATCH_SIZES
    if len(texts) < sum(sizes):
        raise UsageError(f"verification takes {sum(sizes)} texts or more, not {len(texts)}")
    batches = []
    start = 0
    for size in sizes:
        chosen = list(texts[start : start + size])
        encoded = (
            _left_padded(tokenizer, chosen, max_length)
            if is_cached(names)
            else tokenizer(
                chosen, padding=True, truncation=max_length is not None, max_length=max_length, return_tensors="np"
            )
        )
        missing = sorted(set(given_names(names)) - set(encoded))
        if missing:
            raise UsageError(
                f"the model takes {missing[0]!r}, which its tokenizer does not give", "give arrays with --inputs"
            )
        batches.append({name: np.asarray(encoded[name], dtype=np.int64) for name in given_names(names)})
        start += size
    return batches


def _left_padded(tokenizer: Any, texts: Sequence[str], max_length: int | None) -> dict[str, np.ndarray]:
    """Tokens of texts cut to different lengths, so that there is padding. Padded by hand: many a decoder's tokenizer
    has no padding token, and what stands there must not matter."""
    longest = min(DECODER_TOKENS, max_length or DECODER_TOKENS)
    rows = [tokenizer(text)["input_ids"][: max(longest - 3 * i, 1)] for i, text in enumerate(texts)]
    if not all(rows):
        raise UsageError("a text without a token cannot verify a decoder", "leave out empty lines")
    length = max(len(row) for row in rows)
    return {
        "input_ids": np.array([[0] * (length - len(row)) + row for row in rows], dtype=np.int64),
        "attention_mask": np.array([[0] * (length - len(row)) + [1] * len(row) for row in rows], dtype=np.int64),
    }


def array_inputs(path: Path, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """One batch from an `.npz` file with an array per input that `given_names` names.

    Raises:
        UsageError: the file is not readable, or lacks an input.
    """
    arrays = read_arrays(path)
    given = given_names(names)
    if missing := sorted(set(given) - set(arrays)):
        raise UsageError(f"{path} lacks the array {missing[0]!r}", f"the model takes {', '.join(given)}")
    return [{name: arrays[name] for name in given}]
