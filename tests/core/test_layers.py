"""The nested layer: what every rank computes, and that ranks never outlive their scope."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import RankError, UnsupportedModelError, UsageError
from nsn_edge.ladder import RankCurve
from nsn_edge.layers import NSNLinear, at_dense, at_rank, ladder_of, nsn_layers, replace_module_


def make_layer(
    d_in: int = 7,
    d_out: int = 5,
    full: int = 4,
    bias: bool = True,
    dense: bool = False,
    dtype: torch.dtype = torch.float64,
) -> NSNLinear:
    generator = torch.Generator().manual_seed(d_in * 100 + d_out * 10 + full)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return NSNLinear.from_factors(
        random(full, d_in),
        random(full, d_out),
        random(d_out) if bias else None,
        RankCurve(((1, 1), (full, full)) if full > 1 else ((1, 1),)),
        random(d_out, d_in) if dense else None,
    )


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda io: st.tuples(st.just(io[0]), st.just(io[1]), st.integers(1, min(io)))
)


@given(sizes=sizes, bias=st.booleans(), leading=st.lists(st.integers(1, 3), max_size=3), data=st.data())
def test_every_rank_is_a_dense_layer_with_the_product(
    sizes: tuple[int, int, int], bias: bool, leading: list[int], data: st.DataObject
) -> None:
    layer = make_layer(*sizes, bias=bias)
    layer.rank = rank = data.draw(st.integers(1, sizes[2]))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*leading, sizes[0], generator=generator, dtype=torch.float64).requires_grad_()
    seed = torch.randn(*leading, sizes[1], generator=generator, dtype=torch.float64)
    factor_a, factor_b = layer.A.detach().requires_grad_(), layer.B.detach().requires_grad_()
    reference_bias = None if layer.bias is None else layer.bias.detach().requires_grad_()
    inputs = [layer.A, layer.B, x, *([layer.bias] if layer.bias is not None else [])]
    references = [factor_a, factor_b, x, *([reference_bias] if reference_bias is not None else [])]

    y = layer(x)
    expected = nn.functional.linear(x, factor_b[:rank].T @ factor_a[:rank], reference_bias)

    torch.testing.assert_close(y, expected)
    gradients = torch.autograd.grad(y, inputs, seed)
    expected_gradients = torch.autograd.grad(expected, references, seed)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_gradients_reach_the_active_prefix_alone() -> None:
    layer = make_layer()
    layer.rank = 2
    layer(torch.ones(3, 7, dtype=torch.float64)).sum().backward()
    for factor in (layer.A, layer.B):
        assert factor.grad is not None
        assert (factor.grad[:2] != 0).all()
        assert (factor.grad[2:] == 0).all()


@given(sizes=sizes)
def test_column_spaces_are_nested(sizes: tuple[int, int, int]) -> None:
    """Projecting `W_r` onto the column space of `W_{r+1}` leaves it as it is."""
    layer = make_layer(*sizes)
    weights = [layer.B[:r].T @ layer.A[:r] for r in range(1, sizes[2] + 1)]
    for r, (lower, higher) in enumerate(itertools.pairwise(weights), start=1):
        basis = torch.linalg.svd(higher.detach()).U[:, : r + 1]
        torch.testing.assert_close(basis @ (basis.T @ lower), lower, atol=1e-8, rtol=1e-8)
        assert torch.linalg.matrix_rank(lower, rtol=1e-9) <= r


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_runs_and_stays_close(dtype: torch.dtype) -> None:
    exact = make_layer(d_in=64, d_out=48, full=16)
    layer = copy.deepcopy(exact).to(dtype)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        y, expected = layer(x.to(dtype)), exact(x)
    assert y.dtype == dtype
    assert float((y.double() - expected).abs().max() / expected.abs().max()) < 4 * torch.finfo(dtype).eps


def test_dense_uses_the_original_weight() -> None:
    layer = make_layer(dense=True)
    x = torch.randn(2, 7, dtype=torch.float64)
    assert layer.weight is not None
    layer.dense = True
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    layer.dense = False
    assert not torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("rank", [0, 5, -1, 2.0, True])
def test_a_layer_refuses_a_rank_it_does_not_have(rank: int) -> None:
    layer = make_layer()
    with pytest.raises(RankError):
        layer.rank = rank
    assert layer.rank == 4


def test_a_layer_without_dense_weight_refuses_to_be_dense() -> None:
    with pytest.raises(UsageError, match="no dense weight"):
        make_layer().dense = True


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("A", torch.zeros(3, 7)),
        ("B", torch.zeros(3, 5)),
        ("bias", torch.zeros(6)),
        ("weight", torch.zeros(7, 5)),
        ("bias", torch.zeros(5, dtype=torch.float64)),
    ],
)
def test_factors_that_do_not_fit_are_refused(name: str, tensor: Tensor) -> None:
    good = {"A": torch.zeros(4, 7), "B": torch.zeros(4, 5), "bias": torch.zeros(5), "weight": torch.zeros(5, 7)}
    curve = RankCurve(((1, 1), (4, 4)))
    NSNLinear.from_factors(**good, curve=curve)
    with pytest.raises(UsageError, match=f"{name} has"):
        NSNLinear.from_factors(**{**good, name: tensor}, curve=curve)


def test_a_curve_above_the_smaller_side_is_refused() -> None:
    with pytest.raises(UsageError, match="rank at most 5"):
        NSNLinear(7, 5, RankCurve(((1, 1), (6, 6))))


def test_ranks_are_restored_in_order_even_after_an_exception() -> None:
    model = nn.Sequential(make_layer(7, 7, 6), make_layer(7, 5, 4))
    for layer, curve in zip(model, [((1, 1), (6, 6)), ((1, 1), (6, 4))], strict=True):
        assert isinstance(layer, NSNLinear)
        layer.curve = RankCurve(curve)
    model[0].rank = 5

    def ranks() -> list[int]:
        return [layer.rank for layer in nsn_layers(model).values()]

    def fail_inside() -> None:
        with at_rank(model, 3):
            assert ranks() == [3, 2]
            with at_rank(model, 6):
                assert ranks() == [6, 4]
            assert ranks() == [3, 2]
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert ranks() == [5, 4]


def test_dense_and_ranks_nest(tied: nn.Module) -> None:
    nsnify_(tied, NSNConfig(method="svd"))
    layers = list(nsn_layers(tied).values())
    with at_dense(tied):
        assert all(layer.dense for layer in layers)
        with at_rank(tied, 3):
            assert not any(layer.dense for layer in layers)
        assert all(layer.dense for layer in layers)
    assert not any(layer.dense for layer in layers)


@pytest.mark.parametrize("rank", [0, 7, 1.5])
def test_a_rank_outside_the_ladder_changes_nothing(rank: int) -> None:
    model = nn.Sequential(make_layer(7, 7, 6))
    with pytest.raises(RankError), at_rank(model, rank):
        pytest.fail("the block must not run")
    assert model[0].rank == 6


def test_a_model_without_nested_layers_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert nsn_layers(model) == {}
    for use in (lambda: at_rank(model, 1).__enter__(), lambda: at_dense(model).__enter__(), lambda: ladder_of(model)):
        with pytest.raises(UnsupportedModelError, match="no nested layers"):
            use()


def test_dense_needs_every_dense_weight() -> None:
    model = nn.Sequential(make_layer(7, 7, 6, dense=True), make_layer(7, 7, 6))
    with pytest.raises(UsageError, match=r"'1' was not kept \(1 of 2"), at_dense(model):
        pytest.fail("the block must not run")
    assert not model[0].dense


def test_a_shared_layer_is_one_layer_of_the_ladder(tied: nn.Module) -> None:
    nsnify_(tied, NSNConfig(method="svd"))
    assert list(nsn_layers(tied)) == ["first", "last"]
    assert tied.first is tied.inner["second"]
    ladder = ladder_of(tied)
    assert [layer.name for layer in ladder.layers] == ["first", "last"]
    assert ladder.rungs == ()
    with at_rank(tied, 4):
        assert tied.inner["second"].rank == tied.first.rank < tied.first.full_rank


def test_replacing_reaches_every_place_within_one_owner() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    new = nn.Linear(2, 2)
    replace_module_(model, shared, new)
    assert model[0] is new
    assert model[2] is new


@settings(max_examples=20)
@given(sizes=sizes)
def test_a_copy_and_a_state_dict_carry_everything(sizes: tuple[int, int, int]) -> None:
    layer = make_layer(*sizes, dense=True)
    other = NSNLinear(sizes[0], sizes[1], layer.curve, keep_dense=True, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, sizes[0], dtype=torch.float64)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_a_layer_prints_what_it_is() -> None:
    layer = make_layer(dense=True)
    layer.rank = 2
    assert repr(layer) == "NSNLinear(7 -> 5, rank 2 of 4, bias=True, dense weight kept)"
