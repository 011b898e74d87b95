"""A user's file as one number per rank: which measure fits a task, and how it reads the model.

    feature-extraction     texts             spearman       pairwise similarities against the dense model's, no labels
                           pairs + scores    sts_spearman   cosine similarities against the scores
    text-classification    texts + labels    accuracy
    text-generation        text              perplexity

A measure is made once per file and asked at every rank, so everything that can be refused is refused before the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nsn_edge.bundle import TaskSpec
from nsn_edge.calibration import Batch, evaluating, ordered_text_batches
from nsn_edge.corpus import documentation_corpus
from nsn_edge.datafiles import TEXT_COLUMN, Table, read_table, read_text
from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.evaluation import embed_texts
from nsn_edge.frontier.curve import Metric
from nsn_edge.metrics import pairwise_similarity_spearman, spearman

SPEARMAN = Metric("spearman", "similarity order against dense (Spearman)")
STS_SPEARMAN = Metric("sts_spearman", "similarity against scores (Spearman)")
ACCURACY = Metric("accuracy", "accuracy")
PERPLEXITY = Metric("perplexity", "perplexity", higher_is_better=False)

_TEXT_COLUMNS = (TEXT_COLUMN, "sentence", "sentence1", "content")
_PAIR_COLUMNS = ("sentence2", "text2", "pair")
_LABEL_COLUMNS = ("label", "labels", "intent", "class")
_SCORE_COLUMNS = ("score", "similarity", "similarity_score")
_LONGEST_WINDOW = 256  # tokens, where the model itself takes more
_BATCH_SIZE = 32


class Measure(Protocol):
    """Something that can be asked of a model at any rank."""

    @property
    def metric(self) -> Metric:
        """What the number is."""

    @property
    def examples(self) -> int:
        """How many it is measured on."""

    def __call__(self, model: nn.Module) -> float:
        """The quality of the model as it stands."""

    def batches(self, most: int) -> list[Batch]:
        """Some of its inputs, without labels, at most `most` examples."""


@dataclass(frozen=True)
class Columns:
    """Where things stand in a file; None for the usual names."""

    text: str | None = None
    """The text, or the first of a pair."""
    pair: str | None = None
    """The second text of a pair."""
    label: str | None = None
    """The class of a text."""
    score: str | None = None
    """How alike a pair is, by people's judgement."""
    names: tuple[str, ...] = ()
    """The names of all columns, for a `.csv` or `.tsv` file without a header line."""


def measure_for(
    model: nn.Module,
    tokenizer: Any,
    task: TaskSpec,
    data: Path | None = None,
    columns: Columns | None = None,
    most: int | None = None,
) -> Measure:
    """The measure that a task and a file call for.

    Args:
        model: says which labels there are.
        tokenizer: transformers'.
        task: what the model is for.
        data: None for held-out sentences of Python's documentation; not for classification.
        columns: where things stand in the file.
        most: use at most this many examples, spread evenly; None for all.

    Raises:
        UsageError: a task without a measure, no data, or a file that does not fit.
    """
    columns = columns or Columns()
    if most is not None and most < 1:
        raise UsageError(f"a quality is measured on 1 example or more, not {most}")
    if task.name == "feature-extraction" and task.pooling is not None:
        return _embedding_measure(tokenizer, task, data, columns, most)
    if task.name == "text-generation":
        return _perplexity(model, tokenizer, task, data, columns, most)
    if task.name == "text-classification":
        return _accuracy(model, tokenizer, task, data, columns, most)
    what = "a task without pooling" if task.name == "feature-extraction" else f"the task {task.name!r}"
    raise UsageError(
        f"there is no measure for {what}",
        "sentence embedders, text classifiers and language models have one; nsn_edge.frontier takes one of your own",
    )


@dataclass(frozen=True)
class SimilarityOrder:
    """Whether all pairs of texts are in the order in which the dense model puts them. See `nsn_edge.metrics`."""

    tokenizer: Any
    task: TaskSpec
    texts: Sequence[str]
    reference: dict[str, np.ndarray]
    """The whole model's embeddings, taken when the measure is first asked: ask it of the whole model first."""
    metric: Metric = SPEARMAN

    @property
    def examples(self) -> int:
        """Texts."""
        return len(self.texts)

    def __call__(self, model: nn.Module) -> float:
        """Of the model as it stands, against the first that was asked."""
        found = _finite(embed_texts(model, self.tokenizer, self.texts, self.task))
        return pairwise_similarity_spearman(self.reference.setdefault("embeddings", found), found)

    def batches(self, most: int) -> list[Batch]:
        """See `Measure`."""
        return _plain_batches(self.tokenizer, _spread(self.texts, most), self.task)


