"""A nested model as the dense one it came from, and a dense model nested again.

nested --dense_copy--> dense, trained or frozen        nn.Linear where NSNLinear was
dense  --nest_like_--> nested                          the same layers, the same rank curves, factors cut anew
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from nsn_edge.convert import dense_weight
from nsn_edge.factorize import Covariance, factorize
from nsn_edge.ladder import RankLadder
from nsn_edge.layers import NSNLinear, nsn_layers, replace_module_
from nsn_edge.progress import Progress, silent


def dense_copy(model: nn.Module, *, frozen: bool) -> nn.Module:
    """A copy of a nested model with every nested layer dense again.

    Args:
        model: holds nested layers; as it is afterwards.
        frozen: whether the copy is only looked at: in evaluation mode, without gradients, and sharing the memory of the
            dense weights that the layers kept. Otherwise everything is copied, to be trained.

    Returns:
        The original weights where they were kept, and the product of the factors elsewhere.
    """
    # A memo that knows the nested layers already: deepcopy puts the new ones there and copies no factor. The layers
    # are kept alive by the model, so their ids stay theirs.
    memo: dict[int, object] = {id(layer): _linear(layer, shared=frozen) for layer in nsn_layers(model).values()}
    dense = copy.deepcopy(model, memo)
    if frozen:
        dense.eval().requires_grad_(False)
    return dense


def nest_like_(
    dense: nn.Module,
    ladder: RankLadder,
    covariances: Mapping[str, Covariance] | None = None,
    progress: Progress = silent,
) -> RankLadder:
    """Cut the layers of a ladder into factors, in place, with the ladder's own rank curves; dense weights are kept.

    Args:
        dense: has a linear layer under every name of the ladder.
        ladder: says which layers, and how the rank of each follows the model's.
        covariances: of the layers' inputs, by name; None for plain SVD.
        progress: hears of every layer.
    """
    for done, layer in enumerate(ladder.layers, start=1):
        module = dense.get_submodule(layer.name)
        weight = dense_weight(module, layer.name)
        factors = factorize(weight, covariances[layer.name] if covariances else None, rank=layer.curve.full_rank)
        bias = module.bias.detach() if isinstance(module.bias, Tensor) else None
        nested = NSNLinear.from_factors(factors.A, factors.B, bias, layer.curve, weight.contiguous())
        replace_module_(dense, module, nested.train(module.training))
        progress("factorize", done, len(ladder.layers))
    return ladder


def inside(ladder: RankLadder, prefix: str) -> RankLadder:
    """The ladder of the same layers within a larger model that holds theirs as `prefix`."""
    return replace(ladder, layers=tuple(replace(layer, name=f"{prefix}.{layer.name}") for layer in ladder.layers))


def _linear(layer: NSNLinear, *, shared: bool) -> nn.Linear:
    with torch.no_grad():
        weight = layer.weight if layer.weight is not None else layer.B.t() @ layer.A
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight if shared else weight.clone())
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.detach().clone())
    return linear.train(layer.training)
