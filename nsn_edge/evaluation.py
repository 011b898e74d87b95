"""What a torch model answers, in the form that quality is measured on: sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nsn_edge.bundle import TaskSpec
from nsn_edge.calibration import evaluating, ordered_text_batches
from nsn_edge.errors import UsageError
from nsn_edge.progress import Progress, silent


def embed_texts(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    task: TaskSpec,
    batch_size: int = 32,
    progress: Progress = silent,
) -> np.ndarray:
    """One embedding per text, in the order of the texts, at whatever rank the model stands.

    Args:
        model: a transformers encoder or decoder with `last_hidden_state`; evaluation mode for the while.
        tokenizer: its tokenizer.
        texts: one or more.
        task: says how to pool (`mean` or `cls`), whether to scale to length 1, and where to cut.
        batch_size: texts per forward pass.
        progress: hears of every batch.

    Returns:
        float32 `[n, d]`.

    Raises:
        UsageError: no texts, or a task without pooling.
    """
    if task.pooling is None:
        raise UsageError(f"the task {task.name!r} has no pooling, so a text has no single embedding")
    device = next(model.parameters()).device
    batches = ordered_text_batches(tokenizer, texts, batch_size, task.max_length)
    rows: list[np.ndarray | None] = [None] * len(texts)
    with evaluating(model), torch.no_grad():
        for done, (positions, batch) in enumerate(batches, start=1):
            inputs = {key: value.to(device) for key, value in batch.items()}
            hidden = model(**inputs).last_hidden_state.float()
            pooled = pool_hidden(hidden, inputs["attention_mask"], task).cpu().numpy()
            for position, row in zip(positions, pooled, strict=True):
                rows[position] = row
            progress("embed", done, len(batches))
    return np.stack([row for row in rows if row is not None])


def pool_hidden(hidden: Tensor, mask: Tensor, task: TaskSpec) -> Tensor:
    """`[batch, seq, d]` to `[batch, d]`, as sentence-transformers does (its clamps included)."""
    if task.pooling == "cls":
        pooled = hidden[:, 0]
    else:
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1e-9)
    return nn.functional.normalize(pooled, dim=1) if task.normalize else pooled
