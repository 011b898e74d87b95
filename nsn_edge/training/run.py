"""From a checkpoint and a user's data to a trained checkpoint, through interruptions.

    checkpoint + data
      |  the head is new, or dense_epochs are asked for
      |      dense model --train--> dense/checkpoint-N --cut again on the data--> start/       (a checkpoint)
      |  nested model --train every rank, the dense one as teacher--> nested/checkpoint-N
      v
    OUTPUT                       an ordinary checkpoint; OUTPUT.run, which holds all of the above, goes away

Run again after an interruption, the same command goes on from the last state that was saved whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nsn_edge._version import __version__
from nsn_edge.atomic import atomic_write_bytes, check_replaceable
from nsn_edge.bundle import TaskSpec
from nsn_edge.bundle.store import sha256_of
from nsn_edge.calibration import collect_covariances
from nsn_edge.checkpoint import MANIFEST_NAME, WEIGHTS_NAME, Checkpoint, is_checkpoint_folder
from nsn_edge.errors import CheckpointError, RankError, UsageError
from nsn_edge.evaluation import pool_hidden
from nsn_edge.ladder import RankLadder
from nsn_edge.progress import Progress, silent
from nsn_edge.training import saving
from nsn_edge.training.batches import Rows, image_processor, image_rows, text_rows, text_tokenizer, token_blocks
from nsn_edge.training.config import TrainConfig
from nsn_edge.training.data import Columns, Examples, read_examples
from nsn_edge.training.dense import dense_copy, nest_like_
from nsn_edge.training.heads import label_ids_of, label_names, with_new_head
from nsn_edge.training.objectives import HiddenDistillation, LabelLoss, LogitDistillation, Mixed, VariantLoss, weighting
from nsn_edge.training.safe_trainer import ProgressReport, SafeTrainer
from nsn_edge.training.trainer import NSNTrainer, drop_dense_weights_

SCHEMA_VERSION = 1
RUN_NAME = "run.json"
TASKS = ("text-classification", "text-generation", "feature-extraction", "image-classification")

_CALIBRATION_ROWS = 1000
_FRACTIONS = (1.0, 0.75, 0.5, 0.35, 0.25)


@dataclass(frozen=True)
class Source:
    """What to train on."""

    data: str
    """A file, a folder or a hub id."""
    columns: Columns = field(default_factory=Columns)
    """Where text and labels stand."""
    split: str = "train"
    """Of a folder or a hub's data set."""
    held_out: str | None = None
    """Data to measure the loss on, of the same kind; None for none."""
    held_out_split: str = "validation"
    """Of a folder or a hub's data set."""
    new_head: bool = False
    """Make a new head even where the model has one."""


@dataclass(frozen=True)
class Trained:
    """What came of a run."""

    checkpoint: Checkpoint
    """Saved at the output."""
    steps: int
    """Optimiser steps of the nested run."""
    resumed_from: int | None
    """The step that the nested run went on from; None where it began anew."""
    logged: list[dict[str, float]]
    """The loss as the run went."""
    before: Mapping[int, float]
    """Held-out loss by rank before the nested run; empty without held-out data, or where the run was resumed."""
    after: Mapping[int, float]
    """And after it."""
    is_main: bool
    """Whether this process is the one that writes; False in the others of a distributed run."""


def train_checkpoint(
    path: Path,
    output: Path,
    source: Source,
    task: str | None = None,
    config: TrainConfig | None = None,
    *,
    restart: bool = False,
    progress: Progress = silent,
) -> Trained:
    """Train every rank of a checkpoint's model, and write the result as a checkpoint.

    Args:
        path: the checkpoint; untouched, unless it is `output` as well.
        output: where the trained one goes. `OUTPUT.run` beside it holds the state of the run until it is done.
        source: the data.
        task: None for the checkpoint's own.
        config: None for the defaults.
        restart: throw the state of an earlier run away.
        progress: hears of every step.

    Raises:
        UsageError: data, labels, ranks or settings that do not fit, or an earlier run with other settings.
        CheckpointError: the checkpoint is damaged or of an unknown version.
        TrainingError: a loss or weight is not finite.
        NsnEdgeError: the disk is full, or the hub cannot be reached.
    """
    config = config or TrainConfig()
    check_replaceable(output, is_checkpoint_folder)
    original = Checkpoint.load(path, progress=progress)
    task = task or original.task.name
    job = _Job(original, path, output, source, task, _fitting(config, task, source), progress)
    job.open(restart)
    return job.run()


