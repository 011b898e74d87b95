"""One forward is every rank of a step; the dense model comes out of the nested one and goes back in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from nsn_edge.calibration import collect_covariances
from nsn_edge.convert import NSNConfig, default_filter, nsnify_
from nsn_edge.errors import UnsupportedModelError
from nsn_edge.layers import at_dense, at_rank, ladder_of, nsn_layers
from nsn_edge.training.dense import dense_copy, inside, nest_like_
from nsn_edge.training.hierarchy import Hierarchy, without_dense_weights
from nsn_edge.training.objectives import LabelLoss, LogitDistillation, Mixed, UncertaintyWeights
from nsn_edge.training.trainer import set_trained_


def classifier(**settings: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=40,
        max_position_embeddings=24,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        **settings,
    )
    return BertForSequenceClassification(config)


@pytest.fixture
def labelled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**batch, "labels": torch.tensor([0, 2, 1])}


@pytest.fixture
def nested() -> BertForSequenceClassification:
    model = classifier()
    nsnify_(model, NSNConfig("svd"))
    return model


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_the_total_is_the_objective_of_each_ranks_loss(nested: Any, labelled: dict[str, Tensor]) -> None:
    teacher = dense_copy(nested, frozen=True)
    loss = Mixed(((0.3, LabelLoss()), (0.7, LogitDistillation(2.0))))
    hierarchy = Hierarchy(nested, loss, UncertaintyWeights(2), teacher)
    total, each = hierarchy((32, 7), labelled)
    expected = []
    for rank in (32, 7):
        with at_rank(nested, rank):
            expected.append(loss(nested(**labelled), teacher(**labelled), labelled))
    torch.testing.assert_close(each, torch.stack(expected).detach())
    torch.testing.assert_close(total, torch.stack(expected).sum())
    assert [layer.rank for layer in nsn_layers(nested).values()] == [32] * 12  # as before: full rank


def test_gradients_are_those_of_the_sum(nested: Any, labelled: dict[str, Tensor]) -> None:
    hierarchy = Hierarchy(nested, LabelLoss())
    hierarchy((32, 5), labelled)[0].backward()
    together = gradients(nested)
    nested.zero_grad()
    for rank in (32, 5):
        with at_rank(nested, rank):
            (nested(**labelled).loss / 2).backward()
    for name, gradient in gradients(nested).items():
        torch.testing.assert_close(together[name], gradient)


def test_checkpointed_gradients_are_those_of_the_ranks_that_ran(labelled: dict[str, Tensor]) -> None:
    """The backward pass computes blocks again when the model already stands at another rank."""
    found = []
    for checkpointing in (False, True):
        model = classifier()
        nsnify_(model, NSNConfig("svd"))
        hierarchy = Hierarchy(model, LabelLoss()).train()
        if checkpointing:
            hierarchy.gradient_checkpointing_enable()
        hierarchy((20, 5), labelled)[0].backward()
        found.append(gradients(model))
    plain, checkpointed = found
    assert set(plain) == set(checkpointed)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_the_teacher_is_no_part_of_what_is_trained_or_saved(nested: Any) -> None:
    hierarchy = Hierarchy(nested, LogitDistillation(), UncertaintyWeights(2), dense_copy(nested, frozen=True))
    names = dict(hierarchy.named_parameters())
    assert "weights.log_variances" in names
    assert len(names) == len(dict(nested.named_parameters())) + 1
    assert hierarchy.teacher is not None
    assert not any(p.requires_grad for p in hierarchy.teacher.parameters())


def test_a_dense_copy_computes_what_the_original_did(nested: Any, labelled: dict[str, Tensor]) -> None:
    nested.eval()
    with at_dense(nested), torch.no_grad():
        expected = nested(**labelled).logits
    for frozen in (True, False):
        dense = dense_copy(nested, frozen=frozen)
        assert not nsn_layers(dense)
        torch.testing.assert_close(dense(**labelled).logits.detach(), expected)
    assert len(nsn_layers(nested)) == 12
    query = nsn_layers(nested)["bert.encoder.layer.0.attention.self.query"]
    shared, own = (dense_copy(nested, frozen=frozen).bert.encoder.layer[0].attention.self.query for frozen in (1, 0))
    assert query.weight is not None
    assert shared.weight.data_ptr() == query.weight.data_ptr()
    assert own.weight.data_ptr() != query.weight.data_ptr()


def test_without_kept_weights_the_copy_is_the_product(labelled: dict[str, Tensor]) -> None:
    model = classifier().eval()
    with torch.no_grad():
        expected = model(**labelled).logits
    nsnify_(model, NSNConfig("svd", keep_dense=False))
    torch.testing.assert_close(dense_copy(model, frozen=True)(**labelled).logits, expected, rtol=1e-3, atol=1e-4)


def test_shared_layers_stay_shared(tied: Any) -> None:
    nsnify_(tied, NSNConfig("svd"), filter_fn=lambda module, _: isinstance(module, nn.Linear))
    dense = dense_copy(tied, frozen=False)
    assert dense.first is dense.inner["second"]


def test_a_trained_dense_model_is_nested_again_with_its_curves(labelled: dict[str, Tensor]) -> None:
    model = classifier().eval()
    batch = {name: value for name, value in labelled.items() if name != "labels"}
    covariances = collect_covariances(model, [batch], default_filter)
    ladder = nsnify_(model, NSNConfig(align=4), covariances=covariances)
    dense = dense_copy(model, frozen=False)
    with torch.no_grad():
        expected = dense(**labelled).logits
    nest_like_(dense, ladder, covariances)
    assert ladder_of(dense) == ladder
    for name, layer in nsn_layers(dense).items():
        torch.testing.assert_close(layer.A, nsn_layers(model)[name].A, rtol=1e-3, atol=1e-4)
    with at_dense(dense), torch.no_grad():
        torch.testing.assert_close(dense(**labelled).logits, expected)
    assert inside(ladder, "body").layers[0].name == f"body.{ladder.layers[0].name}"


def test_dense_weights_are_away_and_come_back(nested: Any) -> None:
    before = {name: layer.weight for name, layer in nsn_layers(nested).items()}
    with without_dense_weights(nested):
        assert all(layer.weight is None for layer in nsn_layers(nested).values())
        assert not any(name.endswith("query.weight") for name in nested.state_dict())
    assert all(layer.weight is before[name] for name, layer in nsn_layers(nested).items())


def test_factors_alone_or_everything_is_trained(nested: Any) -> None:
    set_trained_(nested, "factors")
    assert {name.rsplit(".", 1)[1] for name, p in nested.named_parameters() if p.requires_grad} == {"A", "B"}
    set_trained_(nested, "all")
    assert all(p.requires_grad for p in nested.parameters())


def test_a_model_without_nested_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no nested layers"):
        Hierarchy(classifier())
