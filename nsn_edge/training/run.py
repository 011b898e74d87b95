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

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nsn_edge._version import __version__
from nsn_edge.atomic import check_replaceable
from nsn_edge.bundle import TaskSpec
from nsn_edge.calibration import batch_size, collect_covariances
from nsn_edge.checkpoint import Checkpoint, is_checkpoint_folder
from nsn_edge.errors import RankError, UsageError
from nsn_edge.ladder import RankLadder
from nsn_edge.progress import Progress, silent
from nsn_edge.sensitivity import PROBE_EXAMPLES, allocate_
from nsn_edge.training import runfolder, saving
from nsn_edge.training.arguments import training_arguments
from nsn_edge.training.config import TrainConfig
from nsn_edge.training.data import Columns, read_examples
from nsn_edge.training.dense import dense_copy, nest_like_
from nsn_edge.training.heads import label_ids_of, label_names, with_new_head
from nsn_edge.training.objectives import weighting
from nsn_edge.training.safe_trainer import ProgressReport, SafeTrainer
from nsn_edge.training.tasks import config_for, loss_for, rows_for
from nsn_edge.training.trainer import NSNTrainer, drop_dense_weights_

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
    job = _Job(original, path, output, source, task, config_for(config, task), progress)
    job.open(restart)
    return job.run()


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
        self.folder = runfolder.run_folder(output)
        self.examples = read_examples(source.data, task, source.columns, source.split)
        self.needs_head = source.new_head or (task != original.task.name and task.endswith("-classification"))
        if task != original.task.name and not self.needs_head:
            raise UsageError(
                f"the checkpoint is of a model for {original.task.name}, not {task}",
                f"adapt the model for it: nsn-edge adapt MODEL --task {task}",
            )
        self.spec = original.task if task == original.task.name else TaskSpec(task, max_length=original.task.max_length)
        self.label_ids = self._label_ids()
        self.rows = rows_for(self.spec, self.examples, original.assets, self.label_ids, config)
        self.held_out = None
        if source.held_out is not None:
            held_out = read_examples(source.held_out, task, source.columns, source.held_out_split)
            self.held_out = rows_for(self.spec, held_out, original.assets, self.label_ids, config)
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
        assert self.original.assets is not None
        mine = runfolder.identity(self.original.assets, self.examples, self.spec.name, self.needs_head, self.config)
        if self._is_main and restart:
            runfolder.forget(self.folder)
        self._wait()
        if runfolder.has_begun(self.folder):
            runfolder.check_same(self.folder, mine, self.config)
        elif self._is_main:
            runfolder.begin(self.folder, mine)
        self._wait()

    def run(self) -> Trained:
        """The dense part, where there is one, and the nested part."""
        start = self._start()
        model = start.model
        loss = loss_for(self.spec, self.config)
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
            runfolder.forget(self.folder)
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
            # What the first cut was calibrated on no longer says anything.
            provenance = {k: v for k, v in self.original.provenance.items() if not k.startswith("calibration")}
            if covariances is not None:
                provenance["calibration_text"] = self.source.data
                provenance["calibration_tokens"] = max(covariance.tokens for covariance in covariances.values())
            if self.config.allocate == "sensitivity":
                probes = self.rows.batches(self.config.batch_size, PROBE_EXAMPLES)
                allocated = allocate_(dense, probes, self.spec, ladder.layers[0].curve.align, self.progress)
                if allocated != ladder:
                    provenance |= {"allocation": "sensitivity", "allocation_examples": sum(map(batch_size, probes))}
            replace(self.original, model=dense, task=self.spec, provenance=provenance).save(folder)
        self._wait()

    def _label_ids(self) -> dict[str, int] | None:
        if self.examples.labels is None:
            return None
        if self.needs_head:
            return {label: number for number, label in enumerate(label_names(self.examples))}
        return label_ids_of(self.original.model)

    def _measured(self, trainer: NSNTrainer) -> dict[int, float]:
        if self.held_out is None:
            return {}
        metrics = trainer.evaluate()
        return {rank: metrics[f"eval_loss_rank_{rank}"] for rank in trainer.evaluated_ranks}

    def _arguments(self, stage: str, learning_rate: float, steps: int | None, epochs: float) -> Any:
        return training_arguments(self.config, self.folder / stage, learning_rate, steps, epochs)

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
