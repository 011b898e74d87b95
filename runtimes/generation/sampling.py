"""Choosing the next token: greedy, or drawn from what temperature, top-k and top-p leave.

    logits --/ temperature--> --the k largest--> softmax --the fewest that hold p--> draw

The order is that of transformers' `generate`. Ties go to the lower token, so that top-k 1 and a tiny top-p are greedy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nsn_edge.runtimes.engines import Array


def choose(logits: Array, temperature: float, top_k: int | None, top_p: float | None, draw: np.random.Generator) -> int:
    """The next token.

    Args:
        logits: floating `[vocabulary]`, finite or -inf.
        temperature: 0 for the most likely token.
        top_k: draw among this many at most; None for all.
        top_p: draw among the fewest that hold this much probability; None for all.
        draw: the source of chance.
    """
    if temperature == 0:
        return int(np.argmax(logits))
    tokens, probabilities = candidates(logits, temperature, top_k, top_p)
    return int(draw.choice(tokens, p=probabilities))


def candidates(
    logits: Array, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that may come next, likeliest first, and their probabilities, which sum to 1.

    Args:
        logits: floating `[vocabulary]`, finite or -inf.
        temperature: above 0.
        top_k: at most this many; None for all.
        top_p: the fewest that hold this much probability; None for all.
    """
    # The largest becomes 0 before the division, so that a tiny temperature overflows to -inf alone.
    with np.errstate(over="ignore"):
        scaled = (logits.astype(np.float64) - float(logits.max())) / temperature
    tokens = np.arange(len(scaled))
    if top_k is not None and top_k < len(scaled):
        tokens = tokens[scaled >= np.partition(scaled, -top_k)[-top_k]]
        tokens = tokens[_likeliest_first(scaled[tokens])[:top_k]]
    probabilities = np.exp(scaled[tokens])
    probabilities /= probabilities.sum()
    if top_p is not None and top_p < 1:
        # All tokens below this bound together hold less than 1 - top_p: the nucleus is full before them, and
        # sorting a whole vocabulary is spared (from llama2.c's sampler).
        large = probabilities >= (1 - top_p) / len(tokens)
        tokens, probabilities = tokens[large], probabilities[large]
    order = _likeliest_first(scaled[tokens])
    tokens, probabilities = tokens[order], probabilities[order]
    if top_p is not None and top_p < 1:
        inside = np.cumsum(probabilities) - probabilities < top_p
        tokens, probabilities = tokens[inside], probabilities[inside]
    return tokens, probabilities / probabilities.sum()


def _likeliest_first(scaled: Array) -> Array:
    """The order of falling logits, not of probabilities: those tie where logits hardly differ."""
    return np.argsort(-scaled, kind="stable")
