"""Real inputs to verify an export with: tokenised text in batches of different sizes and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nsn_edge.errors import UsageError

BATCH_SIZES = (1, 3, 8)
"""None is the traced size, so a size that the tracer fixed cannot pass."""


def text_inputs(
    tokenizer: Any, texts: Sequence[str], names: Sequence[str], max_length: int | None
) -> list[dict[str, np.ndarray]]:
    """Batches of `BATCH_SIZES` texts, padded within each, as the graph's inputs `names`.

    Args:
        tokenizer: a transformers tokenizer.
        texts: at least as many as the batches hold.
        names: the graph's inputs.
        max_length: where to cut, in tokens.

    Raises:
        UsageError: too few texts, or an input that a tokenizer does not give.
    """
    if len(texts) < sum(BATCH_SIZES):
        raise UsageError(f"verification takes {sum(BATCH_SIZES)} texts or more, not {len(texts)}")
    batches = []
    start = 0
    for size in BATCH_SIZES:
        encoded = tokenizer(
            list(texts[start : start + size]),
            padding=True,
            truncation=max_length is not None,
            max_length=max_length,
            return_tensors="np",
        )
        missing = sorted(set(names) - set(encoded))
        if missing:
            raise UsageError(
                f"the model takes {missing[0]!r}, which its tokenizer does not give", "give arrays with --inputs"
            )
        batches.append({name: np.asarray(encoded[name], dtype=np.int64) for name in names})
        start += size
    return batches


def array_inputs(path: Any, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """One batch from an `.npz` file with an array per input.

    Raises:
        UsageError: the file is not readable, or lacks an input.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a readable .npz file: {error}") from error
    if missing := sorted(set(names) - set(arrays)):
        raise UsageError(f"{path} lacks the array {missing[0]!r}", f"the model takes {', '.join(names)}")
    return [{name: arrays[name] for name in names}]
