"""The next token: greedy where it must be, and by its probability where chance decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.generation import GenerationConfig
from nsn_edge.runtimes.generation.sampling import candidates, choose

LOGITS = arrays(np.float32, st.integers(1, 40), elements=st.floats(-50, 50, width=32))
TEMPERATURES = st.floats(1e-6, 100)
TOP_K = st.none() | st.integers(1, 50)
TOP_P = st.none() | st.floats(1e-9, 1)


@given(LOGITS, TEMPERATURES, TOP_K, TOP_P)
def test_candidates_are_a_distribution_of_distinct_tokens(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    tokens, probabilities = candidates(logits, temperature, top_k, top_p)
    assert 1 <= len(tokens) <= min(len(logits), top_k or len(logits))
    assert len(set(tokens.tolist())) == len(tokens)
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert (np.diff(probabilities) <= 0).all()


@given(LOGITS, TEMPERATURES, st.integers(0, 2**31))
def test_top_k_of_one_and_a_tiny_top_p_are_greedy(logits: np.ndarray, temperature: float, seed: int) -> None:
    greedy = choose(logits, 0.0, None, None, np.random.default_rng(seed))
    assert greedy == int(np.argmax(logits))
    assert choose(logits, temperature, 1, None, np.random.default_rng(seed)) == greedy
    assert choose(logits, temperature, None, 1e-9, np.random.default_rng(seed)) == greedy


@given(LOGITS, st.floats(0.1, 10), st.floats(0.01, 0.99))
def test_top_p_takes_the_fewest_tokens_that_hold_so_much(logits: np.ndarray, temperature: float, top_p: float) -> None:
    everything, probabilities = candidates(logits, temperature)
    kept, _ = candidates(logits, temperature, None, top_p)
    n = len(kept)
    assert kept.tolist() == everything[:n].tolist()
    assert probabilities[:n].sum() >= top_p - 1e-9
    assert probabilities[: n - 1].sum() < top_p + 1e-9


@given(LOGITS, TEMPERATURES, st.floats(-1000, 1000))
def test_a_shift_of_all_logits_changes_nothing(logits: np.ndarray, temperature: float, shift: float) -> None:
    shifted = logits.astype(np.float64) + shift
    _, probabilities = candidates(shifted - shift, temperature)
    _, after = candidates(shifted, temperature)
    assert np.allclose(after, probabilities, atol=1e-6)


def test_the_filters_agree_with_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    draw = np.random.default_rng(0)
    for temperature, top_k, top_p in [(0.7, 12, 0.9), (1.0, 50, 0.5), (1.8, 5, 0.99), (0.3, 100, 0.2)]:
        logits = draw.standard_normal(100).astype(np.float32) * 3
        scores = torch.from_numpy(logits)[None]
        for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
            scores = warper(None, scores)
        expected = scores.double().softmax(-1)[0].numpy()
        found = np.zeros(100)
        tokens, probabilities = candidates(logits, temperature, top_k, top_p)
        found[tokens] = probabilities
        assert np.allclose(found, expected, atol=1e-6)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))
    draw = np.random.default_rng(1)
    n = 20_000
    counts = np.bincount([choose(logits, 1.0, None, None, draw) for _ in range(n)], minlength=5)
    expected = n * np.exp(logits)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 18.47  # the 99.9 % point with 4 degrees of freedom


def test_a_word_that_cannot_be_is_never_drawn() -> None:
    logits = np.array([0.0, -math.inf, 0.0])
    draw = np.random.default_rng(0)
    assert {choose(logits, 2.0, None, None, draw) for _ in range(200)} == {0, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is a whole number of 1 or more, not 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is a whole number of 1 or more, not 2.5"),
        ({"temperature": math.nan}, "the temperature is a number of 0 or more, not nan"),
        ({"temperature": -1.0}, "the temperature is a number of 0 or more, not -1.0"),
        ({"temperature": math.inf}, "the temperature is a number of 0 or more, not inf"),
        ({"top_k": 0}, "top_k is a whole number of 1 or more, not 0"),
        ({"top_p": 0.0}, "top_p lies in (0, 1], not 0.0"),
        ({"top_p": math.nan}, "top_p lies in (0, 1], not nan"),
        ({"seed": -1}, "seed is a whole number of 0 or more, not -1"),
        ({"stop": "end"}, "stop is a tuple of texts that are not empty, not 'end'"),
        ({"stop": ("",)}, "stop is a tuple of texts that are not empty, not ('',)"),
        ({"eos_ids": (-1,)}, "an end token is a whole number of 0 or more, not -1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        GenerationConfig(**settings)  # type: ignore[arg-type]
    assert caught.value.message == message
