"""From a pre-trained model's name to a nested checkpoint: load, calibrate, cut.

load_pretrained --model, tokenizer--> covariances of text --C per layer--> nsnify_ --> [allocate_] --> Checkpoint
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nsn_edge._version import __version__
from nsn_edge.calibration import Batch, StreamedCovariances, batch_size, select, some_examples, text_batches
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, filter_of, nsnify_, refactorize_
from nsn_edge.corpus import documentation_corpus
from nsn_edge.errors import UnsupportedModelError, UsageError
from nsn_edge.layers import ladder_of, nsn_layers
from nsn_edge.pretrained import MINILM, Pretrained, load_pretrained
from nsn_edge.progress import Progress, silent
from nsn_edge.sensitivity import PROBE_EXAMPLES, allocate_, judged_damage

# Measured on MiniLM, packaged text: Spearman on held-out sentences at 50 % of the linear FLOPs is 0.824 with 100
# sentences, 0.835 with 300, 0.843 with 600 (16,300 tokens), 0.846 with all 1,083; 500 took 8 s on two cores.
DEFAULT_SENTENCES = 600

ALLOCATIONS = ("uniform", "sensitivity")
"""How the budget is shared among layers."""

_HELD_OUT_EVERY = 5

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
    allocate: str = "uniform",
    choose_method: bool = False,
) -> Checkpoint:
    """Cut a pre-trained transformer into nested factors.

    Args:
        name_or_path: a local folder, a hub id, or `minilm`.
        task: a key of `nsn_edge.pretrained.MODEL_CLASSES`.
        config: how layers are cut; None for the defaults.
        text: what to calibrate on; None for `packaged_text()`. Not read by the method `svd`.
        progress: hears of calibrating and cutting.
        batches: model inputs to calibrate on in place of text; needed where the model reads none (images).
        allocate: `uniform` gives every layer the same share of its full rank, `sensitivity` spends the same work where
            a cut does less damage on the calibration data (see `nsn_edge.sensitivity`).
        choose_method: cut both ways, keep the one that does less damage to inputs held out from calibration, and
            ignore the method of `config`.

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
    return adapt_pretrained(
        pretrained, config, text, progress, batches=batches, allocate=allocate, choose_method=choose_method
    )


def adapt_pretrained(
    pretrained: Pretrained,
    config: NSNConfig | None = None,
    text: CalibrationText | None = None,
    progress: Progress = silent,
    *,
    batches: Iterable[Batch] | None = None,
    allocate: str = "uniform",
    choose_method: bool = False,
) -> Checkpoint:
    """`adapt` for a model that is already loaded; it is changed in place."""
    import torch
    import transformers

    config = config or NSNConfig()
    if allocate not in ALLOCATIONS:
        raise UsageError(f"unknown allocation {allocate!r}", f"choose one of {', '.join(ALLOCATIONS)}")
    provenance: dict[str, Any] = {
        "model": pretrained.name,
        "method": config.method,
        "nsn_edge": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    inputs: list[Batch] = []
    if config.method == "whitened" or choose_method or allocate == "sensitivity":
        if batches is None:
            text = text or packaged_text()
            inputs = [*_batches_of(text, pretrained)]
            provenance |= {"calibration_text": text.source, "calibration_sentences": len(text.chosen())}
        else:
            inputs = list(batches)
    if choose_method:
        provenance |= _cut_the_better_way(pretrained, config, inputs, progress)
    else:
        covariances = None
        if config.method == "whitened":
            covariances = StreamedCovariances(pretrained.model, inputs, filter_of(config), progress=progress)
        nsnify_(pretrained.model, config, covariances=covariances, progress=progress)
        if covariances is not None:
            provenance["calibration_tokens"] = covariances.tokens
    if allocate == "sensitivity":
        probes = some_examples(inputs, PROBE_EXAMPLES)
        uniform = ladder_of(pretrained.model)
        ladder = allocate_(pretrained.model, probes, pretrained.task, config.align, progress)
        provenance |= {
            "allocation": "uniform" if ladder == uniform else allocate,
            "allocation_examples": sum(map(batch_size, probes)),
        }
    return Checkpoint(pretrained.model, pretrained.task, pretrained.name, provenance, pretrained.assets)


def _cut_the_better_way(
    pretrained: Pretrained, config: NSNConfig, inputs: list[Batch], progress: Progress
) -> dict[str, Any]:
    """Cut by plain SVD, and again whitened; judge both on examples that the whitening did not see; keep the better.

    The plain cut goes first: it needs the dense weights alone, and they are kept until the choice is made.
    """
    model, task = pretrained.model, pretrained.task
    kept, held_out = _split(inputs)
    covariances = StreamedCovariances(model, kept, filter_of(config), most_bytes=math.inf, progress=progress)
    next(iter(covariances.values()))  # collected while the model is still dense
    nsnify_(model, replace(config, method="svd", keep_dense=True), progress=progress)
    damages = {"svd": judged_damage(model, held_out, task)}
    refactorize_(model, covariances, progress)
    damages["whitened"] = judged_damage(model, held_out, task)
    best = min(damages, key=lambda method: damages[method])
    if best == "svd":
        refactorize_(model, None, progress)
    if not config.keep_dense:
        for layer in nsn_layers(model).values():
            layer.weight = None
    return {
        "method": best,
        "method_chosen_on": sum(map(batch_size, held_out)),
        "held_out_damage": damages,
        "calibration_tokens": covariances.tokens,
    }


def _split(inputs: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Every fifth example held out, from every batch; at least one on either side."""
    kept: list[Batch] = []
    held_out: list[Batch] = []
    for batch in inputs:
        size = batch_size(batch)
        at = [i for i in range(size) if i % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1]
        if at:
            held_out.append(select(batch, at))
        if rest := [i for i in range(size) if i not in set(at)]:
            kept.append(select(batch, rest))
    if not held_out or not kept:
        raise UsageError(
            f"choosing a method holds out every {_HELD_OUT_EVERY}th example, and there are too few",
            "calibrate on more text, or name the method",
        )
    return kept, held_out


def _batches_of(text: CalibrationText, pretrained: Pretrained) -> list[dict[str, Tensor]]:
    if pretrained.tokenizer is None:
        raise UsageError(
            f"{pretrained.name} reads no text, and there are no other inputs to calibrate it on",
            "give an array per input with --inputs FILE.npz, or cut by plain SVD with --method svd",
        )
    limit = min(pretrained.task.max_length or _LONGEST, _LONGEST)
    return text_batches(pretrained.tokenizer, text.chosen(), max_length=limit)
