"""Rank curves from damages: nested, within the budget, never below the floor, and better than uniform."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.allocation import FLOOR, LayerDamage, allocated_ladder
from nsn_edge.errors import UsageError
from nsn_edge.ladder import RankLadder, uniform_ladder


@st.composite
def layers(draw: st.DrawFn) -> list[LayerDamage]:
    found = []
    for at in range(draw(st.integers(1, 4))):
        d_in, d_out = draw(st.integers(1, 40)), draw(st.integers(1, 40))
        full = min(d_in, d_out)
        falls = draw(st.lists(st.floats(0, 1e3), min_size=full, max_size=full))
        # Damages of any shape that falls to 0, convex or not.
        found.append(LayerDamage(f"layer{at}", d_in, d_out, np.cumsum([0.0, *falls[1:]])[::-1].copy()))
    return found


def uniform_of(given: list[LayerDamage], align: int = 1) -> RankLadder:
    return uniform_ladder([(layer.name, layer.d_in, layer.d_out, layer.damage.size) for layer in given], align)


def damage(given: list[LayerDamage], ladder: RankLadder, rank: int) -> float:
    ranks = ladder.layer_ranks(rank)
    return sum(float(layer.damage[ranks[layer.name] - 1]) for layer in given)


@given(layers(), st.sampled_from([1, 4, 8]))
def test_curves_rise_stay_above_the_floor_and_end_whole(given, align):
    ladder, uniform = allocated_ladder(given, align), uniform_of(given)
    top = uniform.max_rank
    assert ladder.max_rank == top
    for layer, plain in zip(ladder.layers, uniform.layers, strict=True):
        ranks = [layer.curve(rank) for rank in range(1, top + 1)]
        assert all(a <= b for a, b in itertools.pairwise(ranks))
        assert ranks[-1] == plain.curve.full_rank
        for rank, got in enumerate(ranks, start=1):
            # Below the first knot, and by rounding down to the alignment between knots, less than `align` is missing.
            assert got > FLOOR * plain.curve(rank) - align
    assert RankLadder.from_json(ladder.to_json()) == ladder


@given(layers())
def test_a_rank_costs_no_more_than_uniform_unless_the_floors_do(given):
    ladder, uniform = allocated_ladder(given, 1), uniform_of(given)
    for rank in range(1, uniform.max_rank):
        floors = sum(layer.macs(max(1, int(np.ceil(FLOOR * layer.curve(rank))))) for layer in uniform.layers)
        # A line between two knots may pass through ranks that cost more than either end's share: one rank per layer.
        slack = sum(layer.d_in + layer.d_out for layer in uniform.layers)
        assert ladder.macs(rank) <= max(uniform.macs(rank), floors) + slack


def test_the_budget_goes_where_it_saves_damage() -> None:
    full = 64
    steep, flat = np.exp(-np.arange(1, full + 1) / 4.0), np.full(full, 1e-3)
    flat[-1] = 0.0
    given = [LayerDamage("steep", 64, 64, 100 * steep), LayerDamage("flat", 64, 64, flat)]
    ladder, uniform = allocated_ladder(given), uniform_of(given, 8)
    assert ladder.layer_ranks(16) == {"steep": 24, "flat": 8}
    assert ladder.macs(16) == uniform.macs(16)
    assert damage(given, ladder, 16) < 0.2 * damage(given, uniform, 16)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=5), st.integers(2, 63))
def test_convex_damages_of_equal_layers_are_never_worse_than_uniform(weights, rank):
    spectrum = np.exp(-np.arange(64) / 9.0)
    left_out = np.concatenate([np.cumsum(spectrum[::-1])[::-1][1:], [0.0]])
    given = [LayerDamage(f"l{at}", 64, 64, weight * left_out) for at, weight in enumerate(weights)]
    ladder, uniform = allocated_ladder(given, 1), uniform_of(given)
    step = 64 * 2  # what is left of the budget when the next step does not fit
    short = step / uniform.macs(rank)
    assert damage(given, ladder, rank) <= damage(given, uniform, max(1, int(rank * (1 - short)))) + 1e-9


def test_past_break_even_a_layer_is_whole() -> None:
    damages = np.concatenate([np.linspace(10, 5, 40), np.linspace(4.9, 0, 24)])
    ladder = allocated_ladder([LayerDamage("a", 64, 64, damages), LayerDamage("b", 64, 64, damages / 1000)], 8)
    taken = {ladder.layer_ranks(rank)["a"] for rank in range(8, 64, 8)}
    assert not [rank for rank in taken if 32 < rank < 64], taken
    assert 64 in taken


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one nested layer"):
        allocated_ladder([])
    with pytest.raises(UsageError, match="never rise with rank"):
        LayerDamage("l", 4, 4, np.array([1.0, 2.0, 0.0, 0.0]))
    with pytest.raises(UsageError, match="must be finite"):
        LayerDamage("l", 4, 4, np.array([np.nan, 2.0, 0.0, 0.0]))
    with pytest.raises(UsageError, match=r"shape \(5,\) for 4 -> 4"):
        LayerDamage("l", 4, 4, np.zeros(5))
