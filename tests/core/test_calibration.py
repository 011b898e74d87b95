"""Second moments: what is summed, what is left out, and that the model is as it was."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nsn_edge.calibration import collect_covariances, ordered_text_batches, text_batches
from nsn_edge.convert import default_filter
from nsn_edge.errors import UnsupportedModelError, UsageError


def is_linear(module: nn.Module, fqn: str) -> bool:
    return isinstance(module, nn.Linear)


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def hidden_states(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(model(**batch, output_hidden_states=True).hidden_states)


def test_a_transformers_moments_equal_a_direct_computation_without_padding(bert: Any, batch: dict[str, Tensor]) -> None:
    covariances = collect_covariances(bert, [batch], default_filter)
    for layer, hidden in enumerate(hidden_states(bert, batch)[:2]):
        rows = hidden[batch["attention_mask"].bool()].double()
        found = covariances[f"encoder.layer.{layer}.attention.self.query"]
        assert found.tokens == len(rows) == 9 + 5 + 2
        assert found.total.dtype == torch.float64
        torch.testing.assert_close(found.total, rows.T @ rows)


def test_padding_changes_nothing(bert: Any, batch: dict[str, Tensor]) -> None:
    """The same sequences one by one, unpadded, give the same moments."""
    alone = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        row = ids[mask.bool()][None]
        alone.append({"input_ids": row, "attention_mask": torch.ones_like(row)})
    together, separate = (collect_covariances(bert, batches, default_filter) for batches in ([batch], alone))
    assert together.keys() == separate.keys()
    for name, covariance in together.items():
        assert covariance.tokens == separate[name].tokens
        torch.testing.assert_close(covariance.total, separate[name].total, rtol=1e-5, atol=1e-5)


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_streaming_equals_one_batch(cuts: list[int]) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(sum(cuts), 5, dtype=torch.float64)
    whole = collect_covariances(model, [x], is_linear)
    streamed = collect_covariances(model, iter(x.split(cuts)), is_linear)
    for name in ("0", "2"):
        assert streamed[name].tokens == whole[name].tokens == len(x)
        torch.testing.assert_close(streamed[name].total, whole[name].total)


def test_layers_fed_by_one_tensor_share_one_sum(bert: Any, batch: dict[str, Tensor]) -> None:
    covariances = collect_covariances(bert, [batch, batch], default_filter)
    attention = "encoder.layer.0.attention.self."
    assert covariances[attention + "query"] is covariances[attention + "key"] is covariances[attention + "value"]
    assert covariances[attention + "query"] is not covariances["encoder.layer.1.attention.self.query"]
    assert (
        len({id(covariance) for covariance in covariances.values()}) == 8
    )  # four distinct inputs in each of two layers


class Rewired(nn.Module):
    """Feeds its second layer with the first's input on some calls and with another on others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.a(x)
        return hidden + self.b(x if self.calls % 2 else hidden)


def test_sharing_follows_the_wiring_of_every_call() -> None:
    model = Rewired().double()
    batches = list(torch.randn(4, 6, 3, dtype=torch.float64))
    found = collect_covariances(model, batches, is_linear)
    x = torch.cat(batches)
    with torch.no_grad():
        seen = torch.cat([rows if i % 2 == 0 else model.a(rows) for i, rows in enumerate(batches)])
    torch.testing.assert_close(found["a"].total, x.T @ x)
    torch.testing.assert_close(found["b"].total, seen.T @ seen)
    assert found["a"].tokens == found["b"].tokens == 24


