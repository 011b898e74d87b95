"""Embeddings: pooled as sentence-transformers pools, in order, whatever the batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nsn_edge.bundle import TaskSpec
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import UsageError
from nsn_edge.evaluation import embed_texts
from nsn_edge.layers import at_rank

TEXTS = ["the cat sat on the mat", "a dog", "she saw the big red house and the dog", "it", "he ran under the house"]


def alone(bert: Any, tokenizer: Any, text: str) -> np.ndarray:
    """`[seq, d]`: one text without padding."""
    with torch.no_grad():
        hidden: np.ndarray = bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
    return hidden


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_mean_pooling_leaves_padding_out_and_keeps_the_order(bert: Any, tokenizer: Any, batch_size: int) -> None:
    task = TaskSpec("feature-extraction", pooling="mean", normalize=True)
    found = embed_texts(bert, tokenizer, TEXTS, task, batch_size)
    assert found.dtype == np.float32
    means = np.stack([alone(bert, tokenizer, text).mean(0) for text in TEXTS])
    np.testing.assert_allclose(found, means / np.linalg.norm(means, axis=1, keepdims=True), atol=2e-6)


def test_cls_pooling_without_normalising(bert: Any, tokenizer: Any) -> None:
    found = embed_texts(bert, tokenizer, TEXTS, TaskSpec("feature-extraction", pooling="cls"))
    np.testing.assert_allclose(found, np.stack([alone(bert, tokenizer, text)[0] for text in TEXTS]), atol=2e-6)


def test_texts_are_cut_where_the_task_says(bert: Any, tokenizer: Any) -> None:
    task = TaskSpec("feature-extraction", pooling="mean", max_length=4)
    both = embed_texts(bert, tokenizer, ["the cat sat on the mat", "the cat ran under a house"], task)
    np.testing.assert_allclose(both[0], both[1], atol=1e-6)


def test_the_models_rank_is_what_is_measured(bert: Any, tokenizer: Any) -> None:
    task = TaskSpec("feature-extraction", pooling="mean", normalize=True)
    dense = embed_texts(bert, tokenizer, TEXTS, task)
    nsnify_(bert, NSNConfig(method="svd"))
    np.testing.assert_allclose(embed_texts(bert, tokenizer, TEXTS, task), dense, atol=1e-5)
    with at_rank(bert, 2):
        assert np.abs(embed_texts(bert, tokenizer, TEXTS, task) - dense).max() > 0.01


def test_half_precision_gives_float32_and_the_mode_is_restored(bert: Any, tokenizer: Any) -> None:
    bert.to(torch.bfloat16).train()
    heard: list[tuple[str, int, int]] = []
    task = TaskSpec("feature-extraction", pooling="mean")
    found = embed_texts(bert, tokenizer, TEXTS, task, 3, lambda *event: heard.append(event))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert bert.training
    assert heard == [("embed", 1, 2), ("embed", 2, 2)]


def test_what_has_no_embedding_is_refused(tokenizer: Any) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(UsageError, match="no pooling"):
        embed_texts(model, tokenizer, TEXTS, TaskSpec("feature-extraction"))
    with pytest.raises(UsageError, match="no texts"):
        embed_texts(model, tokenizer, [], TaskSpec("feature-extraction", pooling="mean"))
