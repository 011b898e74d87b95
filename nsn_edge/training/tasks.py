"""What each task makes of examples and of a teacher: rows for the model, and the loss of a rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from nsn_edge.bundle import TaskSpec
from nsn_edge.errors import UsageError
from nsn_edge.evaluation import pool_hidden
from nsn_edge.training.batches import (
    LONGEST,
    Rows,
    image_processor,
    image_rows,
    text_rows,
    text_tokenizer,
    token_blocks,
)
from nsn_edge.training.config import TrainConfig
from nsn_edge.training.data import Examples
from nsn_edge.training.objectives import (
    BlocksDistillation,
    HiddenDistillation,
    LabelLoss,
    LogitDistillation,
    Mixed,
    VariantLoss,
)

TASKS = ("text-classification", "text-generation", "feature-extraction", "image-classification")


def config_for(config: TrainConfig, task: str) -> TrainConfig:
    """The settings, with what the task leaves no choice about.

    Raises:
        UsageError: a task that cannot be trained, or labels for one without.
    """
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}", f"choose one of {', '.join(TASKS)}")
    if task == "feature-extraction":
        if config.objective == "labels":
            raise UsageError("feature extraction is distilled from the dense model and takes no labels")
        return replace(config, objective="distill")
    return config


def rows_for(
    spec: TaskSpec, examples: Examples, assets: Path | None, label_ids: Mapping[str, int] | None, config: TrainConfig
) -> Rows:
    """Examples as the model takes them.

    Args:
        spec: the task.
        examples: what was read.
        assets: the checkpoint's folder, with its tokenizer or image processor.
        label_ids: the number of each label; None where the task has none.
        config: says how long an example may be.

    Raises:
        UsageError: a label that the model does not know, or no image processor.
        NsnEdgeError: no tokenizer.
    """
    if spec.name == "image-classification":
        assert label_ids is not None
        return image_rows(image_processor(assets), examples, label_ids)
    length = min(config.max_length or LONGEST, spec.max_length or config.max_length or LONGEST)
    tokenizer = text_tokenizer(assets)
    if spec.name == "text-generation":
        return token_blocks(tokenizer, examples, length)
    return text_rows(tokenizer, examples, label_ids, length)


def loss_for(spec: TaskSpec, config: TrainConfig) -> VariantLoss:
    """The loss of a rank."""
    if config.objective == "labels":
        return LabelLoss()
    distillation: VariantLoss = LogitDistillation(config.temperature)
    if spec.name == "feature-extraction":
        distillation = HiddenDistillation(None if spec.pooling is None else partial(pool_hidden, task=spec))
    parts: list[tuple[float, VariantLoss]] = [(1.0, distillation)]
    if config.objective == "mixed":
        parts = [(1 - config.distill_weight, LabelLoss()), (config.distill_weight, distillation)]
    if config.hidden_weight and spec.name != "feature-extraction":
        parts.append((config.hidden_weight, BlocksDistillation()))
    return Mixed(tuple(parts)) if len(parts) > 1 else distillation
