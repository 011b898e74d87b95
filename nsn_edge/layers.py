"""The nested linear layer, and the rank of a model that holds some.

              d_in                        d_out
        +--------------+            +----------------+
    1   |  a_1         |        1   |  b_1           |
    2   |  a_2         |        2   |  b_2           |     rank r uses rows 1..r of both:
    .   |  ...         |        .   |  ...           |
    r   |  a_r         |        r   |  b_r           |     W_r = B[:r].T @ A[:r]      [d_out, d_in]
        |- - - - - - - |            | - - - - - - - -|     y   = (x @ A[:r].T) @ B[:r] + bias
    R   |  a_R    A    |        R   |  b_R      B    |
        +--------------+            +----------------+

Both factors are stored rank-major, so a rank is a contiguous prefix of the same bytes, on disk and in memory. `W_{r+1}`
is `W_r` plus one outer product: the column space of every rank lies inside that of the next. That is the Nested
Subspace Network of arXiv 2509.17874 (there `B` is `[d_out, R]`; here its transpose).

The rank of a model is scoped, never left behind:

    with at_rank(model, 96):
        model(**batch)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from nsn_edge.errors import UnsupportedModelError, UsageError
from nsn_edge.ladder import NestedLayer, RankCurve, RankLadder, check_rank


class NSNLinear(nn.Module):
    """A linear layer kept as two nested factors; runs at any rank `1..full_rank`, or as the dense original.

    Its tensors are uninitialised after construction: `from_factors` or a checkpoint fills them.

    Args:
        in_features: `d_in`.
        out_features: `d_out`.
        curve: the layer's rank as a function of the model's; its end is the number of rows of the factors.
        bias: whether there is a bias.
        keep_dense: whether the original dense weight is kept beside the factors, for the dense top rung.
        device: of all tensors.
        dtype: of all tensors.

    Raises:
        UsageError: the curve ends above `min(d_in, d_out)`.
    """

    A: nn.Parameter
    """`[full_rank, in_features]`."""
    B: nn.Parameter
    """`[full_rank, out_features]`."""
    bias: nn.Parameter | None
    """`[out_features]` or None."""
    weight: Tensor | None
    """`[out_features, in_features]`: the original dense weight, a buffer, or None where it was not kept."""
    curve: RankCurve
    """The layer's rank as a function of the model's."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        curve: RankCurve,
        *,
        bias: bool = True,
        keep_dense: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        NestedLayer("layer", in_features, out_features, curve)  # checks the sizes
        self.in_features = in_features
        self.out_features = out_features
        self.curve = curve
        rows = curve.full_rank
        self.A = nn.Parameter(torch.empty(rows, in_features, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(rows, out_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        weight = torch.empty(out_features, in_features, device=device, dtype=dtype) if keep_dense else None
        self.register_buffer("weight", weight)
        self._rank = rows
        self._dense = False

    @classmethod
    def from_factors(
        cls, A: Tensor, B: Tensor, bias: Tensor | None, curve: RankCurve, weight: Tensor | None = None
    ) -> NSNLinear:
        """A layer around existing tensors; they are used as they are, without a copy.

        Args:
            A: `[R, d_in]`.
            B: `[R, d_out]`.
            bias: `[d_out]` or None.
            curve: ends at `R`.
            weight: `[d_out, d_in]`, the original dense weight, or None.

        Raises:
            UsageError: the shapes or dtypes do not fit together.
        """
        rows, d_in, d_out = curve.full_rank, A.shape[-1], B.shape[-1]
        expected: list[tuple[str, Tensor | None, list[int]]] = [
            ("A", A, [rows, d_in]),
            ("B", B, [rows, d_out]),
            ("bias", bias, [d_out]),
            ("weight", weight, [d_out, d_in]),
        ]
        for name, tensor, shape in expected:
            if tensor is None:
                continue
            if list(tensor.shape) != shape:
                raise UsageError(f"{name} has shape {list(tensor.shape)}; the layer's rank curve needs {shape}")
            if tensor.dtype != A.dtype:
                raise UsageError(f"{name} has dtype {tensor.dtype}, and A has {A.dtype}; they must agree")
        # On the meta device no memory is taken for what is replaced at once.
        layer = cls(d_in, d_out, curve, bias=bias is not None, keep_dense=weight is not None, device="meta")
        layer.A = nn.Parameter(A.detach(), requires_grad=A.dtype.is_floating_point)
        layer.B = nn.Parameter(B.detach(), requires_grad=B.dtype.is_floating_point)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach(), requires_grad=bias.dtype.is_floating_point)
        if weight is not None:
            layer.weight = weight.detach()
        return layer

    @property
    def full_rank(self) -> int:
        """The number of rows of the factors, and the layer's largest rank."""
        return self.curve.full_rank

    @property
    def rank(self) -> int:
        """The layer's current rank, `1..full_rank`; setting another raises RankError."""
        return self._rank

    @rank.setter
    def rank(self, rank: int) -> None:
        check_rank(rank, self.full_rank)
        self._rank = int(rank)

    @property
    def dense(self) -> bool:
        """Whether the original dense weight is used in place of the factors; UsageError where it was not kept."""
        return self._dense

    @dense.setter
    def dense(self, dense: bool) -> None:
        if dense and self.weight is None:
            raise UsageError("this layer has no dense weight", "adapt the model with its dense weights kept")
        self._dense = bool(dense)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d_in]` to `[..., d_out]`, at the layer's current rank. Gradients reach the active prefix alone."""
        if self._dense:
            assert self.weight is not None
            return linear(x, self.weight, self.bias)
        hidden = linear(x, self.A[: self._rank])
        return linear(hidden, self.B[: self._rank].t(), self.bias)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        form = "dense" if self._dense else f"rank {self._rank} of {self.full_rank}"
        kept = "" if self.weight is None else ", dense weight kept"
        return f"{self.in_features} -> {self.out_features}, {form}, bias={self.bias is not None}{kept}"


def nsn_layers(model: nn.Module) -> dict[str, NSNLinear]:
    """The model's nested layers by qualified name, in module order; a shared layer once, under its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NSNLinear)}


def ladder_of(model: nn.Module) -> RankLadder:
    """The model's ladder, without rungs.

    Raises:
        UnsupportedModelError: the model has no nested layers.
    """
    layers = _some_layers(model)
    return RankLadder(
        tuple(NestedLayer(name, layer.in_features, layer.out_features, layer.curve) for name, layer in layers.items())
    )


@contextlib.contextmanager
def at_rank(model: nn.Module, rank: int) -> Iterator[None]:
    """Every nested layer at its rank for the model's `rank`; as before on leaving, whatever happens inside.

    Args:
        model: holds nested layers.
        rank: `1..R`, `R` being the ladder's `max_rank`.

    Raises:
        UnsupportedModelError: the model has no nested layers.
        RankError: `rank` is outside `1..R`.
    """
    layers = list(_some_layers(model).values())
    wanted = [layer.curve(rank) for layer in layers]  # refuses the rank before anything is changed
    with _restored(layers):
        for layer, layer_rank in zip(layers, wanted, strict=True):
            layer.rank, layer.dense = layer_rank, False
        yield


@contextlib.contextmanager
def at_dense(model: nn.Module) -> Iterator[None]:
    """Every nested layer as its dense original; as before on leaving, whatever happens inside.

    Raises:
        UnsupportedModelError: the model has no nested layers.
        UsageError: a layer's dense weight was not kept.
    """
    layers = _some_layers(model)
    if missing := [name for name, layer in layers.items() if layer.weight is None]:
        raise UsageError(
            f"the dense weight of {missing[0]!r} was not kept ({len(missing)} of {len(layers)} layers lack theirs)",
            "adapt the model with its dense weights kept",
        )
    with _restored(list(layers.values())):
        for layer in layers.values():
            layer.dense = True
        yield


def replace_module_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` everywhere in the model where `old` stands; a module shared by several places stays shared."""
    for owner in list(model.modules()):
        for name, child in list(owner._modules.items()):  # named_children() would name a shared child once
            if child is old:
                setattr(owner, name, new)


def _some_layers(model: nn.Module) -> dict[str, NSNLinear]:
    layers = nsn_layers(model)
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no nested layers", "adapt it first: nsnify_(model), or nsn-edge adapt MODEL"
        )
    return layers


@contextlib.contextmanager
def _restored(layers: list[NSNLinear]) -> Iterator[None]:
    before = [(layer.rank, layer.dense) for layer in layers]
    try:
        yield
    finally:
        for layer, (rank, dense) in zip(layers, before, strict=True):
            layer.rank, layer.dense = rank, dense
