"""A pre-trained model's linear layers become nested, in place.

    for each layer the filter accepts:   weight --factorize--> A, B --NSNLinear--> put where the layer was

The layers that choose a word or a class stay as they are: their outputs are what everything is judged by, and they are
a small share of the work.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nsn_edge.calibration import ModuleFilter, StreamedCovariances
from nsn_edge.errors import NsnEdgeError, UnsupportedModelError, UsageError
from nsn_edge.factorize import Covariance, Factors, factorize
from nsn_edge.ladder import RankLadder, uniform_ladder
from nsn_edge.layers import NSNLinear, nsn_layers, replace_module_
from nsn_edge.progress import Progress, silent

METHODS = ("whitened", "svd")

CUTTABLE = "torch.nn.Linear and transformers' Conv1D, with floating-point weights"

_HEADS = frozenset(
    {
        *("lm_head", "embed_out", "cls", "head", "logits_proj", "vocab_projector", "vocab_transform"),
        *("classifier", "pre_classifier", "sop_classifier", "score", "summary", "pooler", "seq_relationship"),
        "qa_outputs",
    }
)

# torch's own blocks hand their layers' `weight` to a fused kernel and never call the layers: a rank would be ignored.
_READS_WEIGHTS_DIRECTLY = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class NSNConfig:
    """How layers are cut."""

    method: str = "whitened"
    """`whitened` keeps each layer's output best on calibration data; `svd` keeps its weight best and needs no data."""
    align: int = 8
    """Layer ranks become multiples of this; hardware likes 8 or 16."""
    keep_dense: bool = True
    """Keep the original dense weights beside the factors, for a top rung that is exactly the original."""
    heads: bool = False
    """Cut the layers that choose a word or a class too. One that is tied to the embeddings gets factors of its own, and
    the embeddings stay as they are."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"unknown method {self.method!r}", f"choose one of {', '.join(METHODS)}")
        if isinstance(self.align, bool) or not isinstance(self.align, int) or self.align < 1:
            raise UsageError(f"the alignment is a whole number of 1 or more, not {self.align!r}")
        for name in ("keep_dense", "heads"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is True or False, not {getattr(self, name)!r}")


def default_filter(module: nn.Module, fqn: str) -> bool:
    """Every linear layer (`nn.Linear`, `Conv1D`) that is not in a head (`lm_head`, `classifier`, `pooler`, ...)."""
    return every_linear(module, fqn) and _HEADS.isdisjoint(fqn.split("."))


def every_linear(module: nn.Module, fqn: str) -> bool:
    """Every linear layer (`nn.Linear`, `Conv1D`), heads included."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def filter_of(config: NSNConfig) -> ModuleFilter:
    """Which layers a configuration means."""
    return every_linear if config.heads else default_filter


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' `Conv1D`: a linear layer whose weight is `[d_in, d_out]` (GPT-2)."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def dense_weight(module: nn.Module, fqn: str) -> Tensor:
    """The `[d_out, d_in]` weight of a layer that can be cut; a view, not a copy.

    Raises:
        UnsupportedModelError: the layer is of another type. Subclasses of `nn.Linear` (quantised, adapted,
            parametrised) compute something else than `x W^T + b`, so they are refused too.
    """
    if type(module) is nn.Linear and module.weight.is_floating_point():
        return module.weight.detach()
    if is_conv1d(module) and isinstance(module.weight, Tensor) and module.weight.is_floating_point():
        return module.weight.detach().T
    raise UnsupportedModelError(
        f"layer {fqn!r} is a {type(module).__module__}.{type(module).__name__}, which cannot be cut",
        f"{CUTTABLE} can be; leave the others out with a filter_fn",
    )


def nsnify_(
    model: nn.Module,
    config: NSNConfig | None = None,
    filter_fn: ModuleFilter | None = None,
    covariances: Mapping[str, Covariance] | None = None,
    progress: Progress = silent,
) -> RankLadder:
    """Cut every layer that the filter accepts into nested factors, in place, one layer at a time.

    At full rank the model computes what it did before, to rounding. A layer that stands at several places in the model
    stays shared. Everything that can be refused is refused before the first layer is touched.

    Args:
        model: holds `nn.Linear` or `Conv1D` layers in any floating dtype; factors get the dtype of their weight.
        config: how; None for the defaults.
        filter_fn: `(module, qualified name)`: which layers; None for `filter_of(config)`.
        covariances: by qualified name, from `collect_covariances`, or as they are needed, from `StreamedCovariances`;
            needed by `whitened`, ignored by `svd`.
        progress: hears of every layer.

    Returns:
        The model's ladder, every layer at the same share of its full rank, without rungs.

    Raises:
        UnsupportedModelError: nothing to cut, something that cannot be cut, or a model that is already nested.
        UsageError: `whitened` without covariances.
        NsnEdgeError: a weight or covariance that is not finite.
    """
    config = config or NSNConfig()
    layers = _layers_to_cut(model, filter_fn or filter_of(config))
    if config.method == "whitened":
        _check_covariances(layers, covariances)
    ladder = uniform_ladder([(name, *_sizes(module, name)) for name, module in layers.items()], config.align)
    for done, layer in enumerate(ladder.layers, start=1):
        module = layers.pop(layer.name)  # let go, so that its weight can be freed where it is not kept
        weight = dense_weight(module, layer.name)
        covariance = covariances[layer.name] if covariances and config.method == "whitened" else None
        if covariance is not None and covariance.tokens == 0:
            _LOG.warning("%s saw no calibration tokens: cut by plain SVD", layer.name)
        factors = _factorize(layer.name, weight, covariance)
        bias = module.bias.detach() if isinstance(module.bias, Tensor) else None
        kept = weight.contiguous() if config.keep_dense else None
        nested = NSNLinear.from_factors(factors.A, factors.B, bias, layer.curve, kept)
        replace_module_(model, module, nested.train(module.training))
        progress("factorize", done, len(ladder.layers))
    return ladder


