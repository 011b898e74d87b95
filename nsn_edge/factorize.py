"""A dense weight as two nested factors: plain SVD, or SVD whitened by what the layer really sees.

Plain: `W = U S V^T`, cut after `r` terms, is the closest rank-r matrix to `W` (Eckart & Young 1936). But a layer's job
is its output. With `C = E[x x^T]` over calibration tokens, the mean squared output error of `W_r` is

    E |W x - W_r x|^2 = |(W - W_r) C^(1/2)|_F^2

so the closest rank-r matrix in that sense comes from the SVD of the whitened weight `W C^(1/2) = U S V^T`:

    B = U sqrt(S)    A = sqrt(S) V^T C^(-1/2)    E |W x - W_r x|^2 = S_{r+1}^2 + S_{r+2}^2 + ...

Every prefix is optimal, so the factors stay nested. The idea is that of ASVD (arXiv 2312.05821), SVD-LLM
(arXiv 2403.07378) and CorDA (arXiv 2406.05223); here `C^(1/2)` is the symmetric root by `eigh`, which, unlike SVD-LLM's
Cholesky factor, does not break down when `C` is nearly singular.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.ladder import check_rank

# Added to every eigenvalue of C, as a share of their mean, so that C can be inverted whatever the calibration set.
# Measured on MiniLM at 50 % of the linear FLOPs, Spearman against the dense model on held-out sentences of the
# calibration text's kind, and of another kind (STS-B):
#
#                         1e-6           0.01           0.1            1
#    2,800 tokens     0.823 / 0.517  0.824 / 0.517  0.827 / 0.540  0.774 / 0.617
#   16,300 tokens     0.843 / 0.524  0.843 / 0.526        -              -
#   29,700 tokens     0.847 / 0.527  0.846 / 0.529  0.842 / 0.553  0.782 / 0.602
#
# A larger ridge trades quality on text like the calibration's for quality on other text, and tends to plain SVD. Full
# rank reproduces the weights to 1e-6 of the largest at all of these.
RIDGE = 0.01


@dataclass(frozen=True)
class Covariance:
    """What a layer's inputs look like: their second moment, not centred, because a layer maps the mean too."""

    total: Tensor
    """float64 `[d_in, d_in]`: the sum of `x x^T` over tokens."""
    tokens: int
    """How many were summed."""

    def __post_init__(self) -> None:
        if self.total.dim() != 2 or self.total.shape[0] != self.total.shape[1]:
            raise UsageError(f"a covariance is a square matrix, not {list(self.total.shape)}")
        if self.tokens < 0:
            raise UsageError(f"a covariance cannot come from {self.tokens} tokens")


@dataclass(frozen=True)
class Factors:
    """A weight as two nested factors: `W_r = B[:r].T @ A[:r]`."""

    A: Tensor
    """`[rank, d_in]`, contiguous, in the weight's dtype."""
    B: Tensor
    """`[rank, d_out]`, contiguous, in the weight's dtype."""
    spectrum: Tensor
    """float64 `[min(d_in, d_out)]`, falling: all singular values of the (whitened) weight. The sum of the squares past
    `r` is the squared error of rank `r`: of the weight for `svd`, of one token's output on average for `whitened`
    (under the ridged covariance)."""
    method: str
    """`whitened` or `svd`: what was done. `svd` also where a covariance was given that says nothing (no tokens, or
    nothing but zeros)."""


def factorize(weight: Tensor, covariance: Covariance | None = None, rank: int | None = None) -> Factors:
    """Cut a dense weight into nested factors, best first. Computed in float64 on the weight's device.

    Args:
        weight: `[d_out, d_in]`, any floating dtype.
        covariance: of the layer's inputs; None for plain SVD.
        rank: how many directions to keep; None for all, `min(d_in, d_out)`, which reproduce the weight.

    Raises:
        UsageError: the weight is not a floating-point matrix, or the covariance belongs to another size.
        RankError: `rank` is outside `1..min(d_in, d_out)`.
        NsnEdgeError: the weight or the covariance holds NaN or infinity.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise UsageError(f"only a floating-point matrix can be cut, not {weight.dtype} {list(weight.shape)}")
    d_out, d_in = weight.shape
    kept = min(d_in, d_out) if rank is None else rank
    check_rank(kept, min(d_in, d_out))
    _check_finite("the weight", weight)
    exact = weight.detach().double()
    roots = None if covariance is None else _roots(covariance, d_in, exact.device)
    if roots is None:
        U, S, Vt = torch.linalg.svd(exact, full_matrices=False)
    else:
        root, inverse_root = roots
        U, S, Vt = torch.linalg.svd(exact @ root, full_matrices=False)
        Vt = Vt @ inverse_root
    scale = S[:kept].sqrt().unsqueeze(1)
    return Factors(
        A=(scale * Vt[:kept]).to(weight.dtype).contiguous(),
        B=(scale * U[:, :kept].T).to(weight.dtype).contiguous(),
        spectrum=S,
        method="svd" if roots is None else "whitened",
    )


def _roots(covariance: Covariance, d_in: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """`C^(1/2)` and `C^(-1/2)` of the ridged mean second moment; None where it says nothing about the inputs."""
    if covariance.total.shape[0] != d_in:
        raise UsageError(f"the covariance is of {covariance.total.shape[0]} features, and the weight takes {d_in}")
    if covariance.tokens == 0:
        return None
    _check_finite("the covariance", covariance.total)
    mean = covariance.total.to(device=device, dtype=torch.float64) / covariance.tokens
    mean_eigenvalue = float(mean.diagonal().mean())
    if mean_eigenvalue <= 0.0:
        return None
    values, vectors = torch.linalg.eigh((mean + mean.T) / 2)
    # Rounding leaves the null space at tiny values of either sign; the ridge lifts it to something invertible.
    root = (values.clamp_min(0.0) + RIDGE * mean_eigenvalue).sqrt()
    return vectors * root @ vectors.T, vectors / root @ vectors.T


def _check_finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise NsnEdgeError(
            f"{name} holds NaN or infinity",
            "check the model's weights and, where it was calibrated in half precision, calibrate it in fp32",
        )
