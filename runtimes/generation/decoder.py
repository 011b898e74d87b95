"""One step of a decoder: tokens and a cache in, logits and the longer cache out.

    input_ids, attention_mask, position_ids, past_key_values.*  --session, at a rank-->  logits, present.*
                                             ^------------- held by the engine, renamed -----------'

The cache has the same shape at every rank, so one rank's `present` is the next rank's `past_key_values` as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nsn_edge.bundle import Bundle, TensorSpec
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.runtimes.engines import Array, Held, HeldArray
from nsn_edge.runtimes.session import EdgeSession

_PAST, _PRESENT = "past_key_values.", "present."
_LOGITS = "logits"
_TOKENS, _MASK, _POSITIONS = "input_ids", "attention_mask", "position_ids"
_BATCH = "batch_size"
_HINT = "export a causal language model with its cache"


@dataclass(frozen=True)
class KVCache:
    """What a decoder remembers of the tokens it has seen. Never changed: a step gives a new one."""

    tensors: Mapping[str, Held]
    """By the graph's input, `past_key_values.0.key` and so on."""
    specs: tuple[TensorSpec, ...]
    """Of the model it belongs to."""
    batch_size: int
    """Texts."""
    length: int
    """Tokens of each, padding included."""


@dataclass(frozen=True)
class Step:
    """The outcome of one step."""

    logits: Array
    """`[batch, tokens, vocabulary]`, of the caller."""
    cache: KVCache
    """Longer by the tokens of the step."""
    rank: int
    """That answered."""
    latency_ms: float
    """Of the inference alone."""


class Decoder:
    """A session's decoder. Any thread may use it: the state is in the caches."""

    def __init__(self, session: EdgeSession) -> None:
        """
        Args:
            session: of a bundle that holds a decoder; it stays the caller's to close.

        Raises:
            UsageError: the bundle holds no decoder with a cache, or takes inputs that text does not give.
        """
        self.session = session
        """What answers."""
        manifest = session.bundle.manifest
        self.max_length = manifest.task.max_length
        """The most tokens of a text, prompt included; None where the model has no limit."""
        self._specs = _cache_specs(session.bundle)
        self._takes = {spec.name for spec in manifest.inputs}
        self._outputs = {spec.name.replace(_PAST, _PRESENT, 1): spec.name for spec in self._specs}

    def empty_cache(self, batch_size: int) -> KVCache:
        """The cache of a number of texts before their first token."""
        tensors = {}
        for spec in self._specs:
            shape = tuple(size if isinstance(size, int) else batch_size if size == _BATCH else 0 for size in spec.shape)
            tensors[spec.name] = HeldArray(np.zeros(shape, spec.dtype))
        return KVCache(tensors, self._specs, batch_size, 0)

    def step(self, tokens: Array, mask: Array, positions: Array, cache: KVCache, rank: int | None = None) -> Step:
        """Read tokens.

        Args:
            tokens: int64 `[batch, n]`.
            mask: int64 `[batch, cache.length + n]`, 0 at padding.
            positions: int64 `[batch, n]`, each token's place in its text.
            cache: of the tokens before.
            rank: that answers; None for the session's current one. The cache may be of any other rank.

        Raises:
            UsageError: the cache is of another model, or of another number of texts.
            RankError, EngineError: as `EdgeSession.run`.
        """
        self._check(cache, tokens, mask)
        given = {_TOKENS: tokens, _MASK: mask, _POSITIONS: positions}
        inputs = {name: array for name, array in given.items() if name in self._takes}
        answer = self.session.run(inputs, rank, held=cache.tensors, hold=self._outputs)
        logits = answer.outputs[_LOGITS]
        if np.isnan(logits[:, -1]).any():
            raise EngineError(
                f"the model's logits are not numbers at rank {answer.rank}", "check the bundle with: nsn-edge verify"
            )
        tensors = {self._outputs[name]: tensor for name, tensor in answer.held.items()}
        longer = KVCache(tensors, self._specs, cache.batch_size, cache.length + tokens.shape[1])
        return Step(logits, longer, answer.rank, answer.latency_ms)

    def _check(self, cache: KVCache, tokens: Array, mask: Array) -> None:
        if cache.specs != self._specs:
            raise UsageError(
                f"the cache is of another model: {_listed(cache.specs)}; this one keeps {_listed(self._specs)}",
                "begin with this decoder's empty_cache",
            )
        batch, n = tokens.shape
        if cache.batch_size != batch or mask.shape != (batch, cache.length + n):
            raise UsageError(
                f"the cache holds {cache.batch_size} texts of {cache.length} tokens; "
                f"{batch} x {n} tokens with a mask of {list(mask.shape)} do not continue it",
                "the mask covers the cache and the new tokens",
            )


def _cache_specs(bundle: Bundle) -> tuple[TensorSpec, ...]:
    """The cache inputs of a decoder's bundle."""
    manifest = bundle.manifest
    inputs = {spec.name: spec for spec in manifest.inputs}
    outputs = {spec.name for spec in manifest.outputs}
    cache = tuple(spec for name, spec in inputs.items() if name.startswith(_PAST))
    if not cache or _LOGITS not in outputs or _TOKENS not in inputs:
        raise UsageError(
            f"{bundle.path} is a bundle for {manifest.task.name} without a decoder's cache: it cannot generate text",
            _HINT,
        )
    if missing := [spec.name for spec in cache if spec.name.replace(_PAST, _PRESENT, 1) not in outputs]:
        raise UsageError(f"{bundle.path} takes {missing[0]} and never gives it back", _HINT)
    if strays := sorted(set(inputs) - {_TOKENS, _MASK, _POSITIONS} - {spec.name for spec in cache}):
        raise UsageError(f"{bundle.path} takes {', '.join(strays)}, which text does not give", "run it with arrays")
    return cache


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    first = specs[0]
    return f"{len(specs)} tensors like {first.dtype} [{', '.join(map(str, first.shape))}]"
