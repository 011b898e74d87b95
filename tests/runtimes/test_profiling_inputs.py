from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.bundle import Bundle, TensorSpec
from nsn_edge.errors import UsageError
from nsn_edge.runtimes.profiling import synthesise_inputs
from nsn_edge.runtimes.profiling.inputs import SAFE_IDS, vocabulary_size

TOKENS = ("batch_size", "sequence_length")
SIZES = {"batch_size": 2, "sequence_length": 5}


def test_a_text_model() -> None:
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    inputs = synthesise_inputs([TensorSpec(name, "int64", TOKENS) for name in names], SIZES, vocabulary=30_000)
    assert all(array.shape == (2, 5) and array.dtype == np.int64 for array in inputs.values())
    assert (inputs["attention_mask"] == 1).all()
    assert (inputs["token_type_ids"] == 0).all()
    assert (inputs["position_ids"] == [[0, 1, 2, 3, 4]] * 2).all()
    assert len(np.unique(inputs["input_ids"])) > 1
    assert all(array.flags.c_contiguous for array in inputs.values())


@given(
    vocabulary=st.integers(min_value=1, max_value=200_000),
    dtype=st.sampled_from(["int8", "uint8", "int32", "int64"]),
    seed=st.integers(min_value=0, max_value=2**32 - 1),
)
def test_ids_stay_inside_the_vocabulary(vocabulary: int, dtype: str, seed: int) -> None:
    spec = TensorSpec("input_ids", dtype, TOKENS)
    ids = synthesise_inputs([spec], SIZES, vocabulary=vocabulary, seed=seed)["input_ids"]
    assert ids.min() >= 0
    assert ids.max() < vocabulary


def test_floats_and_booleans() -> None:
    specs = [TensorSpec("past", "float16", ("batch_size", 4, 64)), TensorSpec("use", "bool", (3,))]
    inputs = synthesise_inputs(specs, SIZES)
    assert inputs["past"].dtype == np.float16
    assert np.isfinite(inputs["past"]).all()
    assert inputs["past"].std() > 0.5
    assert inputs["use"].all()


def test_a_seed_repeats() -> None:
    specs = [TensorSpec("x", "float32", ("batch_size", 8))]
    one, same, other = (synthesise_inputs(specs, SIZES, seed=seed)["x"] for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_an_unknown_dimension_names_the_option() -> None:
    spec = TensorSpec("past_key", "float32", ("batch_size", 4, "past_length", 16))
    with pytest.raises(UsageError) as caught:
        synthesise_inputs([spec], SIZES)
    assert "'past_key'" in caught.value.message
    assert "--dim past_length=N" in caught.value.hint
    assert synthesise_inputs([spec], {**SIZES, "past_length": 7})["past_key"].shape == (2, 4, 7, 16)


def test_what_cannot_be_made_up() -> None:
    with pytest.raises(UsageError, match="complex64"):
        synthesise_inputs([TensorSpec("x", "complex64", (1,))], {})
    with pytest.raises(UsageError, match=r"shape \[0, 4\]"):
        synthesise_inputs([TensorSpec("x", "float32", ("n", 4))], {"n": 0})


def test_the_vocabulary_comes_from_the_tokenizer(text_bundle: tuple[Path, object]) -> None:
    path, _ = text_bundle
    bundle = Bundle.open(path)
    assert vocabulary_size(bundle) == 14
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", 0.0], ["b", 0.0]]}}))
    assert vocabulary_size(bundle) == 2  # the unigram model keeps a list
    for damaged in ("{", "[]", '{"model": {"vocab": 3}}', '{"model": null}'):
        (path / "tokenizer.json").write_text(damaged)
        assert vocabulary_size(bundle) == SAFE_IDS
    (path / "tokenizer.json").unlink()
    assert vocabulary_size(bundle) == SAFE_IDS


PAST = TensorSpec("past_key_values.0.key", "float32", ("batch_size", 2, "past_sequence_length", 8))
DECODER = [
    TensorSpec("input_ids", "int64", TOKENS),
    TensorSpec("attention_mask", "int64", ("batch_size", "past_sequence_length + sequence_length")),
    TensorSpec("position_ids", "int64", TOKENS),
    PAST,
]


@pytest.mark.parametrize("past", [0, 7])
def test_a_decoder_s_mask_covers_the_cache_and_positions_go_on_after_it(past: int) -> None:
    inputs = synthesise_inputs(DECODER, {**SIZES, "past_sequence_length": past})
    assert inputs["past_key_values.0.key"].shape == (2, 2, past, 8)
    assert inputs["attention_mask"].shape == (2, past + 5)
    assert (inputs["attention_mask"] == 1).all()
    assert (inputs["position_ids"] == [list(range(past, past + 5))] * 2).all()


def test_only_the_cache_may_be_empty() -> None:
    with pytest.raises(UsageError, match=r"'input_ids' would have the shape \[2, 0\]"):
        synthesise_inputs(DECODER, {"batch_size": 2, "sequence_length": 0, "past_sequence_length": 4})
    with pytest.raises(UsageError, match=r"shape \[2, 2, -1, 8\]"):
        synthesise_inputs([PAST], {**SIZES, "past_sequence_length": -1})


def test_a_part_of_a_sum_without_a_size_is_named() -> None:
    with pytest.raises(UsageError, match="dimension 'past_sequence_length'"):
        synthesise_inputs(DECODER, SIZES)
