"""Which ranks a step takes: the span, the plans, the curriculum, and that the step alone decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.errors import RankError, UsageError
from nsn_edge.ladder import uniform_ladder
from nsn_edge.training.config import TrainConfig
from nsn_edge.training.ranks import RankSampler, rank_pool, useful_ranks

LADDER = uniform_ladder([("a", 64, 64, 64), ("b", 64, 256, 64), ("c", 256, 64, 64)])


def test_the_useful_ranks_begin_at_a_tenth_and_end_where_all_is_dense() -> None:
    low, high = useful_ranks(LADDER)
    assert LADDER.flops_fraction(low) <= 0.1
    assert LADDER.flops_fraction(low + 8) > 0.1
    assert LADDER.macs(high) == LADDER.dense_macs
    assert LADDER.macs(high - 1) < LADDER.dense_macs
    assert useful_ranks(LADDER, 3, 64) == (3, 64)


@pytest.mark.parametrize(("lowest", "highest"), [(0, None), (None, 65), (40, 30)])
def test_ranks_outside_are_refused(lowest: int | None, highest: int | None) -> None:
    with pytest.raises(RankError):
        useful_ranks(LADDER, lowest, highest)


def test_the_pools() -> None:
    low, high = useful_ranks(LADDER)
    assert rank_pool("continuous", LADDER) == tuple(range(low, high + 1))
    assert rank_pool("aligned", LADDER, 5, 30) == (8, 16, 24)
    assert rank_pool("ladder", LADDER, rungs=[32, 8, 32]) == (8, 32)
    assert rank_pool("ladder", LADDER.with_rungs([16, 24], dense_top=False)) == (16, 24)
    with pytest.raises(UsageError, match=r"no multiple of 8 lies in the ranks 9\.\.15"):
        rank_pool("aligned", LADDER, 9, 15)
    with pytest.raises(UsageError, match="no rungs to train"):
        rank_pool("ladder", LADDER)
    with pytest.raises(RankError, match="rank 65 is outside"):
        rank_pool("ladder", LADDER, rungs=[65])
    with pytest.raises(UsageError, match="unknown kind of ranks 'odd'"):
        rank_pool("odd", LADDER)


@given(
    plan=st.sampled_from(["random", "anchor", "sandwich"]),
    draws=st.integers(1, 4),
    widen=st.integers(0, 50),
    seed=st.integers(0, 5),
    step=st.integers(0, 100),
)
def test_every_step_keeps_to_its_plan(plan: str, draws: int, widen: int, seed: int, step: int) -> None:
    sampler = RankSampler(tuple(range(5, 41)), 64, plan, draws, widen, seed)
    ranks = sampler.ranks_at(step)
    assert len(ranks) == sampler.count
    assert ranks == RankSampler(tuple(range(5, 41)), 64, plan, draws, widen, seed).ranks_at(step)
    drawn = ranks if plan == "random" else ranks[1 : 1 + draws]
    assert set(drawn) <= set(sampler.open_at(step))
    assert list(drawn) == sorted(drawn, reverse=True)
    if plan != "random":
        assert ranks[0] == 64
    if plan == "sandwich":
        assert ranks[-1] == sampler.open_at(step)[0]


def test_the_curriculum_widens_downwards() -> None:
    sampler = RankSampler(tuple(range(1, 11)), 10, widen_steps=5)
    assert [sampler.open_at(step)[0] for step in range(7)] == [9, 7, 5, 3, 1, 1, 1]
    assert all(sampler.open_at(step)[-1] == 10 for step in range(7))


def test_what_was_trained_is_the_union_and_seeds_differ() -> None:
    sampler = RankSampler(tuple(range(1, 30)), 64, "anchor", 1)
    assert sampler.trained(5) == tuple(sorted({rank for step in range(5) for rank in sampler.ranks_at(step)}))
    assert sampler.trained(400) == (*range(1, 30), 64)
    other = RankSampler(tuple(range(1, 30)), 64, "anchor", 1, seed=1)
    assert [sampler.ranks_at(step) for step in range(9)] != [other.ranks_at(step) for step in range(9)]


def test_a_lean_draws_small_ranks_as_often_as_it_says() -> None:
    sampler = RankSampler(tuple(range(1, 65)), 64, draws=1000, lean=1.0)
    counts = np.bincount(sampler.ranks_at(0), minlength=65)[1:]
    expected = 1000 / np.arange(1, 65) / (1 / np.arange(1, 65)).sum()
    for low, high in ((1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64)):  # octaves
        assert counts[low - 1 : high - 1].sum() == pytest.approx(expected[low - 1 : high - 1].sum(), abs=45)
    even = np.bincount(RankSampler(tuple(range(1, 65)), 64, draws=1000).ranks_at(0), minlength=65)[1:]
    assert even[:32].sum() == pytest.approx(500, abs=60)


def test_samplers_that_make_no_sense() -> None:
    for problem in (
        {"plan": "odd"},
        {"draws": 0},
        {"widen_steps": -1},
        {"pool": ()},
        {"pool": (3, 2)},
        {"top": 4},
        {"lean": -1.0},
    ):
        with pytest.raises(UsageError):
            RankSampler(**{"pool": (1, 5), "top": 8, **problem})


def test_the_papers_recipe_and_settings_on_top() -> None:
    config = TrainConfig.of_recipe("paper", steps=100, draws=None)
    assert (config.objective, config.weights, config.plan, config.draws) == ("labels", "uncertainty", "anchor", 1)
    sampler = config.sampler(LADDER, 100)
    assert sampler.count == 2
    assert sampler.widen_steps == 50
    assert TrainConfig.of_recipe("paper", weights="equal").weights == "equal"
    assert TrainConfig.of_recipe() == TrainConfig()
    with pytest.raises(UsageError, match="unknown recipe"):
        TrainConfig.of_recipe("secret")


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"objective": "luck"}, "unknown objective 'luck'"),
        ({"batch_size": 0}, "batch_size is 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate is above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is above 0"),
        ({"steps": 0}, "steps is 1 or more"),
        ({"distill_weight": 1.0}, "distill_weight lies between"),
        ({"widen": 1.5}, "widen is a share"),
        ({"batch_size": 10, "accumulate": 4}, "does not divide into 4"),
        ({"rungs": (8,)}, "rungs are named"),
        ({"max_length": 1}, "max_length"),
        ({"seed": -1}, "seed"),
        ({"dense_epochs": -1.0}, "dense_epochs"),
    ],
)
def test_settings_that_make_no_sense(setting: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        TrainConfig(**setting)  # type: ignore[arg-type]


def test_the_differences_between_two_runs_are_named() -> None:
    config = TrainConfig(learning_rate=1e-3)
    assert config.differences(config.to_json()) == []
    assert config.differences(TrainConfig().to_json()) == ["learning_rate: 0.0005, now 0.001"]
