"""Tokens become text piece by piece: characters split over tokens, and stop strings split over pieces, are waited for.

tokens --decode--> whole characters --hold back what may begin a stop string--> pieces
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from nsn_edge.bundle import Bundle
from nsn_edge.runtimes.text import open_tokenizer

_UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no character (yet)."""

_CONTEXT = 6
"""Tokens of the prompt to decode the first token with: many tokenizers drop the space that begins a text."""


class TextCodec(Protocol):
    """Text to tokens and back."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, with whatever the model wants in front."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without the special ones; U+FFFD for bytes that are no character."""


class TokenizerCodec:
    """A `tokenizers.Tokenizer` as a codec."""

    def __init__(self, tokenizer: Any) -> None:
        """
        Args:
            tokenizer: its padding and truncation are switched off, in place.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer

    @classmethod
    def of(cls, bundle: Bundle) -> TokenizerCodec:
        """The bundle's own.

        Raises:
            BundleError: it has no tokenizer, or one that cannot be read.
            MissingDependencyError: the package `tokenizers` is not installed.
        """
        return cls(open_tokenizer(bundle, "generating text"))

    def encode(self, text: str) -> list[int]:
        """The tokens, special ones included."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text without special tokens."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


class TextStream:
    """The text that one prompt's new tokens make, given out as soon as it is certain."""

    def __init__(self, codec: TextCodec, prompt: Sequence[int], stop: Sequence[str]) -> None:
        """
        Args:
            codec: decodes.
            prompt: the tokens before the new ones.
            stop: the text ends before the first of these.
        """
        self._codec = codec
        self._stop = tuple(stop)
        self._tokens = list(prompt[-_CONTEXT:])
        self._context = 0
        self._read = len(self._tokens)
        self._pending = ""
        self.stopped = False
        """Whether a stop string was met; nothing comes after."""

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain, often none."""
        self._tokens.append(token)
        fresh = self._undecoded()
        if fresh and not fresh.endswith(_UNFINISHED):
            self._context, self._read = self._read, len(self._tokens)
            self._pending += fresh
        return self._release()

    def finish(self) -> str:
        """The rest, when no more tokens come: half a stop string, or U+FFFD for half a character."""
        if self.stopped:
            return ""
        self._pending += self._undecoded()
        self._read = len(self._tokens)
        text = self._release()
        rest, self._pending = ("" if self.stopped else self._pending), ""
        return text + rest

    def _undecoded(self) -> str:
        """The text after what was read. Decoded together with the token before, as its look may depend on that."""
        before = self._codec.decode(self._tokens[self._context : self._read]).rstrip(_UNFINISHED)
        return self._codec.decode(self._tokens[self._context :])[len(before) :]

    def _release(self) -> str:
        """Give out the pending text up to a stop string or to what may be the beginning of one."""
        ends = [
            (at + len(stop), at) for stop in self._stop if (at := self._pending.find(stop)) >= 0
        ]  # the one that is complete first, however the text was cut into tokens
        if ends:
            self.stopped = True
            certain = min(ends)[1]
        else:
            certain = len(self._pending) - max((_overlap(self._pending, stop) for stop in self._stop), default=0)
        text, self._pending = self._pending[:certain], self._pending[certain:]
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