class Overwriting(nn.Module):
    """Changes its layer's input in place after the layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x + 0
        y = self.layer(hidden)
        hidden.zero_()
        return y + hidden


def test_an_input_overwritten_later_counts_as_it_was_read() -> None:
    x = torch.randn(5, 3)
    found = collect_covariances(Overwriting(), [x], is_linear)["layer"].total
    torch.testing.assert_close(found, x.double().T @ x.double())


def test_a_layer_used_twice_sums_both_inputs(tied: Any) -> None:
    x = torch.randn(7, 12)
    found = collect_covariances(tied, [x], is_linear)["first"]
    with torch.no_grad():
        second = torch.tanh(tied.first(x))
    rows = torch.cat([x, second]).double()
    assert found.tokens == 14
    torch.testing.assert_close(found.total, rows.T @ rows)


def test_a_layer_that_nothing_reaches_has_no_tokens(batch: dict[str, Tensor]) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x)
            return y

    for batches, tokens in (([torch.ones(2, 3)], 2), ([], 0)):
        found = collect_covariances(Unused(), batches, is_linear)
        assert (found["used"].tokens, found["unused"].tokens) == (tokens, 0)
        assert found["unused"].total.shape == (4, 4)
        assert not found["unused"].total.any()


def test_half_precision_is_summed_in_double() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).to(torch.bfloat16)
    x = torch.full((400, 3), 1.0, dtype=torch.bfloat16)
    found = collect_covariances(model, [x, x], is_linear)["0"]
    assert torch.equal(found.total, torch.full((3, 3), 800.0, dtype=torch.float64))


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.frozen = nn.Dropout().eval()

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        y = self.layer(x)
        assert not y.requires_grad
        raise KeyError("boom")


def test_hooks_and_modes_are_restored_after_a_failure() -> None:
    model = Failing()
    with pytest.raises(KeyError):
        collect_covariances(model, [torch.ones(1, 3)], is_linear)
    assert hook_count(model) == 0
    assert model.training
    assert model.layer.training
    assert not model.frozen.training
    assert torch.is_grad_enabled()


def test_hooks_are_gone_and_progress_was_heard(bert: Any, batch: dict[str, Tensor]) -> None:
    heard: list[tuple[str, int, int]] = []
    bert.train()
    collect_covariances(bert, [batch, batch], default_filter, lambda *event: heard.append(event))
    assert heard == [("calibrate", 1, 2), ("calibrate", 2, 2)]
    assert hook_count(bert) == 0
    assert bert.training


def test_a_filter_that_takes_nothing_is_refused(bert: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="BertModel"):
        collect_covariances(bert, [], lambda module, fqn: False)


TEXTS = ["the cat sat on the mat", "a dog", "she saw the big red house and the dog", "he ran", "it"]


def test_batches_are_sorted_padded_and_masked(tokenizer: Any) -> None:
    batches = ordered_text_batches(tokenizer, TEXTS, batch_size=2)
    assert sorted(position for positions, _ in batches for position in positions) == list(range(len(TEXTS)))
    widths = [batch["input_ids"].shape[1] for _, batch in batches]
    assert widths == sorted(widths)
    for positions, batch in batches:
        for row, position in enumerate(positions):
            ids = tokenizer(TEXTS[position])["input_ids"]
            assert batch["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (
                len(batch["input_ids"][row]) - len(ids)
            )
            assert batch["input_ids"][row, : len(ids)].tolist() == ids
            assert (batch["input_ids"][row, len(ids) :] == tokenizer.pad_token_id).all()


def test_long_texts_are_cut(tokenizer: Any) -> None:
    assert max(batch["input_ids"].shape[1] for batch in text_batches(tokenizer, TEXTS, 2, max_length=5)) == 5


def test_a_tokenizer_without_padding_is_used_and_left_alone(tokenizer: Any) -> None:
    before, tokenizer.pad_token = tokenizer.pad_token, None
    try:
        (batch,) = text_batches(tokenizer, TEXTS)
        assert tokenizer.pad_token is None
    finally:
        tokenizer.pad_token = before
    assert batch["attention_mask"].sum() == sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)


def test_no_texts_and_no_batch_are_refused(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="no texts"):
        text_batches(tokenizer, [])
    with pytest.raises(UsageError, match="not 0"):
        text_batches(tokenizer, TEXTS, batch_size=0)


def test_no_input_outlives_its_layer() -> None:
    """What a deep model's layers see, all at once, is more than the model: each is let go when it was summed."""
    alive: list[int] = []
    inputs: list[weakref.ref[torch.Tensor]] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inputs.append(weakref.ref(x))
            alive.append(sum(reference() is not None for reference in inputs))
            return super().forward(x)

    model = nn.Sequential(*(Watched(8, 8) for _ in range(6)))
    covariances = collect_covariances(model, [torch.randn(4, 8)], lambda module, _: isinstance(module, nn.Linear))
    assert all(covariance.tokens == 4 for covariance in covariances.values())
    assert max(alive) <= 3  # the caller's own batch, this layer's input, and the one before it
