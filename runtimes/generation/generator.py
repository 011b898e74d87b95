"""The generation loop: prompts in, text out, at a rank that may change with every token.

    with EdgeSession.open("bundle") as session:
        generator = Generator(session)
        for piece in generator.stream(["Once upon a time"], GenerationConfig(max_new_tokens=50)):
            print(piece.text, end="")

Prompts of different lengths share a batch: the shorter ones are padded on the left and masked, as transformers does.
A text that has ended stays in the batch, fed with padding, until the last one ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nsn_edge.bundle import Bundle
from nsn_edge.errors import BundleError, UsageError
from nsn_edge.runtimes.engines import Array
from nsn_edge.runtimes.generation.config import GenerationConfig
from nsn_edge.runtimes.generation.decoder import Decoder
from nsn_edge.runtimes.generation.sampling import choose
from nsn_edge.runtimes.generation.text import TextCodec, TextStream, TokenizerCodec
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.text import TOKENIZER_FILE

Prompt = str | Sequence[int]
"""Text, or tokens as they are."""

RankChoice = int | Callable[[int], int] | None
"""One rank for every token; a function of the number of tokens generated so far; None for the session's current one."""

EOS, STOP, LENGTH = "eos", "stop", "length"
"""Why a text ended: an end token, a stop string, or the most tokens asked for or possible."""

_PAD = 0
_EOS_FILES = ("generation_config.json", "config.json")


@dataclass(frozen=True)
class Piece:
    """One token of one text, as it comes."""

    index: int
    """The prompt's."""
    token: int
    """Just chosen."""
    text: str
    """What became certain with it: often nothing, sometimes several tokens' text. Empty without a tokenizer."""
    rank: int
    """That chose the token."""


@dataclass
class Generation:
    """What became of one prompt."""

    prompt: tuple[int, ...]
    """Its tokens."""
    tokens: list[int] = field(default_factory=list)
    """New ones, a final end token included."""
    ranks: list[int] = field(default_factory=list)
    """That chose each token."""
    text: str = ""
    """New text, without the stop string; empty without a tokenizer."""
    finish_reason: str | None = None
    """`eos`, `stop` or `length`; None while it goes on, and for good if it was broken off."""
    prefill_ms: float = 0.0
    """Reading the prompts of the whole batch."""
    decode_ms: list[float] = field(default_factory=list)
    """Every further step of the whole batch, as long as this text went on."""

    @property
    def decode_ms_per_token(self) -> float | None:
        """Mean of `decode_ms`; None where the prompt gave the only token."""
        return sum(self.decode_ms) / len(self.decode_ms) if self.decode_ms else None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Of this prompt; None before it was read."""
        return len(self.prompt) / self.prefill_ms * 1e3 if self.prefill_ms else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Of this text; None where the prompt gave the only token."""
        return 1e3 / self.decode_ms_per_token if self.decode_ms_per_token else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "schema_version": 1,
            "kind": "generation",
            "text": self.text,
            "tokens": self.tokens,
            "ranks": self.ranks,
            "finish_reason": self.finish_reason,
            "prompt_tokens": len(self.prompt),
            "prefill_ms": self.prefill_ms,
            "decode_ms_per_token": self.decode_ms_per_token,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
        }


class Generator:
    """Continues prompts with a session's decoder. Any thread may use it."""

    def __init__(self, session: EdgeSession, tokenizer: TextCodec | None = None) -> None:
        """
        Args:
            session: of a bundle that holds a decoder; it stays the caller's to close.
            tokenizer: None for the bundle's own; a bundle that has none takes and gives tokens alone.

        Raises:
            UsageError: the bundle holds no decoder with a cache.
            BundleError: its tokenizer or configuration cannot be read.
            MissingDependencyError: the package `tokenizers` is not installed.
        """
        self.decoder = Decoder(session)
        """One step at a time."""
        bundle = session.bundle
        if tokenizer is None and any(artifact.path == TOKENIZER_FILE for artifact in bundle.manifest.artifacts):
            tokenizer = TokenizerCodec.of(bundle)
        self.tokenizer = tokenizer
        """Text to tokens and back; None for tokens alone."""
        self.eos_ids = _eos_ids(bundle)
        """Tokens that end a text, by the bundle's configuration."""

    def generate(
        self, prompts: Sequence[Prompt], config: GenerationConfig | None = None, rank: RankChoice = None
    ) -> list[Generation]:
        """Continue prompts to their ends. Arguments and errors as `stream`."""
        stream = self.stream(prompts, config, rank)
        for _ in stream:
            pass
        return stream.generations

    def stream(
        self, prompts: Sequence[Prompt], config: GenerationConfig | None = None, rank: RankChoice = None
    ) -> GenerationStream:
        """Continue prompts token by token.

        Args:
            prompts: one or more, each a text or tokens.
            config: how; None for the defaults.
            rank: that answers; it may change between tokens, and the cache is carried over as it is.

        Raises:
            UsageError: no prompt, an empty one, one longer than the model, or text without a tokenizer.
            RankError, EngineError: while iterating, as `EdgeSession.run`.
        """
        config = config or GenerationConfig()
        if isinstance(prompts, str) or not prompts:
            raise UsageError("nothing to continue: give a list with at least one prompt")
        if config.stop and self.tokenizer is None:
            raise UsageError("stop strings need a tokenizer, and the bundle has none", "use eos_ids")
        encoded = [self._encode(prompt) for prompt in prompts]
        eos_ids = self.eos_ids if config.eos_ids is None else config.eos_ids
        return GenerationStream(self.decoder, self.tokenizer, encoded, config, frozenset(eos_ids), rank)

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise UsageError("a text prompt needs a tokenizer, and the bundle has none", "give tokens")
            tokens = tuple(self.tokenizer.encode(prompt)) if prompt else ()
        else:
            tokens = tuple(int(token) for token in prompt)
        if not tokens:
            raise UsageError("an empty prompt", "give at least one token of text to continue")
        if min(tokens) < 0:
            raise UsageError(f"a prompt has the token {min(tokens)}", "tokens count from 0")
        limit = self.decoder.max_length
        if limit is not None and len(tokens) > limit:
            raise UsageError(f"a prompt of {len(tokens)} tokens is longer than the model's {limit}", "shorten it")
        return tokens


