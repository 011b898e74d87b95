"""What is minimised: a loss of each rank, and how the losses of a step's ranks become one number.

    L(k) = label loss                                        LabelLoss
         | T^2 KL(teacher || rank k)                         LogitDistillation     (Hinton et al., arXiv 1503.02531)
         | how far the hidden states are from the teacher's  HiddenDistillation (the last), BlocksDistillation (all)
         | a weighted sum of these                           Mixed

    total = mean_k L(k)                                      EqualWeights
          | sum_k exp(-s_k) L(k) + s_k                       UncertaintyWeights    (arXiv 2509.17874, after 1705.07115)

The teacher is the dense model the factors were cut from, frozen. Every part is a plain function of outputs, so that any
of them can be exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, kl_div, log_softmax

from nsn_edge.errors import UsageError

Batch = Mapping[str, Tensor]

WEIGHTINGS = ("equal", "uncertainty")


class VariantLoss(Protocol):
    """The loss of one rank."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has to run."""

    def __call__(self, outputs: Any, teacher: Any, batch: Batch) -> Tensor:
        """A scalar.

        Args:
            outputs: of the model at the rank.
            teacher: outputs of the dense model for the same batch; None where it did not run.
            batch: what went in, labels included.
        """


@dataclass(frozen=True)
class LabelLoss:
    """The task's own loss."""

    function: Callable[[Any, Batch], Tensor] | None = None
    """`(outputs, batch)` to a scalar; None for `outputs.loss`, which transformers models compute from `labels`."""
    needs_teacher: bool = False

    def __call__(self, outputs: Any, teacher: Any, batch: Batch) -> Tensor:
        """The loss against the labels."""
        if self.function is not None:
            return self.function(outputs, batch)
        loss = getattr(outputs, "loss", None)
        if not isinstance(loss, Tensor):
            raise UsageError(
                f"the model computes no loss from this batch, which holds {', '.join(batch)}",
                "give it labels, a loss function, or train by distillation alone",
            )
        return loss


@dataclass(frozen=True)
class LogitDistillation:
    """`T^2 KL(softmax(teacher / T) || softmax(student / T))`, the mean over examples, or over tokens."""

    temperature: float = 2.0
    """T; larger values give the less likely classes more say. The factor T^2 keeps the gradients' size."""
    needs_teacher: bool = True

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(f"a temperature is above 0, not {self.temperature}")

    def __call__(self, outputs: Any, teacher: Any, batch: Batch) -> Tensor:
        """From logits `[batch, classes]` or `[batch, seq, classes]`; tokens that `attention_mask` leaves out count
        for nothing."""
        student, target = logits_of(outputs).float(), logits_of(teacher).float()
        if student.shape != target.shape:
            raise UsageError(f"the teacher's logits are {list(target.shape)}, and the model's {list(student.shape)}")
        logs = [log_softmax(logits / self.temperature, dim=-1) for logits in (student, target)]
        each = kl_div(logs[0], logs[1], reduction="none", log_target=True).sum(-1)
        return self.temperature**2 * masked_mean(each, batch)


@dataclass(frozen=True)
class HiddenDistillation:
    """For encoders: `|h - t|^2 / |t|^2` over the last hidden states of real tokens, and, where the task pools them to
    one embedding, the mean of `1 - cos` between the embeddings besides."""

    pool: Callable[[Tensor, Tensor], Tensor] | None = None
    """`(hidden [batch, seq, d], mask [batch, seq])` to `[batch, d]`; None where nothing is pooled."""
    needs_teacher: bool = True

    def __call__(self, outputs: Any, teacher: Any, batch: Batch) -> Tensor:
        """From `last_hidden_state`."""
        student, target = hidden_of(outputs).float(), hidden_of(teacher).float()
        keep = _real_tokens(student, batch)
        loss = relative_error(student, target, keep)
        if self.pool is not None:
            loss = loss + (1 - cosine_similarity(self.pool(student, keep), self.pool(target, keep), dim=-1)).mean()
        return loss


@dataclass(frozen=True)
class BlocksDistillation:
    """`|h - t|^2 / |t|^2` after every block, the mean over blocks: each block answers as the teacher's does, for texts
    whose label it knows by heart as well. Needs outputs with `hidden_states`."""

    needs_teacher: bool = True
    needs_hidden_states: bool = True

    def __call__(self, outputs: Any, teacher: Any, batch: Batch) -> Tensor:
        """From `hidden_states`, the embeddings' left out: they are the teacher's own."""
        pairs = list(zip(_blocks_of(outputs), _blocks_of(teacher), strict=True))[1:]
        errors = [relative_error(h.float(), t.float(), _real_tokens(h, batch)) for h, t in pairs]
        return torch.stack(errors).mean()


