"""Factorising: exact at full rank, optimal at every rank, and steady where the data is poor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nsn_edge.errors import NsnEdgeError, RankError, UsageError
from nsn_edge.factorize import RIDGE, Covariance, Factors, factorize


def covariance_of(x: Tensor) -> Covariance:
    return Covariance(x.double().T @ x.double(), x.shape[0])


def product(factors: Factors, rank: int | None = None) -> Tensor:
    return factors.B[:rank].T @ factors.A[:rank]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A weight `[d_out, d_in]` and activations `[tokens, d_in]` of uneven, correlated, possibly dead features."""
    d_in, d_out = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    tokens = draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    mixing = torch.randn(d_in, d_in, generator=generator, dtype=torch.float64)
    scales = 10.0 ** (4 * torch.rand(d_in, generator=generator, dtype=torch.float64) - 2)
    x = torch.randn(tokens, d_in, generator=generator, dtype=torch.float64) @ mixing * scales
    if draw(st.booleans()):
        x[:, draw(st.integers(0, d_in - 1))] = 0.0
    return weight, x


@given(problem=problems())
def test_full_rank_reproduces_the_weight_whatever_the_activations(problem: tuple[Tensor, Tensor]) -> None:
    weight, x = problem
    for covariance in (None, covariance_of(x)):
        torch.testing.assert_close(product(factorize(weight, covariance)), weight, atol=1e-9, rtol=1e-9)
        single = factorize(weight.float(), covariance)
        assert single.A.dtype == single.B.dtype == torch.float32
        assert float((product(single) - weight.float()).abs().max()) < 1e-4 * float(weight.abs().max())


@given(problem=problems())
def test_whitened_is_never_worse_than_plain_on_the_calibration_activations(problem: tuple[Tensor, Tensor]) -> None:
    """Holds with the ridge too: what the ridge trades away, plain SVD has at its best already."""
    weight, x = problem
    plain, whitened = factorize(weight), factorize(weight, covariance_of(x))
    scale = float((x @ weight.T).norm())
    for rank in range(1, min(weight.shape) + 1):
        errors = [float((x @ (weight - product(factors, rank)).T).norm()) for factors in (plain, whitened)]
        assert errors[1] <= errors[0] + 1e-9 * scale


@given(problem=problems())
def test_the_output_error_is_the_tail_of_the_spectrum(problem: tuple[Tensor, Tensor]) -> None:
    """Eckart-Young: no rank-r matrix does better, for the ridged second moment of the inputs."""
    weight, x = problem
    factors = factorize(weight, covariance_of(x))
    second_moment = x.T @ x / len(x)
    ridge = RIDGE * second_moment.diagonal().mean()
    ridged = second_moment + ridge * torch.eye(len(second_moment), dtype=torch.float64)
    total = float(factors.spectrum.square().sum())
    for rank in range(1, min(weight.shape) + 1):
        lost = weight - product(factors, rank)
        error = float(torch.einsum("oi,ij,oj->", lost, ridged, lost))
        assert error == pytest.approx(float(factors.spectrum[rank:].square().sum()), rel=1e-6, abs=1e-9 * total)


def test_whitened_wins_clearly_where_the_activations_are_uneven() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, generator=generator)
    x = torch.randn(500, 16, generator=generator) * torch.logspace(1, -2, 16)
    error = {
        name: float((x @ (weight - product(factorize(weight, covariance), 4)).T).norm())
        for name, covariance in {"plain": None, "whitened": covariance_of(x)}.items()
    }
    assert error["whitened"] < 0.25 * error["plain"]


@settings(max_examples=30)
@given(problem=problems(), data=st.data())
def test_fewer_ranks_are_a_prefix(problem: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    weight, x = problem
    rank = data.draw(st.integers(1, min(weight.shape)))
    whole, cut = factorize(weight, covariance_of(x)), factorize(weight, covariance_of(x), rank)
    assert torch.equal(cut.A, whole.A[:rank])
    assert torch.equal(cut.B, whole.B[:rank])
    assert cut.A.is_contiguous()
    assert cut.B.is_contiguous()
    assert len(cut.spectrum) == min(weight.shape)


def test_fewer_tokens_than_features_still_reproduce_the_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 40, generator=generator)
    factors = factorize(weight, covariance_of(torch.randn(3, 40, generator=generator)))
    assert factors.method == "whitened"
    torch.testing.assert_close(product(factors), weight, atol=2e-5, rtol=0)


def test_a_rank_deficient_weight_is_exact_from_its_rank_on() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 3, generator=generator) @ torch.randn(3, 12, generator=generator)
    x = torch.randn(50, 12, generator=generator)
    for factors in (factorize(weight), factorize(weight, covariance_of(x))):
        torch.testing.assert_close(product(factors, 3), weight, atol=1e-5, rtol=0)
        torch.testing.assert_close(product(factors), weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "nothing", [Covariance(torch.zeros(4, 4, dtype=torch.float64), tokens) for tokens in (0, 9)], ids=["none", "zeros"]
)
def test_a_covariance_that_says_nothing_gives_plain_svd_and_says_so(nothing: Covariance) -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    factors, plain = factorize(weight, nothing), factorize(weight)
    assert factors.method == plain.method == "svd"
    assert torch.equal(factors.A, plain.A)
    assert factorize(weight, Covariance(torch.eye(4, dtype=torch.float64), 1)).method == "whitened"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_their_dtype(dtype: torch.dtype) -> None:
    weight = torch.randn(12, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    factors = factorize(weight)
    assert factors.A.dtype == factors.B.dtype == dtype
    assert float((product(factors) - weight).abs().max()) < 12 * torch.finfo(dtype).eps


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(poison: float) -> None:
    weight = torch.eye(3)
    with pytest.raises(NsnEdgeError, match="the covariance holds NaN"):
        factorize(weight, Covariance(torch.full((3, 3), poison, dtype=torch.float64), 5))
    weight[1, 2] = poison
    with pytest.raises(NsnEdgeError, match="the weight holds NaN"):
        factorize(weight)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UsageError, match="floating-point matrix"):
        factorize(torch.zeros(3, 3, dtype=torch.int8))
    with pytest.raises(UsageError, match="floating-point matrix"):
        factorize(torch.zeros(3))
    with pytest.raises(UsageError, match="of 4 features, and the weight takes 3"):
        factorize(torch.eye(3), Covariance(torch.eye(4, dtype=torch.float64), 1))
    for rank in (0, 4):
        with pytest.raises(RankError):
            factorize(torch.eye(3), rank=rank)
    with pytest.raises(UsageError, match="square"):
        Covariance(torch.zeros(2, 3), 1)
    with pytest.raises(UsageError, match="-1 tokens"):
        Covariance(torch.zeros(2, 2), -1)
