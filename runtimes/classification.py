"""Text in, labels out: tokenizer, session and softmax, at a rank or by a difficulty rule.

texts --tokenizer.json--> input_ids, ... --session or cascade--> logits --softmax--> label, probability, rank
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.bundle import Bundle
from nsn_edge.errors import BundleError, UsageError
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.difficulty.cascade import Cascade, CascadeAnswer, logits_of
from nsn_edge.runtimes.difficulty.certainty import probabilities
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.text import TextInputs

_CONFIG_FILE = "config.json"
_TASK = "text-classification"


@dataclass(frozen=True)
class Classified:
    """A text's label, and who found it."""

    text: str
    """As given."""
    label: str
    """The class of the highest score, by name; by number where the bundle names none."""
    probability: float
    """Of that class, by softmax."""
    rank: int
    """That answered; of a cascade, the rung that had the last word."""
    latency_ms: float
    """Of the inference; of a cascade, of all runs. Texts of one batch share it."""
    asked: tuple[int, ...]
    """Every rank that was asked about this text, in order."""
    why: str = ""
    """Of a cascade: why this rung answered."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, kind `classification`."""
        return {
            "schema_version": 1,
            "kind": "classification",
            "text": self.text,
            "label": self.label,
            "probability": self.probability,
            "rank": self.rank,
            "latency_ms": self.latency_ms,
            "asked": list(self.asked),
            "why": self.why or None,
        }


class TextClassifier:
    """Labels texts with a session's bundle; many threads may share one."""

    def __init__(self, session: EdgeSession) -> None:
        """
        Args:
            session: of a bundle for text classification that carries a tokenizer; it stays the caller's to close.

        Raises:
            UsageError: the bundle is not for text classification, has labels that do not exclude each other, or takes
                more than a tokenizer gives.
            BundleError: it has no tokenizer, or one that cannot be read.
            MissingDependencyError: the package `tokenizers` is not installed.
        """
        self.session = session
        """What answers."""
        task = session.bundle.manifest.task
        if task.name != _TASK:
            raise UsageError(
                f"{session.bundle.path} is a bundle for {task.name}, not for {_TASK}",
                "continue a text with --prompt"
                if task.name == "text-generation"
                else "search with --query, or give its inputs as arrays",
            )
        self._logits = logits_of(session.bundle)
        self.label_names = label_names(session.bundle)
        """By number; empty where the bundle names none."""
        self._inputs = TextInputs(session.bundle, "classifying text")

    def classify(
        self,
        texts: Sequence[str],
        *,
        rank: int | None = None,
        cascade: Cascade | None = None,
        batch_size: int = 1,
    ) -> list[Classified]:
        """Label texts.

        Args:
            texts: at least one; longer ones than the task's `max_length` tokens are cut.
            rank: that answers; None for the session's current one.
            cascade: answers in place of the session, by its rule.
            batch_size: texts per inference.

        Raises:
            UsageError: there are no texts, one is not a string, or `batch_size` is below 1.
            RankError: as `EdgeSession.run`.
            EngineError: as `EdgeSession.run`.
        """
        found: list[Classified | None] = [None] * len(texts)
        for positions, batch in _batches(texts, batch_size):
            inputs = self._inputs(batch)
            by_rule: CascadeAnswer | None = None
            if cascade is None:
                answer = self.session.run(inputs, rank)
                outputs, ranks, latency_ms = answer.outputs, np.full(len(batch), answer.rank), answer.latency_ms
            else:
                by_rule = cascade.run(inputs)
                outputs, ranks, latency_ms = by_rule.outputs, by_rule.ranks, by_rule.latency_ms
            shares = probabilities(outputs[self._logits])
            for row, position in enumerate(positions):
                number = int(np.argmax(outputs[self._logits][row]))
                found[position] = Classified(
                    text=batch[row],
                    label=self._name(number),
                    probability=float(np.nan_to_num(shares[row, number])),
                    rank=int(ranks[row]),
                    latency_ms=latency_ms,
                    asked=(int(ranks[row]),)
                    if by_rule is None
                    else tuple(run.rank for run in by_rule.asked if row in run.rows),
                    why="" if by_rule is None else by_rule.why(row),
                )
        return [item for item in found if item is not None]

    def logits(
        self, texts: Sequence[str], rank: int, *, batch_size: int = 16, progress: Progress = silent
    ) -> npt.NDArray[np.float32]:
        """The scores of texts at a rank: float32 `[n, classes]`, in the order of the texts.

        Raises:
            UsageError, RankError, EngineError: as `classify`.
        """
        rows: dict[int, npt.NDArray[np.float32]] = {}
        for positions, batch in _batches(texts, batch_size):
            answer = self.session.run(self._inputs(batch), rank)
            rows.update(zip(positions, answer.outputs[self._logits].astype(np.float32, copy=False), strict=True))
            progress("classify", len(rows), len(texts))
        return np.stack([rows[position] for position in range(len(texts))])

    def number_of(self, label: str) -> int | None:
        """The class that a label names, by name or, where the bundle names none, by number; None for none."""
        if label in self.label_names:
            return self.label_names.index(label)
        return int(label) if not self.label_names and label.isdecimal() else None

    def _name(self, number: int) -> str:
        return self.label_names[number] if number < len(self.label_names) else str(number)


def label_names(bundle: Bundle) -> tuple[str, ...]:
    """The names of a classifier's classes by number, from the `config.json` of its bundle; empty where it names none.

    Raises:
        BundleError: the file cannot be read.
        UsageError: its labels do not exclude each other, so no one of them is the answer.
    """
    artifact = next((item for item in bundle.manifest.artifacts if item.path == _CONFIG_FILE), None)
    if artifact is None:
        return ()
    try:
        config = json.loads(bundle.file(artifact).read_bytes())
        named = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{_CONFIG_FILE} in {bundle.path} is not readable: {error}", "export it again") from error
    if config.get("problem_type") in ("multi_label_classification", "regression"):
        raise UsageError(
            f"{bundle.path} is a model of the kind {config['problem_type']}, and has no one class to answer with",
            "give its inputs as arrays instead",
        )
    names = tuple(named[number] for number in sorted(named))
    whole = sorted(named) == list(range(len(named))) and names != tuple(f"LABEL_{number}" for number in sorted(named))
    return names if whole else ()


def _batches(texts: Sequence[str], batch_size: int) -> Iterator[tuple[list[int], list[str]]]:
    """Positions and texts; texts of like length go together, so little is padding."""
    if isinstance(texts, str) or not texts:
        raise UsageError("nothing to classify: give a list with at least one text")
    if strays := [text for text in texts if not isinstance(text, str)]:
        raise UsageError(f"a text to classify is a string, not {strays[0]!r}")
    if batch_size < 1:
        raise UsageError(f"a batch holds 1 text or more, not {batch_size}")
    by_length = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    for start in range(0, len(texts), batch_size):
        positions = by_length[start : start + batch_size]
        yield positions, [texts[position] for position in positions]
