"""The cascade: a batch is answered at a low rung, and its uncertain rows again at a higher one.

    inputs [n, ...] --rank 88--> logits [n, classes]
                                  | rows whose certainty is below the threshold
                                  v
                     --rank 384--> logits of those rows, in their places

The session's current rank is the ceiling: where heat or battery have lowered it, nothing is asked above it, however
hard the question. What was asked counts: an answer that took two runs costs both.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.bundle import Bundle
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.runtimes.difficulty.certainty import certainty
from nsn_edge.runtimes.difficulty.rule import DifficultyRule
from nsn_edge.runtimes.engines import Array
from nsn_edge.runtimes.session import EdgeSession

_CLASSIFICATION = ("text-classification", "image-classification")


@dataclass(frozen=True)
class Asked:
    """One run of a cascade."""

    rank: int
    """That answered."""
    rows: npt.NDArray[np.int64]
    """`[m]`: which rows of the request."""
    certainty: npt.NDArray[np.float64]
    """`[m]`: of the answers, by the rule's measure."""
    threshold: float | None
    """Below which answers were passed on; None where this rung was the last to be asked."""
    latency_ms: float
    """Of the inference."""


@dataclass(frozen=True)
class CascadeAnswer:
    """The outcome of one request."""

    outputs: dict[str, Array]
    """By the graph's names, every row from the rung that had the last word on it; the arrays belong to the caller."""
    ranks: npt.NDArray[np.int64]
    """`[n]`: the rung that had it."""
    certainty: npt.NDArray[np.float64]
    """`[n]`: of the answers given."""
    asked: tuple[Asked, ...]
    """Every run, in order."""
    flops_fraction: float
    """Mean over the rows: linear FLOPs of all runs against the dense model's for the same row."""
    latency_ms: float
    """Of all inferences together."""
    stopped: str = ""
    """Why uncertain rows were not passed on as the rule has it: the ceiling, or an engine that failed; empty where
    they were."""

    measure: str = "margin"
    """That certainty was measured by."""

    def why(self, row: int) -> str:
        """In a few words, why the rung that answered a row did."""
        words = []
        uncertain = True
        for run in self.asked:
            at = np.flatnonzero(run.rows == row)
            if not at.size:
                break
            sure = float(run.certainty[at[0]])
            uncertain = run.threshold is None or sure < run.threshold
            if run.threshold is None:
                words.append(f"rank {run.rank} was asked")
            elif uncertain:
                words.append(f"{self.measure} {sure:.2f} at rank {run.rank} is uncertain (below {run.threshold:.2f})")
            else:
                words.append(f"{self.measure} {sure:.2f} at rank {run.rank} is certain enough ({run.threshold:.2f})")
        return "; ".join([*words, self.stopped] if uncertain and self.stopped else words)


@dataclass(frozen=True)
class CascadeCounts:
    """What a cascade has done so far."""

    answers: int = 0
    """Rows answered."""
    passed_on: int = 0
    """Of those, the rows that were asked at more than one rung."""
    flops: float = 0.0
    """Sum over the answers of their linear FLOPs, the dense model's for the same row being 1."""
    by_rank: Mapping[int, int] = field(default_factory=dict)
    """How many answers each rung gave."""

    @property
    def share_passed_on(self) -> float | None:
        """Of the answers; None before the first."""
        return self.passed_on / self.answers if self.answers else None

    @property
    def mean_flops_fraction(self) -> float | None:
        """Of the answers; None before the first."""
        return self.flops / self.answers if self.answers else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "answers": self.answers,
            "passed_on": self.passed_on,
            "share_passed_on": self.share_passed_on,
            "mean_flops_fraction": self.mean_flops_fraction,
            "by_rank": {str(rank): count for rank, count in sorted(self.by_rank.items())},
        }


