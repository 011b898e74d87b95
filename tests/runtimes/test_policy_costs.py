"""What rungs cost: from a profile and a ladder, and which profiles are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nsn_edge.errors import NsnEdgeError, RankError, UsageError
from nsn_edge.ladder import RankLadder, uniform_ladder
from nsn_edge.runtimes.policy import RungCost, RungCosts, load_costs, rung_costs
from nsn_edge.runtimes.profiling import Profile
from nsn_edge.runtimes.profiling.host import Host
from nsn_edge.runtimes.profiling.result import RungProfile
from nsn_edge.runtimes.profiling.stats import LatencyStats

PLAIN = uniform_ladder([("a", 384, 384, 384)], align=8)
LADDER = PLAIN.with_rungs([PLAIN.rank_for_fraction(part) for part in (0.25, 0.5)], dense_top=True)
LOW, HALF, TOP = LADDER.ranks
HERE = Host(machine="Orin", cpu="Cortex", architecture="aarch64")


def rung_profile(ladder: RankLadder, rank: int, p50_ms: float, energy_mj: float | None) -> RungProfile:
    latency = LatencyStats(
        n=200,
        mean_ms=p50_ms,
        std_ms=0.1,
        cv=0.01,
        min_ms=p50_ms * 0.9,
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.1,
        p95_ms=p50_ms * 1.2,
        p99_ms=p50_ms * 1.5,
        max_ms=p50_ms * 2,
    )
    return RungProfile(
        rank=rank,
        dense=ladder.rung(rank).dense,
        flops_fraction=ladder.flops_fraction(rank),
        macs=ladder.macs(rank),
        latency=latency,
        load_ms=1.0,
        throughput_per_s=1e3 / p50_ms,
        energy_mj=energy_mj,
    )


def profile(ladder: RankLadder = LADDER) -> Profile:
    return Profile(
        bundle_path="bundle",
        model="tiny",
        host=HERE.to_json(),
        settings={},
        rungs=tuple(rung_profile(ladder, rank, 10.0 * n, 100.0 * n) for n, rank in enumerate(ladder.ranks, start=1)),
        peak_memory_mb=None,
    )


def test_costs_are_the_profiles_with_the_ladders_quality() -> None:
    ladder = LADDER.with_quality({LOW: {"accuracy": 0.8}, HALF: {"accuracy": 0.9, "f1": 0.5}, TOP: {"accuracy": 0.95}})
    costs = rung_costs(profile(), ladder, model="tiny", host=HERE)
    assert costs.quality_metric == "accuracy"
    assert costs.rungs == (
        RungCost(LOW, 10.0, 15.0, 100.0, 0.8),
        RungCost(HALF, 20.0, 30.0, 200.0, 0.9),
        RungCost(TOP, 30.0, 45.0, 300.0, 0.95),
    )
    assert costs.at(HALF).p50_ms == 20.0
    assert costs.knows_energy
    assert costs.best_first == (TOP, HALF, LOW)
    assert costs.to_json()["rungs"][0]["energy_mj"] == 100.0


def test_unmeasured_quality_and_energy_are_unknown() -> None:
    first = replace(profile().rungs[0], energy_mj=None)
    costs = rung_costs(replace(profile(), rungs=(first, *profile().rungs[1:])), LADDER)
    assert costs.quality_metric is None
    assert not costs.knows_quality
    assert not costs.knows_energy
    assert costs.best_first == (TOP, HALF, LOW), "without quality, FLOPs stand in"


def test_perplexity_becomes_a_quality_of_which_more_is_better() -> None:
    ladder = LADDER.with_quality({LOW: {"perplexity": 8.0}, HALF: {"perplexity": 4.0}, TOP: {"perplexity": 5.0}})
    costs = rung_costs(profile(), ladder)
    assert [rung.quality for rung in costs.rungs] == [0.5, 1.0, 0.8]
    assert costs.best_first == (HALF, TOP, LOW), "the best rung need not be the largest"


def test_no_costs_of_a_rank_that_is_no_rung() -> None:
    with pytest.raises(RankError, match="no costs of rank 7"):
        rung_costs(profile(), LADDER).at(7)


OTHER = uniform_ladder([("a", 384, 384, 384), ("b", 384, 1536, 8)], align=8).with_rungs(LADDER.ranks, dense_top=False)


@pytest.mark.parametrize(
    ("changed", "ladder", "words"),
    [
        ({"model": "big"}, LADDER, "the profile is of 'big', and the bundle holds 'tiny'"),
        ({"host": {"machine": "Thor"}}, LADDER, "from another device: machine 'Thor', here 'Orin'"),
        ({"host": {"cpu": "Xeon"}}, LADDER, "from another device: cpu 'Xeon', here 'Cortex'"),
        ({"host": {}}, LADDER, "from another device: it does not say what it was measured on"),
        ({"settings": {"threads": 4}}, LADDER, "with another engine: threads 4, here 1"),
        ({"rungs": profile().rungs[1:]}, LADDER, f"the profile lacks rank {LOW}; it has {HALF}, {TOP}"),
        ({}, OTHER, "the profile is of another ladder"),
    ],
)
def test_a_profile_of_something_else_is_refused(changed: dict[str, object], ladder: RankLadder, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        rung_costs(replace(profile(), **changed), ladder, model="tiny", host=HERE, engine={"threads": 1})
    assert words in caught.value.message
    assert "nsn-edge profile" in caught.value.hint


def test_what_a_profile_does_not_know_of_its_host_is_no_difference() -> None:
    unknown = replace(profile(), host={"cpu": "Cortex"})
    assert rung_costs(unknown, LADDER, host=HERE) == rung_costs(profile(), LADDER)


def test_costs_from_a_file_name_it_in_every_refusal(tmp_path: Path) -> None:
    profile().save(tmp_path / "profile.json")
    assert load_costs(tmp_path / "profile.json", LADDER, model="tiny", host=HERE) == rung_costs(profile(), LADDER)
    with pytest.raises(UsageError, match=r"profile\.json: the profile is of 'tiny'"):
        load_costs(tmp_path / "profile.json", LADDER, model="big")
    with pytest.raises(UsageError, match=r"no profile at .*absent\.json"):
        load_costs(tmp_path / "absent.json", LADDER)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(NsnEdgeError, match=r"broken\.json"):
        load_costs(tmp_path / "broken.json", LADDER)


def test_a_metric_must_be_there_for_every_rung() -> None:
    ladder = LADDER.with_quality({LOW: {"accuracy": 0.8}})
    with pytest.raises(UsageError, match="no quality 'accuracy' for every rung"):
        rung_costs(profile(), ladder, "accuracy")
    assert rung_costs(profile(), ladder).quality_metric is None


@pytest.mark.parametrize(
    "numbers",
    [(0.0, 1.0), (float("nan"), 1.0), (1.0, float("inf")), (2.0, 1.0), (1.0, 2.0, -1.0), (1.0, 2.0, 1.0, float("nan"))],
)
def test_costs_that_cannot_be_are_refused(numbers: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="rank 3"):
        RungCost(3, *numbers)


def test_rungs_rise_and_are_there() -> None:
    with pytest.raises(UsageError, match="at least one"):
        RungCosts(())
    with pytest.raises(UsageError, match="rise in rank"):
        RungCosts((RungCost(2, 1.0, 1.0), RungCost(1, 1.0, 1.0)))