def refactorize_(model: nn.Module, covariances: Mapping[str, Covariance] | None, progress: Progress = silent) -> None:
    """Cut every nested layer anew from its dense weight, in place: whitened by covariances, or by plain SVD.

    Raises:
        UnsupportedModelError: a layer's dense weight was not kept.
        NsnEdgeError: a weight or covariance that is not finite.
    """
    layers = nsn_layers(model)
    for done, (name, layer) in enumerate(layers.items(), start=1):
        if layer.weight is None:
            raise UnsupportedModelError(f"layer {name!r} has no dense weight to cut", "adapt the original model again")
        factors = _factorize(name, layer.weight, covariances[name] if covariances else None)
        layer.A.data, layer.B.data = factors.A, factors.B
        progress("factorize", done, len(layers))


def _layers_to_cut(model: nn.Module, filter_fn: ModuleFilter) -> dict[str, nn.Module]:
    if nsn_layers(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} is already nested", "adapt a fresh copy of the original model instead"
        )
    layers = {name: module for name, module in model.named_modules() if filter_fn(module, name)}
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no linear layers to cut", f"{CUTTABLE} can be; heads are left as they are"
        )
    if "" in layers:
        raise UnsupportedModelError(
            f"the model is itself a single {type(model).__name__}", "wrap it: nn.Sequential(layer)"
        )
    for name, module in model.named_modules():
        inside = [fqn for fqn in layers if fqn.startswith(f"{name}." if name else "")]
        if inside and isinstance(module, _READS_WEIGHTS_DIRECTLY):
            raise UnsupportedModelError(
                f"layer {inside[0]!r} cannot be cut: {type(module).__name__} reads its weight without calling it",
                "leave it out with a filter_fn, or use a model that calls its layers, such as those of transformers",
            )
    for name, module in layers.items():
        if not bool(torch.isfinite(dense_weight(module, name)).all()):
            raise NsnEdgeError(f"the weight of {name!r} holds NaN or infinity", "check the model's weights")
    return layers


def _check_covariances(layers: Mapping[str, nn.Module], covariances: Mapping[str, Covariance] | None) -> None:
    missing = [name for name in layers if name not in (covariances or {})]
    if missing:
        raise UsageError(
            f"the method whitened needs the input covariance of {missing[0]!r} "
            f"({len(missing)} of {len(layers)} layers lack theirs)",
            "collect_covariances(model, batches, filter_fn), or NSNConfig(method='svd')",
        )
    assert covariances is not None
    if isinstance(covariances, StreamedCovariances):
        return  # they come from this very model, and looking at them now would collect them twice
    for name, module in layers.items():
        d_in, features = _sizes(module, name)[0], covariances[name].total.shape[0]
        if features != d_in:
            raise UsageError(
                f"the input covariance of {name!r} is of {features} features, and the layer takes {d_in}",
                "calibrate this very model",
            )
        if not bool(torch.isfinite(covariances[name].total).all()):
            raise NsnEdgeError(
                f"the input covariance of {name!r} holds NaN or infinity", "calibrate in fp32, on other text"
            )


def _sizes(module: nn.Module, name: str) -> tuple[int, int, int]:
    d_out, d_in = dense_weight(module, name).shape
    return d_in, d_out, min(d_in, d_out)


def _factorize(name: str, weight: Tensor, covariance: Covariance | None) -> Factors:
    try:
        return factorize(weight, covariance)
    except NsnEdgeError as error:
        raise type(error)(f"layer {name!r}: {error.message}", error.hint) from error
    except RuntimeError as error:  # LAPACK did not converge, or memory ran out
        raise NsnEdgeError(f"layer {name!r} could not be factorized: {error}") from error