@dataclass(frozen=True)
class SimilarityScores:
    """How well cosine similarities of pairs follow people's scores: the measure of STS-B."""

    tokenizer: Any
    task: TaskSpec
    first: Sequence[str]
    second: Sequence[str]
    scores: Sequence[float]
    metric: Metric = STS_SPEARMAN

    @property
    def examples(self) -> int:
        """Pairs."""
        return len(self.scores)

    def __call__(self, model: nn.Module) -> float:
        """Of the model as it stands."""
        rows = _finite(embed_texts(model, self.tokenizer, [*self.first, *self.second], self.task)).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
        first, second = rows[: len(self.scores)], rows[len(self.scores) :]
        return spearman((first * second).sum(1), np.array(self.scores))

    def batches(self, most: int) -> list[Batch]:
        """See `Measure`."""
        return _plain_batches(self.tokenizer, _spread([*self.first, *self.second], most), self.task)


@dataclass(frozen=True)
class Accuracy:
    """The share of texts whose label is the model's first choice."""

    tokenizer: Any
    task: TaskSpec
    texts: Sequence[Any]
    """Texts, or pairs of them as tuples."""
    numbers: Sequence[int]
    """Of the labels, in the model's order."""
    metric: Metric = ACCURACY

    @property
    def examples(self) -> int:
        """Texts."""
        return len(self.texts)

    def __call__(self, model: nn.Module) -> float:
        """Of the model as it stands."""
        device = next(model.parameters()).device
        right = 0
        with evaluating(model), torch.no_grad():
            for positions, batch in ordered_text_batches(self.tokenizer, self.texts, _BATCH_SIZE, _limit(self.task)):
                logits = model(**{key: value.to(device) for key, value in batch.items()}).logits
                _finite(logits.float().cpu().numpy())
                wanted = torch.tensor([self.numbers[i] for i in positions], device=device)
                right += int((logits.argmax(-1) == wanted).sum())
        return right / len(self.texts)

    def batches(self, most: int) -> list[Batch]:
        """See `Measure`."""
        return _plain_batches(self.tokenizer, _spread(self.texts, most), self.task)


@dataclass(frozen=True)
class Perplexity:
    """The exponential of the mean loss per token, every window's first token given."""

    windows: Sequence[Tensor]
    """int64 `[length]`, 2 tokens or more each."""
    metric: Metric = PERPLEXITY

    @property
    def examples(self) -> int:
        """Windows."""
        return len(self.windows)

    def __call__(self, model: nn.Module) -> float:
        """Of the model as it stands."""
        device = next(model.parameters()).device
        total, tokens = 0.0, 0
        with evaluating(model), torch.no_grad():
            for batch in self.batches(len(self.windows)):
                assert isinstance(batch, Mapping)
                ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
                counted = mask[:, 1:].bool()
                losses = nn.functional.cross_entropy(logits[counted], ids[:, 1:][counted], reduction="sum")
                total, tokens = total + float(losses), tokens + int(counted.sum())
        mean = total / tokens
        if not math.isfinite(mean):
            raise NsnEdgeError("the model's loss is not finite", "check its weights, and evaluate it in fp32")
        return math.exp(min(mean, 700.0))

    def batches(self, most: int) -> list[Batch]:
        """See `Measure`."""
        chosen = sorted(_spread(self.windows, most), key=len)
        return [_padded(chosen[at : at + _BATCH_SIZE]) for at in range(0, len(chosen), _BATCH_SIZE)]


def _embedding_measure(
    tokenizer: Any, task: TaskSpec, data: Path | None, columns: Columns, most: int | None
) -> Measure:
    if data is None:
        return SimilarityOrder(tokenizer, task, _spread(documentation_corpus().held_out, most), {})
    table = read_table(data, columns.names or None)
    score = columns.score or _usual(_SCORE_COLUMNS, table)
    if score is None:
        text = columns.text or _named(_TEXT_COLUMNS, table, "text")
        texts = _spread(list(dict.fromkeys(table.texts(text))), most)
        if len(texts) < 3:
            raise UsageError(f"{data} holds {len(texts)} distinct texts, and an order of pairs needs 3 or more")
        return SimilarityOrder(tokenizer, task, texts, {})
    table = _some_rows(table, most)
    first = table.texts(columns.text or _named(_TEXT_COLUMNS, table, "text"))
    second = table.texts(columns.pair or _named(_PAIR_COLUMNS, table, "pair"))
    scores = table.numbers(score)
    if len(set(scores)) < 2:
        raise UsageError(f"{data}: the scores are all {scores[0]:g}, and nothing follows them", "name another column")
    return SimilarityScores(tokenizer, task, first, second, scores)


