"""What a generation is asked to be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nsn_edge.errors import UsageError


@dataclass(frozen=True)
class GenerationConfig:
    """How to continue a prompt."""

    max_new_tokens: int = 128
    """The most tokens to add."""
    temperature: float = 0.0
    """0 takes the most likely token each time; above, the larger the more chance."""
    top_k: int | None = None
    """Draw among this many likeliest tokens; None for all."""
    top_p: float | None = None
    """Draw among the fewest tokens that hold this much probability, in `(0, 1]`; None for all."""
    seed: int = 0
    """Of chance. The prompt's place in the batch is added, so that equal prompts differ."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these that it comes to."""
    eos_ids: tuple[int, ...] | None = None
    """Tokens that end a text; None for those of the bundle's configuration."""

    def __post_init__(self) -> None:
        _whole("max_new_tokens", self.max_new_tokens, 1)
        _whole("seed", self.seed, 0)
        if self.top_k is not None:
            _whole("top_k", self.top_k, 1)
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise UsageError(
                f"the temperature is a number of 0 or more, not {self.temperature!r}", "0 takes the likeliest token"
            )
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise UsageError(f"top_p lies in (0, 1], not {self.top_p!r}", "leave it out to draw among all tokens")
        stop: object = self.stop  # a bare string is a sequence of strings, too
        if not isinstance(stop, tuple) or not all(isinstance(text, str) and text for text in stop):
            raise UsageError(f"stop is a tuple of texts that are not empty, not {self.stop!r}")
        for token in self.eos_ids or ():
            _whole("an end token", token, 0)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is a whole number of {least} or more, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
