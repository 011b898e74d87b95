"""Rank correlation: hand cases, scipy, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.errors import UsageError
from nsn_edge.metrics import pairwise_similarity_spearman, spearman

SERIES = st.lists(st.integers(-5, 5), min_size=3, max_size=40)


def test_by_hand() -> None:
    # Ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 * (1 + 1 + 1 + 1 + 0) / (5 * 24) = 0.8
    assert spearman(np.array([1, 2, 3, 4, 5]), np.array([20, 10, 40, 30, 50])) == pytest.approx(0.8)
    # Ties share the average rank: 1.5 1.5 3 against 1 2 3 gives 1.5 / sqrt(1.5 * 2).
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(1.5 / np.sqrt(3.0))


@given(st.data(), SERIES.filter(lambda values: len(set(values)) > 1))
def test_agrees_with_scipy(data: st.DataObject, values: list[int]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is no dependency of this project")
    others = data.draw(st.permutations(values))
    expected = stats.spearmanr(values, others).statistic
    assert spearman(np.array(values), np.array(others)) == pytest.approx(expected, abs=1e-12)


@given(SERIES.filter(lambda values: len(set(values)) > 1))
def test_only_the_order_matters(values: list[int]) -> None:
    series = np.array(values, dtype=float)
    assert spearman(series, np.exp(series)) == pytest.approx(1.0)
    assert spearman(series, -series) == pytest.approx(-1.0)


def test_similarities_do_not_depend_on_scale_rotation_or_width() -> None:
    draw = np.random.default_rng(0)
    reference = draw.standard_normal((20, 8))
    rotation = np.linalg.qr(draw.standard_normal((8, 8)))[0]
    moved = np.pad(reference @ rotation, ((0, 0), (0, 3))) * draw.uniform(0.1, 9.0, (20, 1))
    assert pairwise_similarity_spearman(reference, moved) == pytest.approx(1.0)
    assert abs(pairwise_similarity_spearman(reference, draw.standard_normal((20, 8)))) < 0.4


def test_similarities_against_the_plain_definition() -> None:
    draw = np.random.default_rng(1)
    first, second = draw.standard_normal((2, 6, 4)).astype(np.float32)

    def cosines(rows: np.ndarray) -> list[float]:
        return [
            float(rows[i] @ rows[j] / np.sqrt((rows[i] @ rows[i]) * (rows[j] @ rows[j])))
            for i in range(6)
            for j in range(i + 1, 6)
        ]

    expected = spearman(np.array(cosines(first)), np.array(cosines(second)))
    assert pairwise_similarity_spearman(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "candidate", "message"),
    [
        (np.ones(3), np.ones((3, 2)), "shape"),
        (np.ones((4, 2)), np.ones((3, 2)), "4 embeddings and the candidate 3"),
        (np.ones((2, 2)), np.ones((2, 2)), "3 embeddings or more"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "NaN"),
        (np.eye(3), np.diag([1.0, 0.0, 1.0]), "candidate embedding 1 is zero"),
        (np.ones((3, 2)), np.eye(3), "all values of a series are equal"),
    ],
)
def test_what_cannot_be_compared_is_named(reference: np.ndarray, candidate: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pairwise_similarity_spearman(reference, candidate)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], "one length"),
        ([1.0], [1.0], "one length"),
        ([1.0, np.inf], [1.0, 2.0], "finite"),
        ([1.0, 1.0], [1.0, 2.0], "equal"),
    ],
)
def test_series_that_have_no_correlation_are_refused(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spearman(np.array(a), np.array(b))
