"""transformers' Trainer with checkpoints that are whole or absent, and a stop before a bad number is kept.

Only what is trained is saved. A checkpoint appears under its name when every process has written its part of it; a
weight that is not finite is refused then, so that the last good state stays the last one.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from nsn_edge.errors import MissingDependencyError, TrainingError
from nsn_edge.progress import Progress
from nsn_edge.training import saving
from nsn_edge.training.lengths import LengthGroupedSampler

if importlib.util.find_spec("accelerate") is None:  # transformers would say so in a paragraph, and only later
    raise MissingDependencyError("accelerate", "train", "training")

_LESS = "lower the learning rate, or look for odd values in the data"


class SafeTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that never leaves half a checkpoint, nor a bad one. Its arguments are the Trainer's."""

    model: Any
    control: Any

    def __init__(self, model: nn.Module, args: TrainingArguments, **options: Any) -> None:
        self._staging = False
        args.remove_unused_columns = False  # the batch goes to the model as it is
        if args.ddp_find_unused_parameters is None:  # a pooler, say, that nothing of reaches the loss
            args.ddp_find_unused_parameters = not args.gradient_checkpointing
        if args.ddp_broadcast_buffers is None:
            args.ddp_broadcast_buffers = False
        super().__init__(model=model, args=args, **options)
        self.model_accepts_loss_kwargs = False  # losses are means: of the micro-batches of a step the mean is taken
        self.remove_callback(PrinterCallback)  # it prints to standard output, which belongs to results

    def train(self, *arguments: Any, **options: Any) -> Any:
        """`Trainer.train`.

        Raises:
            TrainingError: a loss or a weight is not finite.
            NsnEdgeError: the disk is full.
        """
        run = Path(self.args.output_dir)
        if self.is_world_process_zero():
            saving.discard_staged(run)
        with saving.disk_errors(run):
            return super().train(*arguments, **options)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss.

        Raises:
            TrainingError: it is not finite.
        """
        outputs = model(**inputs)
        if not bool(torch.isfinite(outputs.loss)):
            raise self.stopped(f"the loss of the dense model became {outputs.loss.item()}")
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Texts of like length in one batch, where the arguments ask for it (`group_by_length`) and lengths differ."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_length or not hasattr(dataset, "lengths"):
            return super()._get_train_sampler(train_dataset)
        lengths = dataset.lengths
        if lengths is None:
            return RandomSampler(dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler(lengths, step, self.args.seed)

    def stopped(self, reason: str) -> TrainingError:
        """Why training ends in the step under way, and what is left."""
        last = saving.last_saved(Path(self.args.output_dir))
        stands = "nothing had been saved yet" if last is None else f"the last good state is {last}"
        return TrainingError(f"{reason} in step {self.state.global_step + 1}; {stands}", _LESS)

    def _get_output_dir(self, trial: Any) -> str:
        run = Path(super()._get_output_dir(trial))
        return str(run / saving.STAGING if self._staging else run)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Written beside its place by all processes, then renamed by one."""
        self._check_weights()
        run = Path(self._get_output_dir(trial))
        with saving.disk_errors(run):
            self._staging = True
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "mtime may not be reliable", UserWarning)
                    super()._save_checkpoint(model, trial)
            except BaseException:
                saving.discard_staged(run)  # on a full disk every byte counts
                raise
            finally:
                self._staging = False
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                saving.publish(run, f"checkpoint-{self.state.global_step}")
                self._rotate_checkpoints(use_mtime=False, output_dir=str(run))
            self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        saving.save_trained(saving.trained_tensors(self.model) if state_dict is None else state_dict, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            saving.load_trained_(self.model if model is None else model, Path(resume_from_checkpoint))

    def _check_weights(self) -> None:
        """A checkpoint with a weight that is not a number would replace the last good one."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                self.state.global_step -= 1  # the step that is over did it
                raise self.stopped(f"the weight {name.removeprefix('model.')!r} became NaN or infinite")


class ProgressReport(TrainerCallback):  # type: ignore[misc]
    """Tells a `Progress` of every step, on the main process, and keeps what was logged."""

    def __init__(self, progress: Progress, stage: str = "train") -> None:
        self._progress = progress
        self._stage = stage
        self.logged: list[dict[str, float]] = []
        """The Trainer's logs: step, loss, learning rate, gradient norm."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done."""
        if state.is_world_process_zero:
            self._progress(self._stage, state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Something was logged."""
        if logs and "loss" in logs:
            self.logged.append({"step": state.global_step, **logs})
