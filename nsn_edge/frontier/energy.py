"""How much of each layer's output a rank keeps, on real inputs, for trained factors as well as fresh ones.

With `h = A x` a layer's output is `sum_k b_k h_k`. What rank r leaves out of it is `sum_{k > r} b_k h_k`, and its mean
squared length is a trailing block of one matrix:

    G = (B B^T) * (A C A^T)          C = E[x x^T]           left out at r = sum of G[r:, r:]

Fresh whitened factors make G diagonal: it is the spectrum. Training mixes the directions, and G says what became of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nsn_edge.bundle import TaskSpec
from nsn_edge.calibration import Batch, StreamedCovariances
from nsn_edge.frontier.curve import Decay
from nsn_edge.layers import NSNLinear, nsn_layers
from nsn_edge.progress import Progress, silent
from nsn_edge.sensitivity import layer_damages, whole

_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_PROBED = 0.9
_FLOOR = 1e-12  # shares of the energy below this are rounding, and their logarithms noise

Kept = npt.NDArray[np.float64]


def energy_kept(model: nn.Module, batches: Sequence[Batch], progress: Progress = silent) -> dict[str, Kept]:
    """For every nested layer the share of its output's energy that each rank keeps.

    Args:
        model: trained or not; the energies are those of the whole model's inputs to each layer.
        batches: model inputs; 64 sentences are enough.
        progress: hears of every batch.

    Returns:
        By layer, float64 `[full_rank]`: entry `r - 1` belongs to rank `r`; the last is 1. Layers that no input reached
        are left out. A rank that makes the output worse than none at all has a share below 0.
    """
    with whole(model):
        covariances = StreamedCovariances(
            model, batches, lambda module, _: isinstance(module, NSNLinear), progress=progress
        )
        found = {}
        for name, layer in nsn_layers(model).items():
            covariance = covariances[name]
            if covariance.tokens:
                C = covariance.total / covariance.tokens
                found[name] = _kept(layer.A.detach().double(), layer.B.detach().double(), C.to(layer.A.device))
    return found


def _kept(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> Kept:
    G = (B @ B.T) * (A @ C @ A.T)
    # The trailing block grows by a row, a column and their corner: one pass over the upper triangle.
    growth = 2 * torch.triu(G, diagonal=1).sum(1) + G.diagonal()
    trailing = torch.flip(torch.cumsum(torch.flip(growth, (0,)), 0), (0,)).cpu().numpy()
    total = max(float(trailing[0]), 1e-300)
    kept: Kept = 1.0 - np.concatenate([trailing[1:], [0.0]]) / total
    return kept


def mean_kept(
    kept: Mapping[str, Kept], layer_ranks: Mapping[str, int], weights: Mapping[str, float] | None = None
) -> float:
    """The share kept at some layer ranks, on average over layers, in `[0, 1]`.

    Args:
        kept: by layer, from `energy_kept`.
        layer_ranks: of every layer.
        weights: of every layer, from `layer_weights`; None for equal ones.
    """
    shares = np.array([np.clip(curve[layer_ranks[name] - 1], 0.0, 1.0) for name, curve in kept.items()])
    weighing = np.array([1.0 if weights is None else weights[name] for name in kept])
    return float(shares @ weighing / weighing.sum()) if weighing.sum() > 0 else 1.0


def layer_weights(
    model: nn.Module,
    kept: Mapping[str, Kept],
    batches: Sequence[Batch],
    task: TaskSpec,
    progress: Progress = silent,
) -> dict[str, float]:
    """What the model's output loses per share of a layer's energy left out, by layer: measured once per layer, at the
    rank that keeps nine tenths of its energy."""
    probes = {}
    for name, curve in kept.items():
        enough = int(np.argmax(curve >= _PROBED)) + 1
        probes[name] = max(1, min(enough, curve.size - 1))
    damages = layer_damages(model, batches, probes, task, progress)
    left_out = {name: max(1.0 - float(curve[probes[name] - 1]), 0.0) for name, curve in kept.items()}
    return {name: damages[name] / left_out[name] if left_out[name] > _FLOOR else 0.0 for name in kept}


def decay_of(kept: Mapping[str, Kept]) -> Decay:
    """How the energy falls with the direction, over all layers."""
    by_share = tuple(
        mean_kept(kept, {name: max(1, round(share * curve.size)) for name, curve in kept.items()}) for share in _SHARES
    )
    exponential, power = [], []
    for curve in kept.values():
        of_direction = np.diff(curve, prepend=0.0)
        k = np.arange(1, curve.size + 1, dtype=np.float64)
        used = of_direction > _FLOOR
        if used.sum() >= 3:
            exponential.append(_r2(k[used], np.log(of_direction[used])))
            power.append(_r2(np.log(k[used]), np.log(of_direction[used])))
    if not exponential:
        return Decay(_SHARES, by_share, None, None)
    return Decay(_SHARES, by_share, float(np.median(exponential)), float(np.median(power)))


def _r2(x: Kept, y: Kept) -> float:
    """Of the straight line through the points."""
    spread = float(((y - y.mean()) ** 2).sum())
    if spread == 0:
        return 1.0
    return 1.0 - float(((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2).sum()) / spread
