"""The ladder: curves that never fall, costs that never rise above dense, and the best rank within a budget."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsn_edge.errors import NsnEdgeError, RankError, UsageError
from nsn_edge.ladder import NestedLayer, RankCurve, RankLadder, Rung, check_rank, uniform_ladder


@st.composite
def curves(draw: st.DrawFn, max_rank: int | None = None, largest: int = 80) -> RankCurve:
    top = max_rank or draw(st.integers(1, 60))
    inner = draw(st.sets(st.integers(2, top - 1), max_size=4)) if top > 2 else set()
    ranks = sorted({1, top} | inner)
    layer_ranks = sorted(draw(st.lists(st.integers(1, largest), min_size=len(ranks), max_size=len(ranks))))
    return RankCurve(tuple(zip(ranks, layer_ranks, strict=True)), draw(st.integers(1, 16)))


@st.composite
def ladders(draw: st.DrawFn) -> RankLadder:
    max_rank = draw(st.integers(1, 40))
    layers = []
    for i in range(draw(st.integers(1, 4))):
        d_in, d_out = draw(st.integers(1, 70)), draw(st.integers(1, 70))
        layers.append(NestedLayer(f"layer.{i}", d_in, d_out, draw(curves(max_rank, min(d_in, d_out)))))
    ranks = draw(st.sets(st.integers(1, max_rank)))
    return RankLadder(tuple(layers)).with_rungs(ranks, dense_top=draw(st.booleans()))


@given(curve=curves())
def test_a_curve_rises_within_its_bounds_and_is_aligned(curve: RankCurve) -> None:
    values = [curve(rank) for rank in range(1, curve.max_rank + 1)]
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert values[0] >= 1
    assert values[-1] == curve.full_rank
    for value in values:
        assert value == curve.full_rank or value < curve.align or value % curve.align == 0
    assert curve.table().tolist() == values
    assert curve.table().dtype == np.int64


@given(curve=curves())
def test_a_curve_passes_at_or_just_under_its_knots(curve: RankCurve) -> None:
    for rank, layer_rank in curve.knots:
        assert layer_rank - curve.align < curve(rank) <= layer_rank


@given(curve=curves())
def test_curves_survive_json(curve: RankCurve) -> None:
    assert RankCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve


@given(curve=curves(), excess=st.integers(1, 9))
def test_a_curve_refuses_ranks_outside(curve: RankCurve, excess: int) -> None:
    for rank in (1 - excess, curve.max_rank + excess):
        with pytest.raises(RankError, match=f"rank {rank} is outside 1..{curve.max_rank}"):
            curve(rank)


@pytest.mark.parametrize("rank", [1.0, "1", None, True])
def test_a_rank_is_a_whole_number(rank: Any) -> None:
    with pytest.raises(RankError, match="whole number"):
        check_rank(rank, 9)
    check_rank(np.int64(3), 9)


@pytest.mark.parametrize(
    ("knots", "align"),
    [
        ((), 1),
        (((2, 1), (4, 4)), 1),
        (((1, 0), (4, 4)), 1),
        (((1, 1), (1, 4)), 1),
        (((1, 1), (4, 4), (3, 5)), 1),
        (((1, 3), (4, 2)), 1),
        (((1, 1), (4, 4)), 0),
    ],
)
def test_senseless_curves_are_refused(knots: Any, align: int) -> None:
    with pytest.raises(UsageError):
        RankCurve(knots, align)


@given(d_in=st.integers(1, 500), d_out=st.integers(1, 500))
def test_break_even_is_the_first_rank_that_does_not_save(d_in: int, d_out: int) -> None:
    full = min(d_in, d_out)
    layer = NestedLayer("x", d_in, d_out, RankCurve(((1, 1), (full, full)) if full > 1 else ((1, 1),)))
    even = layer.break_even_rank
    assert even * (d_in + d_out) >= layer.dense_macs
    assert (even - 1) * (d_in + d_out) < layer.dense_macs
    assert 1 <= even <= full
    assert layer.macs(even) == layer.dense_macs
    assert layer.is_merged(even)
    if even > 1:
        assert layer.macs(even - 1) == (even - 1) * (d_in + d_out) < layer.dense_macs


@pytest.mark.parametrize(("d_in", "d_out", "full"), [(0, 3, 1), (3, 0, 1), (3, 4, 4)])
def test_senseless_layers_are_refused(d_in: int, d_out: int, full: int) -> None:
    with pytest.raises(UsageError, match="'x'"):
        NestedLayer("x", d_in, d_out, RankCurve(((1, 1), (full, full)) if full > 1 else ((1, 1),)))


@given(ladder=ladders())
def test_costs_never_fall_with_the_rank_nor_exceed_dense(ladder: RankLadder) -> None:
    costs = [ladder.macs(rank) for rank in range(1, ladder.max_rank + 1)]
    assert all(a <= b for a, b in itertools.pairwise(costs))
    assert all(0 < cost <= ladder.dense_macs for cost in costs)
    assert ladder.flops_fraction(ladder.max_rank) == costs[-1] / ladder.dense_macs


@given(ladder=ladders(), fraction=st.floats(0.001, 1.0))
def test_the_rank_for_a_fraction_is_the_best_within_the_budget(ladder: RankLadder, fraction: float) -> None:
    within = [rank for rank in range(1, ladder.max_rank + 1) if ladder.flops_fraction(rank) <= fraction * (1 + 1e-9)]
    if not within:
        with pytest.raises(RankError, match="below rank 1"):
            ladder.rank_for_fraction(fraction)
        return
    rank = ladder.rank_for_fraction(fraction)
    assert rank in within
    assert ladder.layer_ranks(rank) == ladder.layer_ranks(within[-1])
    assert rank == 1 or ladder.layer_ranks(rank - 1) != ladder.layer_ranks(rank)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
def test_fractions_outside_are_refused(fraction: float) -> None:
    with pytest.raises(RankError, match=r"\(0, 1\]"):
        uniform_ladder([("x", 8, 8, 8)]).rank_for_fraction(fraction)


@given(ladder=ladders())
def test_ladders_survive_json(ladder: RankLadder) -> None:
    measured = ladder.with_quality({rank: {"spearman": rank / 7} for rank in ladder.ranks})
    data = json.loads(json.dumps(measured.to_json()))
    assert RankLadder.from_json(data) == measured
    for rung in data["rungs"]:
        assert rung["layer_ranks"] == ladder.layer_ranks(rung["rank"])
        assert rung["macs"] == ladder.macs(rung["rank"])


@settings(max_examples=50)
@given(ladder=ladders(), fraction=st.floats(0.0, 1.0))
def test_rung_within_is_the_best_rung_or_the_lowest(ladder: RankLadder, fraction: float) -> None:
    if not ladder.rungs:
        with pytest.raises(RankError, match="no rungs"):
            ladder.rung_within(fraction)
        return
    within = [rung for rung in ladder.rungs if ladder.flops_fraction(rung.rank) <= fraction * (1 + 1e-9)]
    assert ladder.rung_within(fraction) == (max(within, key=lambda rung: rung.rank) if within else ladder.rungs[0])


def test_rungs_are_sorted_once_and_the_dense_one_is_on_top() -> None:
    ladder = uniform_ladder([("x", 8, 8, 8)])
    assert ladder.with_rungs([5, 2, 5], dense_top=False).rungs == (Rung(2), Rung(5))
    assert ladder.with_rungs([8, 2], dense_top=True).rungs == (Rung(2), Rung(8, dense=True))
    assert ladder.with_rungs([8, 2], dense_top=True).rung(8).dense
    with pytest.raises(RankError, match=r"outside 1\.\.8"):
        ladder.with_rungs([9], dense_top=False)
    with pytest.raises(RankError, match=r"no rung at rank 4.*2, 5"):
        ladder.with_rungs([2, 5], dense_top=False).rung(4)
    with pytest.raises(RankError, match="no rung at rank 3"):
        ladder.with_rungs([2], dense_top=False).with_quality({3: {"spearman": 1.0}})


def test_quality_is_merged_not_replaced() -> None:
    ladder = uniform_ladder([("x", 8, 8, 8)]).with_rungs([2, 5], dense_top=False)
    ladder = ladder.with_quality({2: {"spearman": 0.5, "mse": 2.0}}).with_quality({2: {"mse": 1.0}})
    assert ladder.rung(2).quality == {"spearman": 0.5, "mse": 1.0}
    assert ladder.rung(5).quality == {}


def test_senseless_ladders_are_refused() -> None:
    layer, other = (NestedLayer(name, 8, 8, RankCurve(((1, 1), (8, 8)))) for name in "xy")
    shorter = NestedLayer("z", 8, 8, RankCurve(((1, 1), (4, 4))))
    with pytest.raises(UsageError, match="at least one"):
        RankLadder(())
    with pytest.raises(UsageError, match="same name"):
        RankLadder((layer, layer))
    with pytest.raises(UsageError, match="one range of ranks"):
        RankLadder((layer, shorter))
    with pytest.raises(RankError, match="must rise"):
        RankLadder((layer, other), (Rung(3), Rung(3)))
    with pytest.raises(RankError, match="dense rung is the top rung"):
        RankLadder((layer, other), (Rung(3, dense=True),))


def test_the_uniform_ladder_takes_the_same_share_of_every_layer() -> None:
    ladder = uniform_ladder([("wide", 64, 256, 64), ("narrow", 16, 64, 16)], align=8)
    assert ladder.max_rank == 64
    assert ladder.layer_ranks(64) == {"wide": 64, "narrow": 16}
    assert ladder.layer_ranks(1) == {"wide": 1, "narrow": 1}
    for rank in range(1, 65):
        ranks = ladder.layer_ranks(rank)
        assert rank - 8 < ranks["wide"] <= rank
        assert abs(ranks["narrow"] - rank / 4) < 8.75
    with pytest.raises(UsageError, match="at least one"):
        uniform_ladder([])


def _without(data: dict[str, Any], *path: Any) -> dict[str, Any]:
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return data


@pytest.mark.parametrize(
    "path", [("layers",), ("rungs",), ("layers", 0, "curve"), ("layers", 0, "d_in"), ("rungs", 0, "quality")]
)
def test_unreadable_json_is_our_error(path: tuple[Any, ...]) -> None:
    data = uniform_ladder([("x", 8, 8, 8)]).with_rungs([3], dense_top=True).to_json()
    with pytest.raises(NsnEdgeError, match="not readable"):
        RankLadder.from_json(_without(data, *path))
