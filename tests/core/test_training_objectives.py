"""The mathematics of training against formulas written out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nsn_edge.errors import UsageError
from nsn_edge.training.objectives import (
    BlocksDistillation,
    EqualWeights,
    HiddenDistillation,
    LabelLoss,
    LogitDistillation,
    Mixed,
    UncertaintyWeights,
    needs_hidden_states,
    weighting,
)


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def test_distillation_is_hintons_formula() -> None:
    student, teacher, temperature = [[1.0, -2.0, 0.5], [0.0, 0.0, 3.0]], [[2.0, 0.0, -1.0], [1.0, 1.0, 1.0]], 2.0
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    loss = LogitDistillation(temperature)(logits(*student), SimpleNamespace(logits=logits(*teacher)), {})
    assert float(loss) == pytest.approx(temperature**2 * expected, rel=1e-6)


def test_distillation_from_itself_is_zero_and_has_no_gradient() -> None:
    student = logits([1.0, 2.0], [3.0, -1.0]).requires_grad_()
    loss = LogitDistillation(3.0)(student, student.detach(), {})
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-7)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-7


def test_padding_does_not_count_for_tokens() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    masked = LogitDistillation(1.0)(student, teacher, {"attention_mask": mask})
    kept = mask.bool()
    assert float(masked) == pytest.approx(float(LogitDistillation(1.0)(student[kept], teacher[kept], {})), rel=1e-6)


def test_other_classes_cannot_be_distilled() -> None:
    with pytest.raises(UsageError, match=r"the teacher's logits are \[1, 3\], and the model's \[1, 2\]"):
        LogitDistillation()(torch.zeros(1, 2), torch.zeros(1, 3), {})
    with pytest.raises(UsageError, match="holds no logits"):
        LogitDistillation()(SimpleNamespace(), torch.zeros(1, 3), {})
    with pytest.raises(UsageError, match="above 0"):
        LogitDistillation(0.0)


def test_hidden_distillation_by_hand() -> None:
    student = torch.tensor([[[1.0, 0.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 2.0], [5.0, 5.0]]])
    mask = torch.tensor([[1, 0]])
    outputs, target = SimpleNamespace(last_hidden_state=student), SimpleNamespace(last_hidden_state=teacher)
    batch = {"attention_mask": mask}
    assert float(HiddenDistillation()(outputs, target, batch)) == pytest.approx((1 + 4) / 4)

    def first(hidden: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return hidden[:, 0]

    # The two embeddings are at right angles: 1 - cos is 1.
    assert float(HiddenDistillation(first)(outputs, target, batch)) == pytest.approx(5 / 4 + 1)


def test_blocks_distillation_by_hand() -> None:
    """The mean over blocks of the relative squared error over real tokens; the embeddings' states count for nothing."""
    mask = torch.tensor([[1, 0]])
    target = [torch.full((1, 2, 2), value) for value in (9.0, 1.0, 2.0)]
    student = [torch.zeros(1, 2, 2), torch.tensor([[[1.0, 2.0], [50.0, 50.0]]]), torch.zeros(1, 2, 2)]
    outputs, teacher = SimpleNamespace(hidden_states=student), SimpleNamespace(hidden_states=target)
    loss = BlocksDistillation()
    assert float(loss(outputs, teacher, {"attention_mask": mask})) == pytest.approx((1 / 2 + 1) / 2)
    assert float(loss(teacher, teacher, {"attention_mask": mask})) == 0.0
    images = SimpleNamespace(hidden_states=[torch.ones(1, 3, 2), torch.ones(1, 3, 2)])
    assert float(loss(images, images, {})) == 0.0
    assert needs_hidden_states(loss)
    assert needs_hidden_states(Mixed(((1.0, LabelLoss()), (2.0, loss))))
    assert not needs_hidden_states(Mixed(((1.0, LabelLoss()), (2.0, LogitDistillation()))))
    assert not needs_hidden_states(None)
    with pytest.raises(UsageError, match="no hidden states of its blocks"):
        loss(SimpleNamespace(logits=target[0]), teacher, {})


def test_label_loss_is_the_models_own_or_a_function() -> None:
    outputs = SimpleNamespace(loss=torch.tensor(1.5))
    assert float(LabelLoss()(outputs, None, {})) == 1.5
    assert float(LabelLoss(lambda out, batch: out.loss * batch["x"])(outputs, None, {"x": torch.tensor(2.0)})) == 3.0
    with pytest.raises(UsageError, match="computes no loss from this batch, which holds input_ids"):
        LabelLoss()(SimpleNamespace(), None, {"input_ids": torch.zeros(1)})


def test_a_mixture_is_a_weighted_sum_and_asks_for_a_teacher_if_a_part_does() -> None:
    part = LabelLoss(lambda out, batch: out.sum())
    assert float(Mixed(((0.25, part), (2.0, part)))(torch.ones(2), None, {})) == pytest.approx(4.5)
    assert not Mixed(((1.0, part),)).needs_teacher
    assert Mixed(((1.0, part), (0.5, LogitDistillation()))).needs_teacher
    with pytest.raises(UsageError, match="one part or more"):
        Mixed(())


def test_uncertainty_is_the_papers_formula() -> None:
    weights, losses = UncertaintyWeights(2), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([0.2, -0.7]))
    total = weights(losses)
    assert total.item() == pytest.approx(math.exp(-0.2) * 0.5 + 0.2 + math.exp(0.7) * 3.0 - 0.7)
    total.backward()
    assert weights.log_variances.grad is not None
    assert weights.log_variances.grad.tolist() == pytest.approx([1 - math.exp(-0.2) * 0.5, 1 - math.exp(0.7) * 3.0])
    with pytest.raises(UsageError, match="weighs 2 ranks a step, and there are 3"):
        weights(torch.ones(3))


def test_uncertainty_settles_where_a_loss_weighs_by_its_inverse() -> None:
    weights, losses = UncertaintyWeights(2), torch.tensor([0.5, 4.0])
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        weights(losses).backward()
        optimizer.step()
    assert weights.log_variances.tolist() == pytest.approx([math.log(0.5), math.log(4.0)], abs=1e-4)


def test_equal_weights_are_the_mean() -> None:
    assert float(EqualWeights()(torch.tensor([1.0, 2.0, 6.0]))) == 3.0
    assert not list(EqualWeights().parameters())


@pytest.mark.parametrize(("kind", "expected"), [("equal", EqualWeights), ("uncertainty", UncertaintyWeights)])
def test_weighting_by_name(kind: str, expected: Any) -> None:
    made: nn.Module = weighting(kind, 3)
    assert isinstance(made, expected)
    with pytest.raises(UsageError, match="unknown weighting 'best'"):
        weighting("best", 3)
