"""A run's settings as transformers' own `TrainingArguments`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from nsn_edge.errors import UsageError
from nsn_edge.training.config import TrainConfig


def training_arguments(
    config: TrainConfig, folder: Path, learning_rate: float, steps: int | None, epochs: float
) -> TrainingArguments:
    """What the Trainer takes.

    Args:
        config: of the run.
        folder: where states go.
        learning_rate: the highest.
        steps: optimiser steps; None to count by `epochs`.
        epochs: passes over the data.

    Raises:
        UsageError: the batch does not divide among the processes and micro-batches.
    """
    on_gpu = torch.cuda.is_available()
    share = int(os.environ.get("WORLD_SIZE", "1")) * config.accumulate
    if config.batch_size % share:
        raise UsageError(
            f"a batch of {config.batch_size} does not divide among {share} (processes times micro-batches)",
            f"choose a multiple of {share}",
        )
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=-1 if steps is None else steps,
        num_train_epochs=epochs,
        per_device_train_batch_size=config.batch_size // share,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=learning_rate,
        warmup_ratio=config.warmup,
        weight_decay=config.weight_decay,
        seed=config.seed,
        group_by_length=True,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        gradient_checkpointing=config.checkpointing,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
    )
