"""What a cut layer costs the output, and the curves that follow from it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nsn_edge.bundle import TaskSpec
from nsn_edge.calibration import (
    StreamedCovariances,
    collect_covariances,
    some_examples,
)
from nsn_edge.convert import NSNConfig, default_filter, nsnify_, refactorize_
from nsn_edge.errors import NsnEdgeError, UnsupportedModelError, UsageError
from nsn_edge.layers import at_dense, at_rank, ladder_of, nsn_layers
from nsn_edge.sensitivity import allocate_, answer, distance, layer_damages, model_damage

POOLED = TaskSpec("feature-extraction", pooling="mean", normalize=True)


def batches_of(batch, count=3):
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(1, 40, batch["input_ids"].shape, generator=generator) for _ in range(count)]
    return [{**batch, "input_ids": drawn} for drawn in ids]


class TwoRoads(nn.Module):
    """Two layers of one size on the same input, one of which hardly reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loud, self.quiet = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loud(x) + 1e-3 * self.quiet(x)


def test_a_layer_that_hardly_matters_gives_its_ranks_away() -> None:
    model = TwoRoads()
    x = [torch.randn(16, 32, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    nsnify_(model, NSNConfig("svd", align=4))
    damages = layer_damages(model, x, {"loud": 8, "quiet": 8})
    assert damages["loud"] > 1e4 * damages["quiet"] > 0
    before = model_damage(model, x, 8)
    ladder = allocate_(model, x, align=4)
    assert ladder == ladder_of(model)
    assert ladder.layer_ranks(8) == {"loud": 12, "quiet": 4}
    assert model_damage(model, x, 8) < before


def test_ranks_stay_as_they_are_where_that_does_less_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TwoRoads()
    x = [torch.randn(16, 32, generator=torch.Generator().manual_seed(1))]
    uniform = nsnify_(model, NSNConfig("svd", align=4))
    seen = []

    def damage(model: nn.Module, *_: object) -> float:
        seen.append(ladder_of(model))
        return float(len(seen))

    monkeypatch.setattr("nsn_edge.sensitivity.judged_damage", damage)
    assert allocate_(model, x, align=4) == uniform == ladder_of(model)
    assert seen[0] == uniform != seen[1]


def test_one_layer_at_a_time_is_what_it_says(bert, batch) -> None:
    """Parity with cutting a single layer by hand, and nothing left behind."""
    nsnify_(bert, NSNConfig("svd", align=1))
    layers = nsn_layers(bert)
    name = next(iter(layers))
    states = [(layer.rank, layer.dense) for layer in layers.values()]
    found = layer_damages(bert, [batch], {name: 3}, POOLED)
    assert [(layer.rank, layer.dense) for layer in layers.values()] == states
    with torch.no_grad(), at_dense(bert):
        reference = answer(bert, batch, POOLED)
        layers[name].dense, layers[name].rank = False, 3
        expected = distance(reference, answer(bert, batch, POOLED)) * 3
    assert found == {name: pytest.approx(expected)}
    assert expected > 0


def test_the_answer_is_what_the_task_uses(bert, gpt2, batch) -> None:
    with torch.no_grad():
        assert answer(bert, batch, POOLED).rows.shape == (3, 32)
        assert answer(bert, batch).rows.shape == (int(batch["attention_mask"].sum()), 32)  # padding is no item
        said = answer(gpt2, batch)
    assert said.log_probabilities
    assert torch.allclose(said.rows.exp().sum(-1), torch.ones(len(said.rows)), atol=1e-5)
    logits = torch.randn(5, 7), torch.randn(5, 7)
    expected = nn.functional.kl_div(
        logits[1].log_softmax(-1), logits[0].log_softmax(-1), log_target=True, reduction="batchmean"
    )
    first, second = (type(said)(part.log_softmax(-1), log_probabilities=True) for part in logits)
    assert distance(first, second) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("keep_dense", [True, False])
def test_allocating_changes_curves_and_no_weights(gpt2, batch, keep_dense) -> None:
    nsnify_(gpt2, NSNConfig("svd", keep_dense=keep_dense, align=4))
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    uniform = ladder_of(gpt2)
    ladder = allocate_(gpt2, batches_of(batch), align=4)
    assert ladder.max_rank == uniform.max_rank
    assert ladder != uniform
    assert all(torch.equal(before[name], tensor) for name, tensor in gpt2.state_dict().items())
    with torch.no_grad(), at_rank(gpt2, ladder.max_rank):  # whole at the top
        assert all(layer.rank == layer.full_rank for layer in nsn_layers(gpt2).values())
    for rank in (4, 8, 12):
        assert ladder.macs(rank) <= uniform.macs(rank)


def test_covariances_in_groups_are_those_of_one_pass(bert, batch) -> None:
    batches = batches_of(batch)
    whole = collect_covariances(bert, batches, default_filter)
    stages: list[str] = []
    streamed = StreamedCovariances(bert, batches, default_filter, 1.0, lambda stage, *_: stages.append(stage))
    assert list(streamed) == list(whole)
    assert streamed.groups == len(whole) == 12
    for name, covariance in whole.items():
        assert torch.allclose(streamed[name].total, covariance.total)
        assert streamed[name].tokens == covariance.tokens
    assert len(stages) == 12 * 3  # a pass per group, and none for what is held already
    assert StreamedCovariances(bert, batches, default_filter).groups == 1


def test_a_model_is_cut_alike_group_by_group(bert, batch) -> None:
    import copy

    batches = batches_of(batch)
    other = copy.deepcopy(bert)
    nsnify_(bert, covariances=collect_covariances(bert, batches, default_filter))
    nsnify_(other, covariances=StreamedCovariances(other, batches, default_filter, 8 * 32**2 * 4))
    for (name, layer), twin in zip(nsn_layers(bert).items(), nsn_layers(other).values(), strict=True):
        product = layer.B[:8].T @ layer.A[:8]
        assert torch.allclose(product, twin.B[:8].T @ twin.A[:8], atol=2e-4), name


def test_cutting_again_needs_the_dense_weights(bert, batch) -> None:
    covariances = collect_covariances(bert, [batch], default_filter)
    nsnify_(bert, NSNConfig("svd"))
    plain = {name: layer.B.detach().clone() for name, layer in nsn_layers(bert).items()}
    refactorize_(bert, covariances)
    assert not any(torch.equal(plain[name], layer.B) for name, layer in nsn_layers(bert).items())
    refactorize_(bert, None)
    assert all(torch.equal(plain[name], layer.B) for name, layer in nsn_layers(bert).items())
    next(iter(nsn_layers(bert).values())).weight = None
    with pytest.raises(UnsupportedModelError, match="no dense weight to cut"):
        refactorize_(bert, None)


def test_examples_are_taken_evenly_from_sorted_batches() -> None:
    batches = [torch.arange(6).unsqueeze(1), torch.arange(6, 10).unsqueeze(1)]
    assert torch.cat(some_examples(batches, 5)).flatten().tolist() == [0, 2, 4, 6, 8]
    assert torch.cat(some_examples(batches, 99)).flatten().tolist() == list(range(10))


def test_what_cannot_be_measured_is_refused(bert, batch) -> None:
    nsnify_(bert, NSNConfig("svd"))
    with pytest.raises(UsageError, match="no input batches"):
        allocate_(bert, [])
    with torch.no_grad():
        bert.encoder.layer[0].output.LayerNorm.weight.fill_(math.nan)
    with pytest.raises(NsnEdgeError, match="holds NaN or infinity"):
        allocate_(bert, [batch])