def _fitting(config: TrainConfig, task: str, source: Source) -> TrainConfig:
    """The settings, with what the task leaves no choice about."""
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}", f"choose one of {', '.join(TASKS)}")
    if task == "feature-extraction":
        if config.objective == "labels":
            raise UsageError("feature extraction is distilled from the dense model and takes no labels")
        return replace(config, objective="distill")
    return config


class _Job:
    def __init__(
        self,
        original: Checkpoint,
        path: Path,
        output: Path,
        source: Source,
        task: str,
        config: TrainConfig,
        progress: Progress,
    ) -> None:
        self.original = original
        self.output = output
        self.source = source
        self.config = config
        self.progress = progress
        self.folder = output.with_name(f"{output.name}.run")
        self.examples = read_examples(source.data, task, source.columns, source.split)
        self.needs_head = source.new_head or (task != original.task.name and task.endswith("-classification"))
        if task != original.task.name and not self.needs_head:
            raise UsageError(
                f"the checkpoint is of a model for {original.task.name}, not {task}",
                f"adapt the model for it: nsn-edge adapt MODEL --task {task}",
            )
        self.spec = original.task if task == original.task.name else TaskSpec(task, max_length=original.task.max_length)
        self.label_ids = self._label_ids()
        self.rows = self._rows(self.examples)
        self.held_out = None
        if source.held_out is not None:
            self.held_out = self._rows(read_examples(source.held_out, task, source.columns, source.held_out_split))
        self.dense_epochs = config.dense_epochs
        if self.dense_epochs is None:
            self.dense_epochs = config.epochs if self.needs_head else 0.0
        if self.needs_head and self.dense_epochs == 0 and config.objective != "labels":
            raise UsageError(
                "the new head is at random, so the dense model cannot teach",
                "give it --dense-epochs, or train by labels alone: --objective labels",
            )
        config.sampler(original.ladder, 1)  # refuses ranks before anything is made
        self.arguments = self._arguments("nested", config.learning_rate, config.steps, config.epochs)

    def open(self, restart: bool) -> None:
        """Make the run's folder, or find that of an earlier run with the same settings."""
        file = self.folder / RUN_NAME
        if self._is_main and restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._wait()
        if file.is_file():
            self._check_same(file)
        elif self._is_main:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise UsageError(f"{self.folder} holds files of something else", "move it away, or choose another -o")
            document = {"schema_version": SCHEMA_VERSION, "kind": "training-run", **self._identity()}
            atomic_write_bytes(file, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
        self._wait()

    def run(self) -> Trained:
        """The dense part, where there is one, and the nested part."""
        start = self._start()
        model = start.model
        loss = self._loss()
        trainer = NSNTrainer(
            model,
            self.arguments,
            sampler=(sampler := self.config.sampler(start.ladder, self._total_steps)),
            loss=loss,
            weights=weighting(self.config.weights, sampler.count),
            teacher=dense_copy(model, frozen=True) if loss.needs_teacher else None,
            trained=self.config.trained,
            evaluated_ranks=_usual_ranks(start.ladder),
            train_dataset=self.rows,
            eval_dataset=self.held_out,
            data_collator=self.rows.collate,
            callbacks=[report := ProgressReport(self.progress)],
        )
        last = saving.last_saved(Path(self.arguments.output_dir))
        before = self._measured(trainer) if last is None else {}
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        after = self._measured(trainer)
        if self.config.trained == "all":
            drop_dense_weights_(model)
        steps = int(trainer.state.global_step)
        trained = replace(start, model=model.eval(), provenance=self._provenance(start, sampler.trained(steps), steps))
        if self._is_main:
            trained.save(self.output)
            shutil.rmtree(self.folder, ignore_errors=True)
        self._wait()
        trained = replace(trained, assets=self.output)
        resumed = None if last is None else int(last.name.rsplit("-", 1)[1])
        return Trained(trained, steps, resumed, report.logged, before, after, self._is_main)

    def _start(self) -> Checkpoint:
        """The nested model that training begins with."""
        if not self.needs_head and self.dense_epochs == 0:
            return self.original
        folder = self.folder / "start"
        if not is_checkpoint_folder(folder):
            self._train_dense(folder)
        return Checkpoint.load(folder)

    def _train_dense(self, folder: Path) -> None:
        """Train the dense model, cut it again where its inputs are now, and save it as a checkpoint."""
        ladder = self.original.ladder
        if self.needs_head:
            assert self.label_ids is not None
            dense, ladder = with_new_head(self.original.model, self.spec.name, list(self.label_ids), self.config.seed)
        else:
            dense = dense_copy(self.original.model, frozen=False)
        dense.requires_grad_(True)
        if self.dense_epochs:
            config = self.config
            steps = None if config.steps is None else max(1, round(config.steps * self.dense_epochs / config.epochs))
            arguments = self._arguments("dense", config.dense_learning_rate, steps, self.dense_epochs)
            trainer = SafeTrainer(
                dense,
                arguments,
                train_dataset=self.rows,
                data_collator=self.rows.collate,
                callbacks=[ProgressReport(self.progress, "train dense")],
            )
            last = saving.last_saved(Path(arguments.output_dir))
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        if self._is_main:
            dense.eval().requires_grad_(False)
            covariances = None
            if self.original.provenance.get("method") != "svd":
                names = {layer.name for layer in ladder.layers}
                batches = self.rows.batches(self.config.batch_size, _CALIBRATION_ROWS)
                covariances = collect_covariances(dense, batches, lambda _, name: name in names, self.progress)
            nest_like_(dense.cpu(), ladder, covariances, self.progress)
            replace(self.original, model=dense, task=self.spec).save(folder)
        self._wait()

    def _loss(self) -> VariantLoss:
        if self.config.objective == "labels":
            return LabelLoss()
        distillation: VariantLoss = LogitDistillation(self.config.temperature)
        if self.spec.name == "feature-extraction":
            pool = None if self.spec.pooling is None else partial(pool_hidden, task=self.spec)
            distillation = HiddenDistillation(pool)
        if self.config.objective == "distill":
            return distillation
        share = self.config.distill_weight
        return Mixed(((1 - share, LabelLoss()), (share, distillation)))

    def _label_ids(self) -> dict[str, int] | None:
        if self.examples.labels is None:
            return None
        if self.needs_head:
            return {label: number for number, label in enumerate(label_names(self.examples))}
        return label_ids_of(self.original.model)

    def _rows(self, examples: Examples) -> Rows:
        assets, task = self.original.assets, self.spec.name
        if task == "image-classification":
            assert self.label_ids is not None
            return image_rows(image_processor(assets), examples, self.label_ids)
        limits = (self.config.max_length, self.spec.max_length)
        length = min((limit for limit in limits if limit is not None), default=None)
        if self.config.max_length is None and length is not None:
            length = min(length, 256)
        tokenizer = text_tokenizer(assets)
        if task == "text-generation":
            return token_blocks(tokenizer, examples, length)
        return text_rows(tokenizer, examples, self.label_ids, length)

    def _measured(self, trainer: NSNTrainer) -> dict[int, float]:
        if self.held_out is None:
            return {}
        metrics = trainer.evaluate()
        return {rank: metrics[f"eval_loss_rank_{rank}"] for rank in trainer.evaluated_ranks}

    def _arguments(self, stage: str, learning_rate: float, steps: int | None, epochs: float) -> Any:
        from transformers import TrainingArguments

        on_gpu = torch.cuda.is_available()
        share = int(os.environ.get("WORLD_SIZE", "1")) * self.config.accumulate
        if self.config.batch_size % share:
            raise UsageError(
                f"a batch of {self.config.batch_size} does not divide among {share} (processes times micro-batches)",
                f"choose a multiple of {share}",
            )
        return TrainingArguments(
            output_dir=str(self.folder / stage),
            max_steps=-1 if steps is None else steps,
            num_train_epochs=epochs,
            per_device_train_batch_size=self.config.batch_size // share,
            per_device_eval_batch_size=self.config.batch_size,
            gradient_accumulation_steps=self.config.accumulate,
            learning_rate=learning_rate,
            warmup_ratio=self.config.warmup,
            weight_decay=self.config.weight_decay,
            seed=self.config.seed,
            bf16=self.config.precision == "bf16",
            fp16=self.config.precision == "fp16",
            gradient_checkpointing=self.config.checkpointing,
            save_strategy="steps",
            save_steps=self.config.save_every,
            save_total_limit=2,
            logging_steps=10,
            report_to=[],
            disable_tqdm=True,
            log_level="error",
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
        )

    @property
    def _total_steps(self) -> int:
        if self.config.steps is not None:
            return self.config.steps
        return math.ceil(math.ceil(len(self.rows) / self.config.batch_size) * self.config.epochs)

    @property
    def _is_main(self) -> bool:
        return bool(self.arguments.process_index == 0)

    def _wait(self) -> None:
        """Until every process of a distributed run is here."""
        if self.arguments.world_size > 1:
            torch.distributed.barrier()

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        digest = hashlib.sha256()
        for item in (self.examples.texts, self.examples.pairs or (), self.examples.labels or ()):
            digest.update(json.dumps(list(item), ensure_ascii=False).encode())
        assert self.original.assets is not None
        return {
            "checkpoint": [sha256_of(self.original.assets / name) for name in (MANIFEST_NAME, WEIGHTS_NAME)],
            "task": self.spec.name,
            "data": digest.hexdigest(),
            "new_head": self.needs_head,
            "config": self.config.to_json(),
        }

    def _check_same(self, file: Path) -> None:
        try:
            found = json.loads(file.read_bytes())
            version = found["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} is damaged: {error}", "begin anew with --restart") from error
        if version != SCHEMA_VERSION:
            raise CheckpointError(
                f"{self.folder} has schema version {version!r}; this nsn-edge reads version {SCHEMA_VERSION}",
                "go on with the nsn-edge that began it, or begin anew with --restart",
            )
        changed = self.config.differences(found.get("config", {}))
        mine = self._identity()
        changed += [f"another {name}" for name in mine if name != "config" and found.get(name) != mine[name]]
        if changed:
            raise UsageError(
                f"{self.folder} is of a run with other settings ({'; '.join(changed[:3])})",
                "repeat its settings to go on with it, or begin anew with --restart",
            )

    def _provenance(self, start: Checkpoint, ranks: tuple[int, ...], steps: int) -> dict[str, Any]:
        training = {
            "data": self.source.data,
            "examples": len(self.examples),
            "task": self.spec.name,
            "steps": steps,
            "dense_epochs": self.dense_epochs,
            "config": self.config.to_json(),
            "ranks": list(ranks),
            "nsn_edge": __version__,
        }
        return {**start.provenance, "training": training}


def _usual_ranks(ladder: RankLadder) -> tuple[int, ...]:
    """Where the held-out loss is measured: the ranks of the usual shares of the FLOPs, the largest first."""
    ranks = {ladder.max_rank}
    for fraction in _FRACTIONS[1:]:
        try:
            ranks.add(ladder.rank_for_fraction(fraction))
        except RankError:
            continue
    return tuple(sorted(ranks, reverse=True))
