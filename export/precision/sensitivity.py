"""How much quantising each layer alone harms the model, measured on calibration text, and which to spare.

    damage of a layer = |output with that layer quantised - output| / |output|        root mean squares, in torch

A spared layer keeps int8 weights and gets a range per token for its activations, see `lowering.quantised`.

Measured once, in the dense original where the bundle has it (the rung with the most to lose), else at the highest rung:
what harms a layer is mostly its input.

A rung that is cut has less to lose. Its own loss and that of its integers add as errors without a common cause do:

    loss of a rung = |output at that rank - output of the highest| / |output of the highest|
    sqrt(loss^2 + damage^2) ~ loss       where the damage of the sensitive layers together is small against the loss

There they are not spared, as what that costs in time buys nothing (`lowest_sparing`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from nsn_edge.bundle.quantisation import QUANTISED, Quantisation
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.corpus import documentation_corpus
from nsn_edge.errors import UsageError
from nsn_edge.export.half import with_weights_as
from nsn_edge.export.inputs import is_cached, text_inputs
from nsn_edge.export.precision.int4 import BLOCK_SIZE
from nsn_edge.export.precision.simulated import as_quantised
from nsn_edge.export.reference import Batch
from nsn_edge.ladder import Rung
from nsn_edge.layers import at_dense, at_rank
from nsn_edge.progress import Progress, silent

if TYPE_CHECKING:
    from nsn_edge.export.exporter import ExportConfig

AUTO = "auto"
OUTLIER = 4.0
"""`auto` spares layers whose damage is past this many times the median layer's."""
SMALL_SHARE = 0.25
"""Of a rung's loss: damage up to this adds three hundredths to it, and `auto` lets it be."""


def parse_keep(text: str | None, precision: str | None) -> int | str:
    """`--keep-precise` as a number of layers (0 for none) or `AUTO`.

    Raises:
        UsageError: it is neither, or the precision is a float.
    """
    if text is None:
        return 0
    if precision not in QUANTISED:
        raise UsageError(
            "--keep-precise spares layers that would be quantised", f"add --precision {' or '.join(QUANTISED)}"
        )
    if text == AUTO:
        return AUTO
    if not text.isdecimal():
        raise UsageError(f"--keep-precise takes a number of layers or {AUTO}, not {text!r}")
    return int(text)


def measure_damage(
    checkpoint: Checkpoint,
    config: ExportConfig,
    batches: Sequence[Batch] | None = None,
    *,
    progress: Progress = silent,
) -> dict[str, float]:
    """Each nested layer's damage, see the module.

    Args:
        checkpoint: in any float.
        config: with `int8` or `int4`.
        batches: the model's inputs by name; None for sentences of the calibration corpus.
        progress: hears of each layer.

    Raises:
        UsageError: text is needed, and the checkpoint has no tokenizer.
    """
    assert config.precision in QUANTISED
    model, inputs = _prepared(checkpoint, batches)
    ladder = config.rungs_of(checkpoint.ladder)
    names = [layer.name for layer in ladder.layers]
    block_size = BLOCK_SIZE if config.precision == "int4" else None
    how = Quantisation(config.precision, originals=config.merge, block_size=block_size)
    damage = {}
    with _at(model, ladder.rungs[-1]), torch.no_grad():
        wanted = [_answer(model, batch) for batch in inputs]
        for done, name in enumerate(names):
            progress("sensitivity", done, len(names))
            with as_quantised(model, how, only=(name,)):
                damage[name] = _distance([_answer(model, batch) for batch in inputs], wanted)
    progress("sensitivity", len(names), len(names))
    return damage


def measure_losses(
    checkpoint: Checkpoint, config: ExportConfig, batches: Sequence[Batch] | None = None
) -> dict[int, float]:
    """Each rung's loss by its rank, in floats, see the module; the highest rung's is 0.

    Args:
        checkpoint: in any float.
        config: which rungs.
        batches: as for `measure_damage`.

    Raises:
        UsageError: text is needed, and the checkpoint has no tokenizer.
    """
    model, inputs = _prepared(checkpoint, batches)
    rungs = config.rungs_of(checkpoint.ladder).rungs
    answers = {}
    with torch.no_grad():
        for rung in rungs:
            with _at(model, rung):
                answers[rung.rank] = [_answer(model, batch) for batch in inputs]
    return {rank: _distance(found, answers[rungs[-1].rank]) for rank, found in answers.items()}


def lowest_sparing(damage: Mapping[str, float], spared: Sequence[str], losses: Mapping[int, float]) -> int:
    """The lowest rank at which sparing these layers is worth it: where their damage together, added as errors without a
    common cause, is more than `SMALL_SHARE` of the rung's own loss."""
    together = math.hypot(*(damage[name] for name in spared))
    return min((rank for rank, loss in losses.items() if together > SMALL_SHARE * loss), default=1)


def worst_layers(damage: Mapping[str, float], wanted: int | str) -> tuple[str, ...]:
    """The layers to spare, worst first: as many as wanted, or for `AUTO` those past `OUTLIER` times the median.

    Raises:
        UsageError: more than there are.
    """
    ranked = sorted(damage, key=lambda name: -damage[name])
    if wanted == AUTO:
        limit = OUTLIER * statistics.median(damage.values())
        return tuple(name for name in ranked if damage[name] > limit)
    if int(wanted) > len(ranked):
        raise UsageError(f"the model has {len(ranked)} nested layers, so {wanted} cannot be kept precise")
    return tuple(ranked[: int(wanted)])


def _prepared(
    checkpoint: Checkpoint, batches: Sequence[Batch] | None
) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """The model in float32, and what to measure it on."""
    checkpoint = with_weights_as(checkpoint, "fp32")
    model = checkpoint.model.eval()
    return model, [_tensors(batch) for batch in (_sentences(checkpoint) if batches is None else batches)]


def _at(model: nn.Module, rung: Rung) -> AbstractContextManager[None]:
    return at_dense(model) if rung.dense else at_rank(model, rung.rank)


def _sentences(checkpoint: Checkpoint) -> list[dict[str, np.ndarray]]:
    if checkpoint.assets is None or not (checkpoint.assets / "tokenizer_config.json").is_file():
        raise UsageError(
            f"{checkpoint.name} has no tokenizer, so sensitive layers cannot be found on text",
            "name them with ExportConfig(keep_precise=...), or call measure_damage with your own batches",
        )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.assets, trust_remote_code=False)
    names = ["input_ids", "attention_mask"]
    return text_inputs(tokenizer, documentation_corpus().calibration, names, checkpoint.task.max_length)


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in batch.items() if not is_cached([name])}


def _answer(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The model's first output, `[batch, ...]`, without positions that are padding."""
    result = model(**batch)
    if isinstance(result, Mapping):
        result = result["logits"] if "logits" in result else next(iter(result.values()))
    elif not isinstance(result, torch.Tensor):
        result = result[0]
    assert isinstance(result, torch.Tensor)
    mask = batch.get("attention_mask")
    return result[mask.bool()] if mask is not None and result.shape[:2] == mask.shape else result


def _distance(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    squares = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, wanted, strict=True))
    size = sum(float((b**2).sum()) for b in wanted)
    return float((squares / size) ** 0.5) if size else 0.0