class Cascade:
    """Answers by a difficulty rule; many threads may share one."""

    def __init__(self, session: EdgeSession, rule: DifficultyRule, *, logits: str | None = None) -> None:
        """
        Args:
            session: of a classifier's bundle; it stays the caller's to close. Its current rank is the ceiling.
            rule: which rungs are asked. They are loaded in the background, as far as the memory budget goes.
            logits: the output that holds a score per class, float `[batch, classes]`. None takes that of a bundle for
                classification.

        Raises:
            UsageError: the bundle is no classifier, has a fixed batch, or holds other weights than the rule was
                calibrated on; or a rung does not fit the memory budget.
            RankError: the bundle has no such rung.
            PolicyError: two rungs of the rule are one in this bundle.
        """
        self.session = session
        """What answers."""
        self.rule = rule
        """What decides."""
        self.logits = logits_of(session.bundle, logits)
        """The output that certainty is measured on."""
        _check_weights(session.bundle, rule)
        self.ranks = rule.rungs(session.ladder)
        """The rungs to ask, lowest first."""
        self._shares: dict[int, float] = {}
        self._lock = threading.Lock()
        self._counts = CascadeCounts()
        session.preload(self.ranks)

    @property
    def counts(self) -> CascadeCounts:
        """What was answered so far."""
        with self._lock:
            return self._counts

    def run(self, inputs: Mapping[str, Array]) -> CascadeAnswer:
        """Answer a batch.

        Args:
            inputs: as the session takes them, the batch as the first axis of each.

        Raises:
            UsageError: the inputs are of different batches, or empty.
            EngineError: the first rung failed, and no other could stand in. Where a later one fails, the answer of the
                one before stands.
        """
        sizes = {name: array.shape[:1] for name, array in inputs.items()}
        if len(set(sizes.values())) != 1 or {(), (0,)} & set(sizes.values()):
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise UsageError(f"a batch is the first axis of every input, and these are {shapes or 'none'}")
        course = _Course(next(iter(sizes.values()))[0])
        for at, wanted in enumerate(self.ranks):
            ceiling = self.session.rank
            rank = min(wanted, ceiling)
            if rank < wanted:
                course.stopped = f"the session's rank, {ceiling}, allows no more"
            if course.asked and rank <= course.asked[-1].rank:
                break
            is_last = rank < wanted or at == len(self.ranks) - 1
            self._ask(inputs, rank, None if is_last else self.rule.thresholds[at], course)
            if is_last or not course.open_rows.size:
                break
        return self._finish(course)

    def _ask(self, inputs: Mapping[str, Array], rank: int, threshold: float | None, course: _Course) -> None:
        """Ask a rung about the rows that are open."""
        rows = course.open_rows
        part = inputs if len(rows) == course.count else {name: array[rows] for name, array in inputs.items()}
        try:
            # Of the first rung the nearest stands in; in the place of a later one stands the answer before it.
            answer = self.session.run(part, rank, fall_back=not course.asked)
        except EngineError as error:
            if not course.asked:
                raise
            course.stopped = f"rank {rank} failed: {error.message}"
            course.open_rows = rows[:0]
            return
        sure = certainty(answer.outputs[self.logits], self.rule.measure)
        course.put(answer.outputs, Asked(answer.rank, rows, sure, threshold, answer.latency_ms))

    def _finish(self, course: _Course) -> CascadeAnswer:
        flops = sum(self._flops_fraction(run.rank) * len(run.rows) for run in course.asked)
        passed_on = len(course.asked[1].rows) if len(course.asked) > 1 else 0
        with self._lock:
            before = self._counts
            self._counts = CascadeCounts(
                before.answers + course.count,
                before.passed_on + passed_on,
                before.flops + flops,
                Counter(before.by_rank) + Counter(course.ranks.tolist()),
            )
        return CascadeAnswer(
            course.outputs,
            course.ranks,
            course.certainty,
            tuple(course.asked),
            flops / course.count,
            sum(run.latency_ms for run in course.asked),
            course.stopped,
            self.rule.measure,
        )

    def _flops_fraction(self, rank: int) -> float:
        # A session of a dynamic form answers between the rungs, too; a share takes a walk over all layers.
        if rank not in self._shares:
            self._shares[rank] = self.session.bundle.manifest.ladder.flops_fraction(rank)
        return self._shares[rank]


class _Course:
    """A request on its way: what was asked, and the rows that are still open."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.outputs: dict[str, Array] = {}
        self.ranks = np.zeros(count, np.int64)
        self.certainty = np.zeros(count)
        self.asked: list[Asked] = []
        self.open_rows = np.arange(count)
        self.stopped = ""

    def put(self, outputs: Mapping[str, Array], run: Asked) -> None:
        """Put the answers of a run into the places of their rows."""
        if not self.asked:
            self.outputs = dict(outputs)
        else:
            for name, array in outputs.items():
                self.outputs[name][run.rows] = array
        self.ranks[run.rows] = run.rank
        self.certainty[run.rows] = run.certainty
        self.asked.append(run)
        self.open_rows = run.rows[:0] if run.threshold is None else run.rows[run.certainty < run.threshold]


def logits_of(bundle: Bundle, name: str | None = None) -> str:
    """The output of a classifier that holds a score per class, float `[batch, classes]`.

    Args:
        bundle: of a classifier; of any model where the output is named.
        name: the output; None for the only one that can be it.

    Raises:
        UsageError: there is none, or its batch is fixed to more than one.
    """
    manifest = bundle.manifest
    task = manifest.task.name
    if name is None and task not in _CLASSIFICATION:
        raise UsageError(
            f"{bundle.path} is a bundle for {task}, and difficulty is seen in the logits of classes",
            "it works for " + " and ".join(_CLASSIFICATION) + "; from Python also where you name the output of logits",
        )
    found = [spec for spec in manifest.outputs if len(spec.shape) == 2 and spec.dtype.startswith("float")]
    found = [spec for spec in found if spec.name == name or (name is None and spec.shape[1] != 1)]
    batch = {spec.shape[0] if spec.shape else None for spec in (*manifest.inputs, *manifest.outputs)}
    if len(found) != 1 or found[0].shape[1] == 1:
        shapes = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in manifest.outputs)
        raise UsageError(
            f"{bundle.path} has no output {name or 'with a score per class'} of the shape [batch, classes]; "
            f"it has {shapes}"
        )
    if len(batch) != 1 or not (batch <= {1} or isinstance(found[0].shape[0], str)):
        raise UsageError(
            f"{bundle.path} does not take rows of a batch apart: its first axes are {sorted(map(str, batch))}",
            "a cascade needs a batch of any size, or of one, as the first axis of every input and output",
        )
    return found[0].name


def weights_sha256(bundle: Bundle) -> str | None:
    """What a calibrated rule is bound to: the SHA-256 of the bundle's weights; None where it has no file of them."""
    return next((artifact.sha256 for artifact in bundle.manifest.artifacts if artifact.kind == "weights"), None)


def _check_weights(bundle: Bundle, rule: DifficultyRule) -> None:
    if rule.bundle_sha256 not in (None, weights_sha256(bundle)):
        raise UsageError(
            f"the difficulty rule was calibrated on other weights than those of {bundle.path}",
            "calibrate it for this bundle: nsn-edge difficulty BUNDLE --data HELD_OUT -o FILE",
        )