@dataclass(frozen=True)
class Mixed:
    """A weighted sum of losses."""

    parts: tuple[tuple[float, VariantLoss], ...]
    """`(weight, loss)` each."""

    def __post_init__(self) -> None:
        if not self.parts or any(not weight > 0 for weight, _ in self.parts):
            raise UsageError("a mixed loss has one part or more, each with a weight above 0")

    @property
    def needs_teacher(self) -> bool:
        """Whether any part does."""
        return any(loss.needs_teacher for _, loss in self.parts)

    @property
    def needs_hidden_states(self) -> bool:
        """Whether any part does."""
        return any(needs_hidden_states(loss) for _, loss in self.parts)

    def __call__(self, outputs: Any, teacher: Any, batch: Batch) -> Tensor:
        """The sum."""
        return torch.stack([weight * loss(outputs, teacher, batch) for weight, loss in self.parts]).sum()


class EqualWeights(nn.Module):
    """`mean_k L(k)`."""

    def forward(self, losses: Tensor) -> Tensor:
        """`[variants]` to a scalar."""
        return losses.mean()


class UncertaintyWeights(nn.Module):
    """`sum_k exp(-s_k) L(k) + s_k` with learned `s_k`, one for each place in the step (the anchor, the drawn one).

    At `s_k = log L(k)` the gradient of `s_k` is zero: a loss weighs in by its inverse.
    """

    log_variances: nn.Parameter
    """`s` `[variants]`, zero at first."""

    def __init__(self, variants: int) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(variants))

    def forward(self, losses: Tensor) -> Tensor:
        """`[variants]` to a scalar.

        Raises:
            UsageError: another number of losses than of `s`.
        """
        if losses.shape != self.log_variances.shape:
            raise UsageError(
                f"the objective weighs {len(self.log_variances)} ranks a step, and there are {len(losses)}",
                "make it with the sampler's count",
            )
        return ((-self.log_variances).exp() * losses + self.log_variances).sum()


def weighting(kind: str, variants: int) -> nn.Module:
    """`equal` or `uncertainty`.

    Raises:
        UsageError: another.
    """
    if kind not in WEIGHTINGS:
        raise UsageError(f"unknown weighting {kind!r}", f"choose one of {', '.join(WEIGHTINGS)}")
    return EqualWeights() if kind == "equal" else UncertaintyWeights(variants)


def logits_of(outputs: Any) -> Tensor:
    """The logits of a transformers output, or the output itself where it is a tensor."""
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        raise UsageError(f"{type(outputs).__name__} holds no logits to distil", "choose another objective")
    return logits


def hidden_of(outputs: Any) -> Tensor:
    """The last hidden state of a transformers output, or the output itself where it is a tensor."""
    hidden = outputs if isinstance(outputs, Tensor) else getattr(outputs, "last_hidden_state", None)
    if not isinstance(hidden, Tensor):
        raise UsageError(f"{type(outputs).__name__} holds no hidden states to distil", "choose another objective")
    return hidden


def needs_hidden_states(loss: VariantLoss | None) -> bool:
    """Whether the models have to give the hidden states of every block."""
    return bool(getattr(loss, "needs_hidden_states", False))


def relative_error(student: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """`|student - target|^2 / |target|^2` over `[..., d]`, where `keep` `[...]` is 1."""
    error = ((student - target).square().sum(-1) * keep).sum()
    return error / (target.square().sum(-1) * keep).sum().clamp_min(1e-12)


def _real_tokens(hidden: Tensor, batch: Batch) -> Tensor:
    """1 for every token that is none of padding; for every place where there is no such mask (images)."""
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != hidden.shape[:-1]:
        return torch.ones(hidden.shape[:-1], device=hidden.device)
    return mask.to(torch.float32)


def _blocks_of(outputs: Any) -> tuple[Tensor, ...]:
    found = getattr(outputs, "hidden_states", None)
    if not found:
        raise UsageError(
            f"{type(outputs).__name__} holds no hidden states of its blocks", "leave them out: hidden_weight 0"
        )
    return tuple(found)


def masked_mean(each: Tensor, batch: Batch) -> Tensor:
    """The mean of `[batch]`, or of `[batch, seq]` over the tokens that `attention_mask` keeps."""
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != each.shape:
        return each.mean()
    keep = mask.to(each.dtype)
    return (each * keep).sum() / keep.sum().clamp_min(1.0)
