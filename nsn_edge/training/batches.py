"""Examples as a model takes them: token ids, blocks of tokens, or pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.training.data import Examples

LONGEST = 256
"""Tokens of an example, where nobody says otherwise: memory grows with it, and few texts to classify are longer."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows(Dataset[Row]):
    """A data set and how its rows become a batch."""

    items: Sequence[Row]
    """Lists of numbers by input name; a row's own length each."""
    collate: Callable[[Sequence[Row]], dict[str, Tensor]]
    """Makes a batch of rows."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: int) -> Row:
        return self.items[at]

    @property
    def lengths(self) -> list[int] | None:
        """Tokens of each row; None for rows that are not text, or all of one length."""
        if not len(self) or not hasattr(self.items[0].get("input_ids"), "__len__"):
            return None
        lengths = [len(row["input_ids"]) for row in self.items]
        return lengths if min(lengths) < max(lengths) else None

    def batches(self, size: int, most: int) -> list[dict[str, Tensor]]:
        """Model inputs without labels, at most `most` rows, spread evenly: to calibrate on."""
        count = min(most, len(self))
        chosen = [self[i * len(self) // count] for i in range(count)]
        return [
            {name: value for name, value in self.collate(chosen[at : at + size]).items() if name != "labels"}
            for at in range(0, count, size)
        ]


def text_rows(tokenizer: Any, examples: Examples, label_ids: Mapping[str, int] | None, max_length: int | None) -> Rows:
    """Texts, or pairs of texts, with their labels.

    Args:
        tokenizer: transformers'.
        examples: texts; without `label_ids` pairs are read as more texts.
        label_ids: the number of each label; None for none.
        max_length: longer texts are cut; None for 256 tokens.

    Raises:
        UsageError: a label that the model does not know.
    """
    limit = max_length or LONGEST
    texts, pairs = list(examples.texts), examples.pairs
    if label_ids is None and pairs is not None:
        texts, pairs = [*texts, *pairs], None
    encoded = tokenizer(
        texts, None if pairs is None else list(pairs), truncation=True, max_length=limit, return_attention_mask=True
    )
    items = [{name: values[i] for name, values in encoded.items()} for i in range(len(texts))]
    if label_ids is not None:
        for item, label in zip(items, numbered(examples, label_ids), strict=True):
            item["labels"] = label
    return Rows(items, _Padded(tokenizer.pad_token_id or 0))


def token_blocks(tokenizer: Any, examples: Examples, length: int | None) -> Rows:
    """For language models: all texts in one row, cut into blocks of `length` tokens (None for 256); the rest that
    fills no block is left out, unless it is all there is."""
    length = length or LONGEST
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for text in examples.texts:
        ids += [*tokenizer(text, truncation=False, add_special_tokens=True, verbose=False)["input_ids"], *end]
    blocks = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)] or [ids]
    if len(blocks[0]) < 2:
        raise UsageError(f"{examples.source} holds less than two tokens, and nothing can be predicted")
    items = [{"input_ids": block, "attention_mask": [1] * len(block), "labels": block} for block in blocks]
    return Rows(items, _Padded(0))


def image_rows(processor: Any, examples: Examples, label_ids: Mapping[str, int]) -> Rows:
    """Images with their labels; read when their batch is made."""
    labels = numbered(examples, label_ids)
    return Rows(_Images(examples.images, labels), _Pixels(processor))


def image_processor(assets: Path | None) -> Any:
    """The image processor of a checkpoint's folder.

    Raises:
        UsageError: it has none.
    """
    from transformers import AutoImageProcessor

    if assets is None or not (assets / "preprocessor_config.json").is_file():
        raise UsageError(
            f"{assets or 'the checkpoint'} has no preprocessor_config.json, so nothing says how images are scaled",
            "copy it there from the original model",
        )
    return AutoImageProcessor.from_pretrained(assets, use_fast=False, trust_remote_code=False)


def text_tokenizer(assets: Path | None) -> Any:
    """The tokenizer of a checkpoint's folder.

    Raises:
        NsnEdgeError: it has none.
    """
    from transformers import AutoTokenizer

    if assets is None or not any((assets / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise NsnEdgeError(
            f"{assets or 'the checkpoint'} has no tokenizer", "adapt the model again, with its tokenizer"
        )
    return AutoTokenizer.from_pretrained(assets, trust_remote_code=False)


def numbered(examples: Examples, label_ids: Mapping[str, int]) -> list[int]:
    """Labels as the model numbers them.

    Raises:
        UsageError: one that it does not know.
    """
    assert examples.labels is not None
    for at, label in enumerate(examples.labels):
        if label not in label_ids:
            known = ", ".join(list(label_ids)[:8]) + (", ..." if len(label_ids) > 8 else "")
            where = f"{examples.source}, example {at + 1}"
            raise UsageError(
                f"{where}: the model has no label {label!r}; its {len(label_ids)} are {known}",
                "correct the data, or replace the head with --new-head",
            )
    return [label_ids[label] for label in examples.labels]


@dataclass(frozen=True)
class _Padded:
    """Pads on the right by hand: tokenizers of decoders often have no padding token."""

    pad_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        batch = {}
        for name in rows[0]:
            values = [torch.as_tensor(row[name]) for row in rows]
            if values[0].dim() == 0:
                batch[name] = torch.stack(values)
                continue
            padding = {"input_ids": self.pad_id, "labels": -100}.get(name, 0)
            batch[name] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding)
        return batch


@dataclass(frozen=True)
class _Images(Sequence[Row]):
    rows: Any
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: Any) -> Any:
        return {"image": self.rows[int(at)]["image"], "labels": self.labels[at]}


@dataclass(frozen=True)
class _Pixels:
    processor: Any

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        images = [row["image"].convert("RGB") for row in rows]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}
