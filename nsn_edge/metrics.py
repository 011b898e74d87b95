"""How alike two models' embeddings are: Spearman rank correlation of their pairwise similarities.

For `n` sentences both models give `n (n - 1) / 2` cosine similarities; the metric asks whether both put the pairs in
the same order. 1 means that every search and clustering by similarity comes out the same, whatever the scale.
"""

from __future__ import annotations

import numpy as np

from nsn_edge.errors import UsageError


def pairwise_similarity_spearman(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Spearman correlation between the upper triangles of two cosine-similarity matrices.

    Args:
        reference: `[n, d]`, any float dtype, one embedding per row, `n >= 3`.
        candidate: `[n, e]`, embeddings of the same items by another model; `e` may differ from `d`.

    Returns:
        A number in `[-1, 1]`.

    Raises:
        UsageError: the shapes do not match, a value is not finite, or an embedding is zero.
    """
    first, second = _unit_rows(reference, "reference"), _unit_rows(candidate, "candidate")
    if len(first) != len(second):
        raise UsageError(f"the reference holds {len(first)} embeddings and the candidate {len(second)}")
    if len(first) < 3:
        raise UsageError(f"a rank correlation of pairs needs 3 embeddings or more, not {len(first)}")
    above = np.triu_indices(len(first), k=1)
    return spearman((first @ first.T)[above], (second @ second.T)[above])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two series: Pearson's correlation of their ranks, equal values sharing the
    average rank.

    Args:
        a: `[n]`, `n >= 2`.
        b: `[n]`.

    Raises:
        UsageError: the shapes do not match, a value is not finite, or all values of a series are equal.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size < 2:
        raise UsageError(f"a rank correlation needs two series of one length >= 2, not shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UsageError("a rank correlation needs finite numbers; there are NaN or infinite ones")
    ranks_a, ranks_b = _centred_ranks(a), _centred_ranks(b)
    scale = float(np.sqrt((ranks_a @ ranks_a) * (ranks_b @ ranks_b)))
    if scale == 0.0:
        raise UsageError("a rank correlation is undefined where all values of a series are equal")
    return float(np.clip((ranks_a @ ranks_b) / scale, -1.0, 1.0))


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """float64 `[n]`: ranks with ties averaged, minus their mean."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    average = last - (counts - 1) / 2
    ranks: np.ndarray = average[group.reshape(-1)] - (values.size + 1) / 2
    return ranks


def _unit_rows(embeddings: np.ndarray, what: str) -> np.ndarray:
    """float64 `[n, d]`, every row of length 1."""
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2:
        raise UsageError(f"the {what} embeddings must have the shape [items, features], not {list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise UsageError(f"the {what} embeddings hold NaN or infinite values")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if zeros := np.flatnonzero(lengths == 0.0).tolist():
        raise UsageError(f"the {what} embedding {zeros[0]} is zero and has no direction")
    unit: np.ndarray = rows / lengths
    return unit
