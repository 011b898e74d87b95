"""How much the model's output suffers when one layer is cut: what `allocation` spends the budget by.

    for every batch:   whole   = answer of the whole model
                       for every layer l:   answer with l alone cut to rank r_l    damage_l += distance from `whole`

    damage_l(r) = damage_l(r_l) * (S_{r+1}^2 + S_{r+2}^2 + ...) / (S_{r_l + 1}^2 + ...)

One measurement per layer and the layer's own (whitened) spectrum give its damage at every rank: what the output loses
is close to proportional to the squared error of the layer's own output, and the spectrum says exactly what that is. No
labels and no gradients: one forward pass per layer and batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nsn_edge.allocation import LayerDamage, allocated_ladder
from nsn_edge.bundle import TaskSpec
from nsn_edge.calibration import Batch, evaluating
from nsn_edge.errors import NsnEdgeError, RankError, UsageError
from nsn_edge.evaluation import pool_hidden
from nsn_edge.ladder import RankLadder
from nsn_edge.layers import NSNLinear, at_dense, at_rank, ladder_of, nsn_layers
from nsn_edge.progress import Progress, silent

PROBE_FRACTION = 0.25
"""Layers are cut one at a time to their uniform rank at this share of the linear FLOPs. Measured on MiniLM, at 25 % and
at 50 % the allocations come out alike; the deeper cut stands further above rounding."""

PROBE_EXAMPLES = 64
"""On how many examples sensitivity is measured: a pass over them for every layer."""

JUDGED_FRACTIONS = (0.5, 0.25)
"""Where two ways to cut a model are compared: shares of the linear FLOPs."""


def allocate_(
    model: nn.Module,
    batches: Sequence[Batch],
    task: TaskSpec | None = None,
    align: int = 8,
    progress: Progress = silent,
) -> RankLadder:
    """Give every nested layer the rank curve that its measured sensitivity earns, in place.

    The factors stay as they are: only how far each layer's prefix goes at a rank of the model changes.

    Args:
        model: fresh from `nsnify_`: its factors still show their spectrum (training mixes it).
        batches: calibration inputs; 64 sentences are enough.
        task: says what the model's output is, see `answer`.
        align: layer ranks are multiples of this.
        progress: hears of every batch.

    Returns:
        The model's new ladder, without rungs. The old one where that does less damage to these inputs: damages are
        measured one layer at a time, and in a network of three small layers they say little of all cut together.

    Raises:
        UsageError: no batches.
        NsnEdgeError: the model's output is not finite.
    """
    layers = nsn_layers(model)
    ladder = ladder_of(model)
    before = judged_damage(model, batches, task)
    probe = ladder.layer_ranks(rank_within(ladder, PROBE_FRACTION))
    probe = {name: min(rank, max(layers[name].full_rank - 1, 1)) for name, rank in probe.items()}
    measured = layer_damages(model, batches, probe, task, progress)
    curves = allocated_ladder(
        [
            LayerDamage(name, layer.in_features, layer.out_features, _extended(layer, measured[name], probe[name]))
            for name, layer in layers.items()
        ],
        align,
    )
    _set_curves_(model, curves)
    if judged_damage(model, batches, task) <= before:
        return curves
    _set_curves_(model, ladder)
    return ladder


def judged_damage(model: nn.Module, batches: Sequence[Batch], task: TaskSpec | None = None) -> float:
    """The model's damage at `JUDGED_FRACTIONS`; the geometric mean, so that the lowest rung does not decide alone.

    Raises:
        UsageError: no batches.
        NsnEdgeError: the model's output is not finite.
    """
    ladder = ladder_of(model)
    ranks = sorted({rank_within(ladder, fraction) for fraction in JUDGED_FRACTIONS})
    return math.prod(model_damage(model, batches, rank, task) for rank in ranks) ** (1 / len(ranks))


def _set_curves_(model: nn.Module, ladder: RankLadder) -> None:
    layers = nsn_layers(model)
    for nested in ladder.layers:
        layers[nested.name].curve = nested.curve


def rank_within(ladder: RankLadder, fraction: float) -> int:
    """The best rank within a share of the linear FLOPs; 1 for tiny layers, where even that takes more."""
    try:
        return ladder.rank_for_fraction(fraction)
    except RankError:
        return 1


def layer_damages(
    model: nn.Module,
    batches: Sequence[Batch],
    ranks: Mapping[str, int],
    task: TaskSpec | None = None,
    progress: Progress = silent,
) -> dict[str, float]:
    """What the output loses when each layer alone is cut to its rank, the others whole; by layer name.

    Raises:
        UsageError: no batches.
        NsnEdgeError: the model's output is not finite.
    """
    layers = nsn_layers(model)
    totals = dict.fromkeys(ranks, 0.0)
    with whole(model), evaluating(model), torch.no_grad():
        for done, batch in enumerate(_some(batches), start=1):
            reference = answer(model, batch, task)
            for name, rank in ranks.items():
                layer = layers[name]
                as_whole = layer.rank, layer.dense
                layer.rank, layer.dense = rank, False
                totals[name] += distance(reference, answer(model, batch, task)) * len(reference.rows)
                layer.rank, layer.dense = as_whole
            progress("sensitivity", done, len(batches))
    return totals


def model_damage(model: nn.Module, batches: Sequence[Batch], rank: int, task: TaskSpec | None = None) -> float:
    """What the output loses at a rank of the model, on average over the items of the batches.

    Raises:
        UsageError: no batches.
        RankError: `rank` is outside `1..R`.
        NsnEdgeError: the model's output is not finite.
    """
    total, items = 0.0, 0
    with evaluating(model), torch.no_grad():
        for batch in _some(batches):
            with whole(model):
                reference = answer(model, batch, task)
            with at_rank(model, rank):
                total += distance(reference, answer(model, batch, task)) * len(reference.rows)
            items += len(reference.rows)
    return total / items


def whole(model: nn.Module) -> AbstractContextManager[None]:
    """The model at its best: the dense original where every layer has kept it, and full rank otherwise."""
    kept = all(layer.weight is not None for layer in nsn_layers(model).values())
    return at_dense(model) if kept else at_rank(model, ladder_of(model).max_rank)


@dataclass(frozen=True)
class Answer:
    """What a model says to a batch, padding left out."""

    rows: Tensor
    """float32 `[items, features]`: an item is a sentence, a token or an example."""
    log_probabilities: bool
    """Whether a row is a distribution's logarithm."""


