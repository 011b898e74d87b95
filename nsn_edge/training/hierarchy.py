"""What a step trains: one module whose forward is every rank of the step, and whose output is the loss.

    batch ---> teacher (dense, frozen) ----------+
      |                                          v
      +-----> model at rank k_1 ---> L(k_1) ---+
      +-----> model at rank k_2 ---> L(k_2) ---+---> total = weighting(L)
                                                     (its s_k are parameters of this module, too)

That it is one module with one forward is what lets DDP and FSDP wrap it like any other, and what puts the objective's
own parameters into the optimiser and into the saved state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from nsn_edge.errors import UnsupportedModelError
from nsn_edge.layers import at_rank, nsn_layers
from nsn_edge.training.objectives import Batch, EqualWeights, LabelLoss, VariantLoss

Call = Callable[[nn.Module, Batch], Any]
"""How a model takes a batch."""


def call_with_names(model: nn.Module, batch: Batch) -> Any:
    """`model(**batch)`: transformers models, which compute their loss from `labels`."""
    return model(**batch)


def call_with_hidden_states(model: nn.Module, batch: Batch) -> Any:
    """As `call_with_names`; the outputs hold the hidden states of every block."""
    return model(**batch, output_hidden_states=True)


def call_without_labels(model: nn.Module, batch: Batch) -> Any:
    """`model(*inputs)` in the order of the batch, labels left out: plain modules."""
    return model(*(value for name, value in batch.items() if name != "labels"))


class Hierarchy(nn.Module):
    """A nested model with its objective.

    Args:
        model: holds nested layers. Trained in place.
        loss: of one rank.
        weights: makes one number of the losses of a step.
        teacher: the dense model; where `loss` needs it.
        call: how the models take a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: VariantLoss | None = None,
        weights: nn.Module | None = None,
        teacher: nn.Module | None = None,
        call: Call = call_with_names,
    ) -> None:
        super().__init__()
        if not nsn_layers(model):
            raise UnsupportedModelError(
                f"{type(model).__name__} has no nested layers", "adapt it first: nsnify_(model), or nsn-edge adapt"
            )
        self.model = model
        self.weights = weights or EqualWeights()
        self.loss = loss or LabelLoss()
        self._call = call
        # In a list, so that it is no part of this module: neither trained nor saved nor sharded.
        self._teacher = [] if teacher is None else [teacher]
        self._rank = 0

    @property
    def teacher(self) -> nn.Module | None:
        """The dense model, or None."""
        return self._teacher[0] if self._teacher else None

    @property
    def _no_split_modules(self) -> list[str] | None:
        """What FSDP wraps by default: the model's own blocks."""
        return getattr(self.model, "_no_split_modules", None)

    def forward(self, ranks: Sequence[int], batch: Batch) -> tuple[Tensor, Tensor]:
        """The total loss, and the loss of each rank `[len(ranks)]`, float32."""
        target = self._ask_teacher(batch) if self.loss.needs_teacher else None
        losses = []
        for rank in ranks:
            self._rank = rank
            with at_rank(self.model, rank):
                losses.append(self.loss(self._call(self.model, batch), target, batch).float())
        each = torch.stack(losses)
        return self.weights(each) if self.training else each.mean(), each.detach()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Trade time for memory. What the backward pass computes again, it computes at the rank of the forward one:
        by then the model stands at another."""
        enable = getattr(self.model, "gradient_checkpointing_enable", None)
        if enable is None:
            raise UnsupportedModelError(f"{type(self.model).__name__} has no gradient checkpointing")
        kwargs = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False, "context_fn": self._contexts}
        enable(gradient_checkpointing_kwargs=kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For the forward pass, and for what is computed again."""
        return contextlib.nullcontext(), at_rank(self.model, self._rank)

    def _ask_teacher(self, batch: Batch) -> Any:
        teacher = self._teacher[0]
        device = next(iter(batch.values())).device
        if next(teacher.parameters()).device != device:
            teacher.to(device)
        with torch.no_grad():
            return self._call(teacher, batch)


@contextlib.contextmanager
def without_dense_weights(model: nn.Module) -> Iterator[None]:
    """The dense weights out of the nested layers: they are not trained, so they need not be moved, sent or saved."""
    layers = [layer for layer in nsn_layers(model).values() if layer.weight is not None]
    kept = [layer.weight for layer in layers]
    for layer in layers:
        layer.weight = None
    try:
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight = weight
