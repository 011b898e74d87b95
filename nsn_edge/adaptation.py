"""From a pre-trained model's name to a nested checkpoint: load, calibrate, cut.

load_pretrained --model, tokenizer--> collect_covariances(text) --C per layer--> nsnify_ --> Checkpoint
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nsn_edge._version import __version__
from nsn_edge.calibration import Batch, collect_covariances, text_batches
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, filter_of, nsnify_
from nsn_edge.corpus import documentation_corpus
from nsn_edge.errors import UnsupportedModelError, UsageError
from nsn_edge.pretrained import MINILM, Pretrained, load_pretrained
from nsn_edge.progress import Progress, silent

# Measured on MiniLM, packaged text: Spearman on held-out sentences at 50 % of the linear FLOPs is 0.824 with 100
# sentences, 0.835 with 300, 0.843 with 600 (16,300 tokens), 0.846 with all 1,083; 500 took 8 s on two cores.
DEFAULT_SENTENCES = 600

_LONGEST = 512  # tokens; longer calibration texts tell no more about a layer's inputs and cost quadratic attention


@dataclass(frozen=True)
class CalibrationText:
    """What to calibrate on."""

    texts: Sequence[str]
    """Sentences or paragraphs, as like those the device will see as possible."""
    source: str
    """Where they come from, for the checkpoint's provenance."""
    most: int = DEFAULT_SENTENCES
    """At most this many are used, spread evenly over `texts`."""

    def __post_init__(self) -> None:
        if self.most < 1:
            raise UsageError(f"calibration takes 1 sentence or more, not {self.most}")
        if not self.texts:
            raise UsageError(f"{self.source} holds no text to calibrate on", "give one sentence per line")

    def chosen(self) -> list[str]:
        """The texts that are used."""
        count = min(self.most, len(self.texts))
        return [self.texts[i * len(self.texts) // count] for i in range(count)]


def packaged_text(most: int = DEFAULT_SENTENCES) -> CalibrationText:
    """Python's own documentation, which every Python ships."""
    return CalibrationText(documentation_corpus().calibration, "Python's documentation (pydoc_data.topics)", most)


def adapt(
    name_or_path: str | Path = MINILM,
    task: str = "feature-extraction",
    config: NSNConfig | None = None,
    text: CalibrationText | None = None,
    progress: Progress = silent,
    *,
    batches: Iterable[Batch] | None = None,
) -> Checkpoint:
    """Cut a pre-trained transformer into nested factors.

    Args:
        name_or_path: a local folder, a hub id, or `minilm`.
        task: a key of `nsn_edge.pretrained.MODEL_CLASSES`.
        config: how layers are cut; None for the defaults.
        text: what to calibrate on; None for `packaged_text()`. Not read by the method `svd`.
        progress: hears of calibrating and cutting.
        batches: model inputs to calibrate on in place of text; needed where the model reads none (images).

    Returns:
        The checkpoint, not yet saved.

    Raises:
        UsageError: unknown task or folder, or no text.
        UnsupportedModelError: no layers that can be cut, or a model that was not trained for the task.
        NsnEdgeError: the model cannot be loaded, or a weight is not finite.
    """
    pretrained = load_pretrained(name_or_path, task)
    if pretrained.untrained:
        raise UnsupportedModelError(
            f"{name_or_path} was not trained for {task}: it has no {pretrained.untrained[0]}"
            + (f" and {len(pretrained.untrained) - 1} more" if len(pretrained.untrained) > 1 else ""),
            "choose the task that it was made for with --task, or train it for this one first",
        )
    return adapt_pretrained(pretrained, config, text, progress, batches=batches)


def adapt_pretrained(
    pretrained: Pretrained,
    config: NSNConfig | None = None,
    text: CalibrationText | None = None,
    progress: Progress = silent,
    *,
    batches: Iterable[Batch] | None = None,
) -> Checkpoint:
    """`adapt` for a model that is already loaded; it is changed in place."""
    import torch
    import transformers

    config = config or NSNConfig()
    provenance: dict[str, Any] = {
        "model": pretrained.name,
        "method": config.method,
        "nsn_edge": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    covariances = None
    if config.method == "whitened":
        if batches is None:
            text = text or packaged_text()
            batches = _batches_of(text, pretrained)
            provenance |= {"calibration_text": text.source, "calibration_sentences": len(text.chosen())}
        covariances = collect_covariances(pretrained.model, batches, filter_of(config), progress)
        provenance["calibration_tokens"] = max(covariance.tokens for covariance in covariances.values())
    nsnify_(pretrained.model, config, covariances=covariances, progress=progress)
    return Checkpoint(pretrained.model, pretrained.task, pretrained.name, provenance, pretrained.assets)


def _batches_of(text: CalibrationText, pretrained: Pretrained) -> list[dict[str, Tensor]]:
    if pretrained.tokenizer is None:
        raise UsageError(
            f"{pretrained.name} reads no text, and there are no other inputs to calibrate it on",
            "give an array per input with --inputs FILE.npz, or cut by plain SVD with --method svd",
        )
    limit = min(pretrained.task.max_length or _LONGEST, _LONGEST)
    return text_batches(pretrained.tokenizer, text.chosen(), max_length=limit)