def answer(model: nn.Module, batch: Batch, task: TaskSpec | None = None) -> Answer:
    """What the model says that matters: sentence embeddings where the task pools, log-probabilities where the model has
    logits, and otherwise the last hidden states or the plain output."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if not isinstance(batch, Mapping):
        return Answer(_rows(model(batch.to(device)), None), log_probabilities=False)
    inputs = {key: value.to(device) for key, value in batch.items()}
    output = model(**inputs)
    mask = inputs.get("attention_mask")
    if (logits := getattr(output, "logits", None)) is not None:
        return Answer(_rows(logits, mask).log_softmax(-1), log_probabilities=True)
    hidden = getattr(output, "last_hidden_state", output)
    if task is not None and task.pooling is not None and mask is not None:
        return Answer(pool_hidden(hidden.float(), mask, task), log_probabilities=False)
    return Answer(_rows(hidden, mask), log_probabilities=False)


def distance(reference: Answer, other: Answer) -> float:
    """How far a cut model's answer is from the whole one's, on average over items: of log-probabilities the
    Kullback-Leibler divergence in nats, of anything else the squared distance as a share of the squared length.

    Raises:
        NsnEdgeError: an answer is not finite.
    """
    if reference.log_probabilities:
        value = (reference.rows.exp() * (reference.rows - other.rows)).sum(-1).double().mean()
    else:
        lengths = reference.rows.double().pow(2).sum()
        value = (reference.rows - other.rows).double().pow(2).sum() / lengths.clamp_min(1e-30)
    if not bool(torch.isfinite(value)):
        raise NsnEdgeError("the model's output holds NaN or infinity", "check its weights, and adapt it in fp32")
    return max(float(value), 0.0)  # rounding takes a divergence of nothing below it


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape:
        return x[mask.bool()].float()
    return x.reshape(-1, x.shape[-1]).float()


def _extended(layer: NSNLinear, measured: float, rank: int) -> npt.NDArray[np.float64]:
    """The damage at every rank, from that at one: in proportion to what the spectrum says is left out."""
    # nsnify_ leaves B = U sqrt(S): the squared length of a row of B is the singular value itself.
    energy = layer.B.detach().double().pow(2).sum(1).pow(2).cpu().numpy()
    left_out = np.concatenate([np.cumsum(energy[::-1])[::-1][1:], [0.0]])
    at_probe = float(left_out[rank - 1])
    return left_out * (measured / at_probe) if at_probe > 0 else np.zeros_like(left_out)


def _some(batches: Sequence[Batch]) -> Sequence[Batch]:
    if not batches:
        raise UsageError("nothing to measure sensitivity on: no input batches")
    return batches
