"""transformers' Trainer for a nested model: every step trains several ranks of the one set of weights.

    NSNTrainer(model, args=TrainingArguments(...), train_dataset=..., sampler=..., loss=..., teacher=...).train()

What people know of the Trainer stays: DDP and FSDP through accelerate, mixed precision, gradient accumulation and
checkpointing, schedules, logging, callbacks, resume. Changed here: the loss, what is saved (only what is trained, and
in one step), and that a loss which is not a number ends the run before it reaches the weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from nsn_edge.errors import UsageError
from nsn_edge.layers import ladder_of, nsn_layers
from nsn_edge.training.config import TRAINED
from nsn_edge.training.hierarchy import (
    Call,
    Hierarchy,
    call_with_hidden_states,
    call_with_names,
    call_without_labels,
    without_dense_weights,
)
from nsn_edge.training.objectives import VariantLoss, needs_hidden_states
from nsn_edge.training.ranks import RankSampler, rank_pool
from nsn_edge.training.safe_trainer import SafeTrainer


class NSNTrainer(SafeTrainer):
    """Trains a nested model in place.

    Args:
        model: holds nested layers; a transformers model, or a plain module.
        args: transformers' own. `remove_unused_columns` is turned off: the model's forward is called with the batch.
        sampler: which ranks each step takes; None for two of the useful ranks, drawn with `args.seed`.
        loss: of one rank; None for the model's own loss against labels.
        weights: makes one number of a step's losses; None for their mean.
        teacher: the dense model, frozen, where the loss needs one: `dense_copy(model, frozen=True)`.
        trained: `factors` or `all`; None leaves `requires_grad` as it is. With `all` the kept dense weights no longer
            fit the rest of the model: drop them (`drop_dense_weights_`).
        call: how models take a batch; None for `model(**batch)`, or `model(*inputs)` where the model is a plain module.
        evaluated_ranks: what `evaluate` takes; None for the largest.
        options: `train_dataset`, `eval_dataset`, `data_collator`, `callbacks`, ...: the Trainer's.

    Raises:
        UnsupportedModelError: the model has no nested layers.
        UsageError: the loss needs a teacher and there is none, the model has no head, or an option that does not go
            with nested training.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        sampler: RankSampler | None = None,
        loss: VariantLoss | None = None,
        weights: nn.Module | None = None,
        teacher: nn.Module | None = None,
        trained: str | None = None,
        call: Call | None = None,
        evaluated_ranks: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        ladder = ladder_of(model)
        if args.load_best_model_at_end or args.save_strategy == "best":
            raise UsageError(
                "there is no one best checkpoint of a whole hierarchy", "save by steps or epochs, and compare rungs"
            )
        if loss is not None and loss.needs_teacher and teacher is None:
            raise UsageError("this loss needs a teacher", "give teacher=dense_copy(model, frozen=True)")
        if call is None and hasattr(model, "config"):
            call = call_with_hidden_states if needs_hidden_states(loss) else call_with_names
        self.sampler = sampler or RankSampler(rank_pool("continuous", ladder), ladder.max_rank, seed=args.seed)
        self.evaluated_ranks = tuple(evaluated_ranks or (ladder.max_rank,))
        self._nested = model
        hierarchy = Hierarchy(model, loss, weights, teacher, call or call_without_labels)
        if trained is not None:
            set_trained_(model, trained)
        if trained == "factors" and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # every step reaches all factors, if with zeros
        super().__init__(model=hierarchy, args=args, **options)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """`Trainer.train`; the dense weights are out of the way meanwhile.

        Raises:
            TrainingError: a loss or a weight is not finite.
            NsnEdgeError: the disk is full.
        """
        with without_dense_weights(self._nested), _no_cache(self._nested):
            return super().train(*arguments, **options)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The step's loss over its ranks."""
        ranks = self.sampler.ranks_at(self.state.global_step) if model.training else self.evaluated_ranks
        total, losses = model(ranks=ranks, batch=inputs)
        if not bool(torch.isfinite(total)) or not bool(torch.isfinite(losses).all()):
            bad = [(rank, loss) for rank, loss in zip(ranks, losses.tolist(), strict=True) if not math.isfinite(loss)]
            what = f"the loss at rank {bad[0][0]} became {bad[0][1]}" if bad else "the weighted loss became infinite"
            raise self.stopped(what)
        return (total, {"losses": losses}) if return_outputs else total

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The mean loss at every one of `evaluated_ranks`: `eval_loss_rank_96`, and the mean of these, `eval_loss`."""
        ranks = self.evaluated_ranks
        sums = torch.zeros(len(ranks) + 1, device=self.args.device)
        self.model.eval()
        with torch.no_grad():
            for batch in self.get_eval_dataloader(eval_dataset):
                inputs = self._prepare_inputs(batch)
                rows = len(next(iter(inputs.values())))
                _, losses = self.model(ranks=ranks, batch=inputs)
                sums += torch.cat([losses * rows, losses.new_tensor([rows])])
        sums = self.accelerator.reduce(sums, "sum").cpu()
        each = (sums[:-1] / sums[-1]).tolist()
        metrics = {f"{metric_key_prefix}_loss_rank_{rank}": loss for rank, loss in zip(ranks, each, strict=True)}
        metrics[f"{metric_key_prefix}_loss"] = sum(each) / len(each)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Those of the Trainer, without the objective's own parameters: decay would pull `s_k` to zero."""
        return [name for name in super().get_decay_parameter_names(model) if not name.startswith("weights.")]


def set_trained_(model: nn.Module, trained: str) -> None:
    """Freeze everything but the factors, or thaw everything.

    Raises:
        UsageError: neither `factors` nor `all`.
    """
    if trained not in TRAINED:
        raise UsageError(f"what is trained is {' or '.join(TRAINED)}, not {trained!r}")
    model.requires_grad_(trained == "all")
    if trained == "factors":
        for layer in nsn_layers(model).values():
            layer.A.requires_grad_(True)
            layer.B.requires_grad_(True)


def drop_dense_weights_(model: nn.Module) -> None:
    """Forget the dense originals: after everything else was trained they no longer belong to the model."""
    for layer in nsn_layers(model).values():
        layer.weight = None


@contextlib.contextmanager
def _no_cache(model: nn.Module) -> Iterator[None]:
    """A decoder in training needs no cache of keys and values."""
    config = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before  # type: ignore[union-attr]
