"""Held-out examples from a user's file, asked at every rung of a classifier.

held_out.csv --texts, labels if there are any--> every rung --> HeldOut
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nsn_edge.datafiles import TEXT_COLUMN, Table, read_table
from nsn_edge.errors import UsageError
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.classification import TextClassifier
from nsn_edge.runtimes.difficulty.outcomes import HeldOut

_TEXT_COLUMNS = (TEXT_COLUMN, "sentence", "sentence1", "content")
_LABEL_COLUMNS = ("label", "labels", "intent", "class")


@dataclass(frozen=True)
class Columns:
    """Where things stand in a file; None for the usual names."""

    text: str | None = None
    """The text. Usual: text, sentence, sentence1, content."""
    label: str | None = None
    """The class of a text. Usual: label, labels, intent, class; a file without one has no labels."""
    names: tuple[str, ...] = ()
    """The names of all columns, for a `.csv` or `.tsv` file without a header line."""


@dataclass(frozen=True)
class LabelledTexts:
    """What was read; at least one text."""

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None
    """By number, in the order of the texts; None where the file has none."""


def read_labelled_texts(
    path: Path,
    classifier: TextClassifier,
    columns: Columns | None = None,
    *,
    with_labels: bool = True,
    most: int | None = None,
) -> LabelledTexts:
    """Read texts, and their labels where the file has any.

    Args:
        path: a csv, tsv, jsonl or txt file.
        classifier: knows the labels.
        columns: where things stand.
        with_labels: whether labels are read where there are any.
        most: at most this many rows, spread evenly; None for all.

    Raises:
        UsageError: the file cannot be read or does not fit, or has a label that the model has not; names the line.
    """
    columns = columns or Columns()
    table = read_table(path, columns.names or None)
    if most is not None:
        count = min(most, len(table))
        table = Table(path, table.columns, tuple(table.rows[i * len(table) // count] for i in range(count)))
    text = columns.text or next((name for name in _TEXT_COLUMNS if name in table.columns), None)
    if text is None:
        raise UsageError(
            f"{path} has no column named {' or '.join(_TEXT_COLUMNS)}; it has {', '.join(table.columns[:8])}",
            "name it with --text-column; without a header line, name all columns with --columns",
        )
    label = columns.label or next((name for name in _LABEL_COLUMNS if name in table.columns), None)
    texts = tuple(table.texts(text))
    if label is None or not with_labels:
        return LabelledTexts(texts, None)
    numbers = []
    for row, name in zip(table.rows, table.labels(label), strict=True):
        number = classifier.number_of(name)
        if number is None:
            known = classifier.label_names
            few = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
            raise UsageError(
                f"{path}, line {row.line}: the model has no label {name!r}; it has "
                + (f"{len(known)}: {few}" if known else "numbers"),
                "leave labels that it was not trained for out, or the whole column: --unlabelled",
            )
        numbers.append(number)
    return LabelledTexts(texts, tuple(numbers))


def ask_every_rung(
    classifier: TextClassifier,
    examples: LabelledTexts,
    ranks: Sequence[int],
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> HeldOut:
    """What every rung says of the examples.

    Raises:
        RankError, EngineError: as `EdgeSession.run`.
        UsageError: a label is beyond the model's classes, or less than two ranks.
    """
    ladder = classifier.session.bundle.manifest.ladder
    logits, total = {}, len(ranks) * len(examples.texts)
    for at, rank in enumerate(ranks):

        def report(stage: str, done: int, of: int, before: int = at) -> None:
            progress(stage, before * of + done, total)

        logits[rank] = classifier.logits(examples.texts, rank, batch_size=batch_size, progress=report)
    labels = None if examples.labels is None else np.array(examples.labels, np.int64)
    classes = next(iter(logits.values())).shape[1] if logits else 0
    if labels is not None and labels.max() >= classes:
        raise UsageError(f"the label {labels.max()} is beyond the model's {classes} classes, which begin at 0")
    return HeldOut(logits, {rank: ladder.flops_fraction(rank) for rank in ranks}, labels)