def _accuracy(
    model: nn.Module, tokenizer: Any, task: TaskSpec, data: Path | None, columns: Columns, most: int | None
) -> Measure:
    if data is None:
        raise UsageError("a classifier is measured on labelled texts", "give a file with --data FILE")
    table = read_table(data, columns.names or None)
    label = columns.label or _named(_LABEL_COLUMNS, table, "label")
    known = label_numbers(model)
    table = _some_rows(table, most)
    labels = table.labels(label)
    for row, name in zip(table.rows, labels, strict=True):
        if name not in known:
            few = ", ".join(list(known)[:5]) + (", ..." if len(known) > 5 else "")
            raise UsageError(
                f"{data}, line {row.line}: the model has no label {name!r}; it has {len(known)}: {few}",
                "evaluate on labels that it was trained for",
            )
    texts: Sequence[Any] = table.texts(columns.text or _named(_TEXT_COLUMNS, table, "text"))
    if columns.pair is not None:
        texts = list(zip(texts, table.texts(columns.pair), strict=True))
    return Accuracy(tokenizer, task, texts, [known[name] for name in labels])


def label_numbers(model: nn.Module) -> dict[str, int]:
    """The number of each label that a classifier knows, by name; by number too, where they have no names."""
    config: Any = model.config
    names = {str(name): int(number) for number, name in config.id2label.items()}
    unnamed = all(name == f"LABEL_{number}" for name, number in names.items())
    return names | {str(number): number for number in names.values()} if unnamed else names


def _perplexity(
    model: nn.Module, tokenizer: Any, task: TaskSpec, data: Path | None, columns: Columns, most: int | None
) -> Measure:
    if data is None:
        texts = [" ".join(documentation_corpus().held_out)]
    elif data.suffix.lower() == ".txt":
        texts = [read_text(data)]  # line breaks are text too
    else:
        table = read_table(data, columns.names or None)
        texts = table.texts(columns.text or _named(_TEXT_COLUMNS, table, "text"))
    length = min(task.max_length or _LONGEST_WINDOW, _LONGEST_WINDOW)
    windows = []
    for text in texts:
        ids = torch.tensor(tokenizer(text, truncation=False, verbose=False)["input_ids"], dtype=torch.int64)
        windows += [window for window in torch.split(ids, length) if len(window) > 1]
    if not windows:
        raise UsageError(f"{data} holds no text of 2 tokens or more", "give it more text")
    vocabulary = int(getattr(model.config, "vocab_size", 0))
    largest = max(int(window.max()) for window in windows)
    if vocabulary and largest >= vocabulary:
        raise UsageError(f"the tokenizer gives token {largest}, and the model knows {vocabulary}: they do not belong")
    return Perplexity(_spread(windows, most))


def _padded(windows: Sequence[Tensor]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence(list(windows), batch_first=True)
    lengths = torch.tensor([len(window) for window in windows]).unsqueeze(1)
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths).long()}


def _plain_batches(tokenizer: Any, texts: Sequence[Any], task: TaskSpec) -> list[Batch]:
    return [batch for _, batch in ordered_text_batches(tokenizer, texts, _BATCH_SIZE, _limit(task))]


def _limit(task: TaskSpec) -> int | None:
    return task.max_length


def _some_rows(table: Table, most: int | None) -> Table:
    return Table(table.path, table.columns, tuple(_spread(table.rows, most)))


def _spread(items: Sequence[Any], most: int | None) -> list[Any]:
    """At most so many, spread evenly."""
    count = len(items) if most is None else min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _usual(usual: Sequence[str], table: Table) -> str | None:
    return next((name for name in usual if name in table.columns), None)


def _named(usual: Sequence[str], table: Table, what: str) -> str:
    found = _usual(usual, table)
    if found is None:
        raise UsageError(
            f"{table.path} has no column named {' or '.join(usual)}; it has {', '.join(table.columns[:8])}",
            f"name it with --{what}-column; without a header line, name all columns with --columns",
        )
    return found


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise NsnEdgeError("the model's output holds NaN or infinity", "check its weights, and evaluate it in fp32")
    return values
