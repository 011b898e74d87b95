"""Torch's answers: what a graph is fed at a rank, and what it must say.

    encoder   a batch                             feeds: the batch
    decoder   tokens [batch, length], parted      feeds: tokens[p:] with the cache that torch filled from tokens[:p],
              after p = 0, half, all but one      at the same rank: prefill, a longer step, and one token

A decoder's cache depends on the rank, so its feeds do too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nsn_edge.bundle.quantisation import Quantisation
from nsn_edge.export.inputs import PAST, POSITIONS, is_cached
from nsn_edge.export.precision.simulated import as_quantised
from nsn_edge.layers import at_dense, at_rank

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One run of a graph, with torch's answer."""

    batch: int
    """The batch that it belongs to, counted from 0."""
    feeds: Batch
    """The graph's inputs by name."""
    wanted: Batch
    """Torch's outputs by name, or by position (`"0"`, `"1"`, ...) where torch has no names for them."""


class Reference:
    """Torch's cases for some batches, computed once per rank.

    Args:
        model: holds nested layers; put into evaluation mode.
        names: the graph's inputs.
        batches: see the module; a decoder's need `input_ids`, and `attention_mask` where there is padding.
        how: how the bundle's weights were quantised, so that torch computes likewise; None for floats.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], batches: Sequence[Batch], how: Quantisation | None = None
    ) -> None:
        self._model = model.eval()
        self._how = how
        self._names = names
        self._batches = batches
        self._known: dict[tuple[int, bool], list[Case]] = {}

    def at(self, rank: int, dense: bool) -> list[Case]:
        """All cases at a rank, or with the dense originals.

        Raises:
            RankError: `rank` is outside `1..R`.
            UsageError: the dense weights were not kept.
        """
        if (rank, dense) not in self._known:
            scope: AbstractContextManager[None] = at_dense(self._model) if dense else at_rank(self._model, rank)
            answers = self._cached if is_cached(self._names) else self._plain
            arithmetic = as_quantised(self._model, self._how.at_rung(rank)) if self._how else nullcontext()
            with scope, arithmetic, torch.no_grad():
                self._known[rank, dense] = [
                    case for index, batch in enumerate(self._batches) for case in answers(index, batch)
                ]
        return self._known[rank, dense]

    def _plain(self, index: int, batch: Batch) -> Iterator[Case]:
        result = self._model(**{name: torch.from_numpy(np.asarray(value)) for name, value in batch.items()})
        if isinstance(result, torch.Tensor):
            wanted = {"": result.numpy()}
        elif isinstance(result, Mapping):
            wanted = {name: value.numpy() for name, value in result.items() if isinstance(value, torch.Tensor)}
        else:
            wanted = {str(position): value.numpy() for position, value in enumerate(result)}
        yield Case(index, batch, wanted)

    def _cached(self, index: int, batch: Batch) -> Iterator[Case]:
        from transformers import DynamicCache

        ids = batch["input_ids"]
        mask = batch.get("attention_mask", np.ones_like(ids))
        length = ids.shape[1]
        for past in sorted({0, length // 2, length - 1}):
            cache = DynamicCache()
            if past:
                cache = self._step(self._tokens(ids, mask, 0, past), cache).past_key_values
                keys_and_values = _named(cache, f"{PAST}{{}}.{{}}")
            else:
                keys_and_values = {}
            tokens = self._tokens(ids, mask, past, length)
            result = self._step(tokens, cache)
            presents = _named(result.past_key_values, "present.{}.{}")
            # Nothing is cached yet: torch holds no tensor, and a graph takes one of length 0.
            empty = {name.replace("present.", PAST): value[:, :, :0] for name, value in presents.items()}
            feeds = {**tokens, **(keys_and_values or empty)}
            yield Case(index, feeds, {"logits": result.logits.numpy(), **presents})

    def _tokens(self, ids: np.ndarray, mask: np.ndarray, start: int, stop: int) -> dict[str, np.ndarray]:
        tokens = {"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop]}
        if POSITIONS in self._names:  # padding, which counts for nothing, stands at 0
            tokens[POSITIONS] = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, start:stop]
        return tokens

    def _step(self, tokens: Batch, cache: Any) -> Any:
        inputs = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tokens.items()}
        return self._model(**inputs, past_key_values=cache, use_cache=True)


def _named(cache: Any, pattern: str) -> dict[str, np.ndarray]:
    """A cache's tensors, `[batch, heads, length, head size]` each, under `pattern.format(layer, "key" or "value")`."""
    return {
        pattern.format(layer, kind): tensor.numpy()
        for layer, pair in enumerate(cache.to_legacy_cache())
        for kind, tensor in zip(("key", "value"), pair, strict=True)
    }