class GenerationStream(Iterator[Piece]):
    """Pieces as they come, and what has become of each prompt so far."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: TextCodec | None,
        prompts: Sequence[tuple[int, ...]],
        config: GenerationConfig,
        eos_ids: frozenset[int],
        rank: RankChoice,
    ) -> None:
        """Use `Generator.stream`, which checks."""
        self.generations = [Generation(prompt) for prompt in prompts]
        """In the order of the prompts; they grow with every piece."""
        self._decoder, self._config, self._eos_ids, self._rank = decoder, config, eos_ids, rank
        self._texts = [None if tokenizer is None else TextStream(tokenizer, prompt, config.stop) for prompt in prompts]
        self._draws = [np.random.default_rng((config.seed, index)) for index in range(len(prompts))]
        self._pieces = self._loop()

    def __iter__(self) -> GenerationStream:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def _loop(self) -> Iterator[Piece]:
        tokens, mask, positions = left_padded([generation.prompt for generation in self.generations])
        step = self._decoder.step(tokens, mask, positions, self._decoder.empty_cache(len(tokens)), self._rank_at(0))
        for generation in self.generations:
            generation.prefill_ms = step.latency_ms
        for count in range(1, self._config.max_new_tokens + 1):
            tokens = np.full((len(tokens), 1), _PAD, dtype=np.int64)
            for index in self._unfinished():
                piece = self._take(index, step.logits[index, -1], step.rank)
                tokens[index] = piece.token
                yield piece
            going_on = self._unfinished()
            if not going_on:
                return
            mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
            # A text that has ended stays where it is: its next place may lie beyond the model's positions.
            positions = positions[:, -1:] + np.isin(np.arange(len(tokens)), going_on)[:, None]
            step = self._decoder.step(tokens, mask, positions, step.cache, self._rank_at(count))
            for index in going_on:
                self.generations[index].decode_ms.append(step.latency_ms)

    def _unfinished(self) -> list[int]:
        return [index for index, generation in enumerate(self.generations) if generation.finish_reason is None]

    def _rank_at(self, count: int) -> int | None:
        return self._rank(count) if callable(self._rank) else self._rank

    def _take(self, index: int, logits: Array, rank: int) -> Piece:
        """Choose a text's next token and see whether the text ends with it."""
        config, generation, text = self._config, self.generations[index], self._texts[index]
        token = choose(logits, config.temperature, config.top_k, config.top_p, self._draws[index])
        generation.tokens.append(token)
        generation.ranks.append(rank)
        fresh = ""
        if token in self._eos_ids:
            generation.finish_reason = EOS
        elif text is not None:
            fresh = text.push(token)
        if text is not None and text.stopped:
            generation.finish_reason = STOP
        elif generation.finish_reason is None and self._is_full(generation):
            generation.finish_reason = LENGTH
        if text is not None and generation.finish_reason is not None:
            fresh += text.finish()
            generation.finish_reason = STOP if text.stopped else generation.finish_reason
        generation.text += fresh
        return Piece(index, token, fresh, rank)

    def _is_full(self, generation: Generation) -> bool:
        """Whether no further token was asked for, or the last one has no place in the model."""
        total, limit = len(generation.prompt) + len(generation.tokens), self._decoder.max_length
        return len(generation.tokens) >= self._config.max_new_tokens or (limit is not None and total > limit)


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Array, Array, Array]:
    """Tokens, mask and positions of a batch: int64 `[batch, longest]` each.

    Positions are transformers': the count of real tokens before, and 1 at padding.
    """
    longest = max(map(len, prompts))
    tokens = np.full((len(prompts), longest), _PAD, dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    positions = np.where(mask == 1, mask.cumsum(axis=1) - 1, 1)
    return tokens, mask, positions


def _eos_ids(bundle: Bundle) -> tuple[int, ...]:
    """The end tokens by the bundle's configuration files, the first that names any; none where none does."""
    artifacts = {artifact.path: artifact for artifact in bundle.manifest.artifacts}
    for name in _EOS_FILES:
        if name not in artifacts:
            continue
        try:
            found = json.loads(bundle.file(artifacts[name]).read_bytes()).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise BundleError(f"{name} in {bundle.path} is not a readable JSON object: {error}") from error
        ids = [] if found is None else found if isinstance(found, list) else [found]
        if not all(type(token) is int for token in ids):
            raise BundleError(f"{name} in {bundle.path} names the end token {found!r}", "it is a number or a list")
        if ids:
            return tuple(ids)
    return ()
