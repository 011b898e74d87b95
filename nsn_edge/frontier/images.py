"""An image classifier's accuracy at every rank, on a folder of images or a data set of the hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from nsn_edge.calibration import Batch, evaluating
from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.frontier.curve import Metric
from nsn_edge.frontier.measures import ACCURACY, label_numbers
from nsn_edge.training.batches import Rows, image_processor, image_rows
from nsn_edge.training.data import Columns, read_examples

_BATCH_SIZE = 32


@dataclass(frozen=True)
class ImageAccuracy:
    """The share of images whose label is the model's first choice. A `Measure`."""

    rows: Rows
    """Images are read and scaled when their batch is made, so they need not fit the memory."""
    metric: Metric = ACCURACY

    @property
    def examples(self) -> int:
        """Images."""
        return len(self.rows)

    def __call__(self, model: nn.Module) -> float:
        """Of the model as it stands."""
        device = next(model.parameters()).device
        right = 0
        with evaluating(model), torch.no_grad():
            for start in range(0, len(self.rows), _BATCH_SIZE):
                items = [self.rows[at] for at in range(start, min(start + _BATCH_SIZE, len(self.rows)))]
                batch = {name: value.to(device) for name, value in self.rows.collate(items).items()}
                labels = batch.pop("labels")
                logits = model(**batch).logits
                if not bool(torch.isfinite(logits).all()):
                    raise NsnEdgeError(
                        "the model's output holds NaN or infinity", "check its weights, and evaluate it in fp32"
                    )
                right += int((logits.argmax(-1) == labels).sum())
        return right / len(self.rows)

    def batches(self, most: int) -> list[Batch]:
        """See `Measure`."""
        return [*self.rows.batches(_BATCH_SIZE, most)]


def image_accuracy(
    model: nn.Module,
    assets: Path | None,
    data: str | None,
    label_column: str | None = None,
    split: str = "test",
    most: int | None = None,
) -> ImageAccuracy:
    """The measure of an image classifier.

    Args:
        model: says which labels there are.
        assets: the checkpoint's folder, with `preprocessor_config.json`.
        data: a folder of images in folders named after their labels, or a hub id.
        label_column: of a hub's data set; None for the usual names.
        split: of the data.
        most: use at most this many images, spread evenly; None for all.

    Raises:
        UsageError: no data, no such split or label, or nothing says how images are scaled.
        MissingDependencyError: the library datasets is not installed.
        NsnEdgeError: the hub cannot be reached.
    """
    if data is None:
        raise UsageError("a classifier is measured on labelled images", "give a folder with --data FOLDER")
    processor = image_processor(assets)
    examples = read_examples(data, "image-classification", Columns(label=label_column), split)
    if most is not None and most < len(examples):
        chosen = [i * len(examples) // most for i in range(most)]
        assert examples.labels is not None
        labels = [examples.labels[i] for i in chosen]
        examples = replace(examples, images=examples.images.select(chosen), labels=labels)
    return ImageAccuracy(image_rows(processor, examples, label_numbers(model)))
