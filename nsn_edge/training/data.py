"""A user's examples: a local file, a folder, or a data set of the hub.

    reviews.csv                 columns of text and labels            (also .tsv, .jsonl, .txt)
    folder/train.csv            the split by its file name
    folder/cat/1.png            an image folder: the label is the folder's name
    glue:sst2                   the hub, `NAME` or `NAME:CONFIGURATION`, through the library datasets

Nothing remote is executed: that library has no remote code any more, and is never asked for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsn_edge.datafiles import FORMATS, TEXT_COLUMN, Table, read_table, read_text
from nsn_edge.errors import MissingDependencyError, NsnEdgeError, UsageError

_LABEL_COLUMNS = ("label", "labels", "intent", "class")
_TEXT_COLUMNS = (TEXT_COLUMN, "sentence", "sentence1", "content")
_IMAGE_COLUMN = "image"


@dataclass(frozen=True)
class Columns:
    """Where the text and the labels stand; None for the usual names."""

    text: str | None = None
    """The text, or the first of a pair. Usual: text, sentence, sentence1, content."""
    pair: str | None = None
    """The second text of a pair; None for single texts."""
    label: str | None = None
    """The label. Usual: label, labels, intent, class."""
    names: tuple[str, ...] = ()
    """The names of all columns, for a `.csv` or `.tsv` file without a header line."""


@dataclass(frozen=True)
class Examples:
    """What was read; at least one example."""

    source: str
    """Where from, for messages and the checkpoint's provenance."""
    texts: Sequence[str] = ()
    """One per example; none for images."""
    pairs: Sequence[str] | None = None
    """The second texts."""
    labels: Sequence[str] | None = None
    """One per example; None where the task takes none."""
    images: Any = None
    """A `datasets.Dataset` with a column `image`; None for text."""

    def __len__(self) -> int:
        return len(self.texts) if self.images is None else len(self.images)


def read_examples(source: str, task: str, columns: Columns | None = None, split: str = "train") -> Examples:
    """Read what a task takes.

    Args:
        source: a file, a folder or a hub id.
        task: `text-classification`, `text-generation`, `feature-extraction` or `image-classification`.
        columns: where things stand.
        split: of a folder or a hub's data set.

    Raises:
        UsageError: no such file, column or split, a row that does not fit, or no example at all.
        MissingDependencyError: the library datasets is not installed.
        NsnEdgeError: the hub cannot be reached, or has no such data set.
    """
    columns = columns or Columns()
    path = Path(source)
    if task == "image-classification":
        return _images(source, columns, split)
    if path.is_file():
        return _from_file(path, task, columns)
    if path.is_dir():
        files = [path / f"{split}{ending}" for ending in FORMATS if (path / f"{split}{ending}").is_file()]
        if len(files) > 1:
            raise UsageError(f"{path} holds {files[0].name} and {files[1].name}", "name the file")
        if files:
            return _from_file(files[0], task, columns)
    elif path.suffix in FORMATS or source.startswith((".", "/", "~")):
        raise UsageError(f"no file {source}", f"name a {', '.join(FORMATS)} file, a folder, or a data set of the hub")
    return _from_rows(source, _load(source, split), task, columns)


def _from_file(path: Path, task: str, columns: Columns) -> Examples:
    if path.suffix.lower() == ".txt" and task == "text-generation":
        return Examples(str(path), texts=[read_text(path)])  # line breaks are part of what is learnt
    table = read_table(path, columns.names or None)
    text = columns.text or _usual(_TEXT_COLUMNS, table.columns, str(path), "text")
    pairs = None if columns.pair is None else table.texts(columns.pair)
    return Examples(str(path), table.texts(text), pairs, _labels_of(table, columns) if _has_labels(task) else None)


def _labels_of(table: Table, columns: Columns) -> list[str]:
    return table.labels(columns.label or _usual(_LABEL_COLUMNS, table.columns, str(table.path), "label"))


def _from_rows(source: str, rows: Any, task: str, columns: Columns) -> Examples:
    names = tuple(rows.column_names)
    text = columns.text or _usual(_TEXT_COLUMNS, names, source, "text")
    texts = _texts(rows, text, source)
    pairs = None if columns.pair is None else _texts(rows, columns.pair, source)
    labels = None
    if _has_labels(task):
        labels = _hub_labels(rows, columns.label or _usual(_LABEL_COLUMNS, names, source, "label"), source)
    return Examples(source, texts, pairs, labels)


def _images(source: str, columns: Columns, split: str) -> Examples:
    path = Path(source)
    if path.is_file() or (not path.is_dir() and source.startswith((".", "/", "~"))):
        raise UsageError(f"{source} is no folder of images", "put them into folders named after their labels")
    rows = _load(source, split, images=path.is_dir())
    if _IMAGE_COLUMN not in rows.column_names:
        raise UsageError(f"{source} has no column 'image'; it has {', '.join(rows.column_names)}")
    label = columns.label or _usual(_LABEL_COLUMNS, tuple(rows.column_names), source, "label")
    return Examples(source, labels=_hub_labels(rows, label, source), images=rows)


def _load(source: str, split: str, *, images: bool = False) -> Any:
    """One split of a data set, through the library datasets."""
    if importlib.util.find_spec("datasets") is None:
        raise MissingDependencyError("datasets", "train", f"reading {source}")
    import datasets

    name, _, configuration = source.partition(":")
    try:
        with _quiet():
            if images:
                rows = datasets.load_dataset("imagefolder", data_dir=source, split=split)
            else:
                rows = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # as many types as there are ways to be offline, absent, gated or damaged
        text = " ".join(str(error).split())
        if "Unknown split" in text:
            raise UsageError(f"{source} has no split {split!r}: {text[:200]}", "name one with --split") from error
        raise NsnEdgeError(
            f"cannot load the data {source}: {text[:300]}", "check the name and the network, or name a local file"
        ) from error
    if len(rows) == 0:
        raise UsageError(f"the split {split!r} of {source} is empty", "give it one example or more")
    return rows


def _texts(rows: Any, column: str, source: str) -> list[str]:
    values = _column(rows, column, source)
    for at, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{source}, example {at}: {column} {str(value)[:40]!r} is blank or not text")
    return [value.strip() for value in values]


def _hub_labels(rows: Any, column: str, source: str) -> list[str]:
    """Class labels by name; `-1` is how hub data sets mark a label that is withheld."""
    values = _column(rows, column, source)
    names = getattr(rows.features[column], "names", None)
    labels = []
    for at, value in enumerate(values):
        if value is None or isinstance(value, (bool, float)) or value == -1:
            raise UsageError(f"{source}, example {at}: {column} {value!r} is no label", "choose a labelled split")
        labels.append(str(names[value] if names else value))
    return labels


def _column(rows: Any, column: str, source: str) -> list[Any]:
    if column not in rows.column_names:
        raise UsageError(
            f"{source} has no column {column!r}; it has {', '.join(rows.column_names)}", "name the right column"
        )
    return list(rows[column])


def _usual(usual: Sequence[str], columns: Sequence[str], source: str, what: str) -> str:
    for name in usual:
        if name in columns:
            return name
    raise UsageError(
        f"{source} has no column named {' or '.join(usual)}; it has {', '.join(columns)}",
        f"name it with --{what}-column",
    )


def _has_labels(task: str) -> bool:
    return task.endswith("-classification")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own bars."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
