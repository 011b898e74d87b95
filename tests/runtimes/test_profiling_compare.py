"""Two profiles side by side: what is noise, what is not, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.profiling import DeviceProfile, LatencyStats, Profile, RungProfile, compare
from nsn_edge.runtimes.profiling.compare import FASTER, NOISE, SLOWER

HOST = {"cpu": "Some CPU", "cores": 4, "governor": "performance"}


def rung(rank: int, samples_ms: Sequence[float], *, turns: bool = True, **changes: Any) -> RungProfile:
    medians = [float(np.median(samples_ms[at : at + 5])) for at in range(0, len(samples_ms), 5)] if turns else []
    return RungProfile(
        rank=rank,
        dense=rank == 16,
        flops_fraction=rank / 16,
        macs=rank,
        latency=LatencyStats.from_samples(samples_ms),
        load_ms=1.0,
        throughput_per_s=1.0,
        turns_ms=tuple(medians),
        **changes,
    )


def document(rungs: Sequence[RungProfile], **changes: Any) -> DeviceProfile:
    where = {"form": "static", "batch_size": 1, "sequence_length": 8, "dimensions": {}, "calls_per_turn": 5}
    profile = Profile("bundle", "tiny", HOST, {**where, **changes.pop("settings", {})}, tuple(rungs), 100.0)
    return replace(DeviceProfile.of(replace(profile, **changes.pop("profile", {}))), **changes)


def noisy(seed: int, median_ms: float, spread: float = 0.1, size: int = 200) -> list[float]:
    """Latencies with a long tail, and a drift that neighbours share."""
    random = np.random.default_rng(seed)
    drift = np.repeat(random.normal(0, spread / 2, size // 20), 20)
    return list(median_ms * np.exp(random.gamma(1.0, spread, size) + drift))


@settings(max_examples=40)
@given(
    st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60),
    st.booleans(),
    st.floats(0.0, 0.5),
)
def test_a_profile_against_itself_is_within_noise(samples: list[float], turns: bool, least_change: float) -> None:
    one = document([rung(2, samples, turns=turns), rung(16, samples[::-1], turns=turns)])
    found = compare(one, one, least_change=least_change)
    assert [item.verdict for item in found.rungs] == [NOISE, NOISE]
    assert all(item.ratio == 1.0 and item.low <= 1.0 <= item.high for item in found.rungs)
    assert found.common_change is None
    assert found.differences == found.left_out == ()


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.3, 3.0), st.booleans())
def test_the_band_holds_the_ratio_and_turns_with_the_order(seed: int, factor: float, turns: bool) -> None:
    a = document([rung(2, noisy(seed, 5.0), turns=turns)])
    b = document([rung(2, noisy(seed + 1, 5.0 * factor), turns=turns)])
    (there,), (back,) = compare(a, b).rungs, compare(b, a).rungs
    assert there.low <= there.ratio <= there.high
    assert there.ratio == pytest.approx(1 / back.ratio)
    opposite = {FASTER: SLOWER, SLOWER: FASTER, NOISE: NOISE}
    if abs(there.ratio - 1) > 0.15:  # far from the limit both ways agree
        assert back.verdict == opposite[there.verdict]


@pytest.mark.parametrize("turns", [True, False])
def test_two_runs_of_one_program_are_within_noise_and_a_third_less_time_is_not(turns: bool) -> None:
    same, faster = [], []
    for seed in range(40):
        a = document([rung(2, noisy(2 * seed, 5.0), turns=turns)])
        same += compare(a, document([rung(2, noisy(2 * seed + 1, 5.0), turns=turns)])).rungs
        faster += compare(a, document([rung(2, noisy(2 * seed + 1, 3.3), turns=turns)])).rungs
    assert {item.method for item in same} == {"bootstrap" if turns else "percentiles"}
    assert sum(item.verdict != NOISE for item in same) <= 4
    assert [item.verdict for item in faster] == [FASTER] * 40


def test_a_small_change_is_noise_however_sure() -> None:
    a, b = document([rung(2, [5.0] * 100)]), document([rung(2, [5.1] * 100)])
    assert compare(a, b).rungs[0].verdict == NOISE
    assert compare(a, b, least_change=0.01).rungs[0].verdict == SLOWER
    with pytest.raises(UsageError, match="least change cannot be 1"):
        compare(a, b, least_change=1.0)


def test_a_change_of_all_rungs_alike_is_said() -> None:
    a = document([rung(rank, [float(rank)] * 50) for rank in (2, 5, 16)])
    assert compare(a, document([rung(rank, [rank * 1.2] * 50) for rank in (2, 5, 16)])).common_change == pytest.approx(
        1.2
    )
    other = document([rung(2, [2.0] * 50), rung(5, [6.0] * 50), rung(16, [16.0] * 50)])
    assert compare(a, other).common_change is None


def test_energy_memory_and_what_is_not_alike() -> None:
    a = document([rung(2, [5.0] * 50, energy_mj=10.0)], bundle_hash="1")
    b = document(
        [rung(2, [5.0] * 50, energy_mj=8.0)],
        bundle_hash="2",
        host={"cpu": "Other", "cores": 4, "governor": "powersave", "usable_cores": 4, "load_1m": 6.0},
        profile={"peak_memory_mb": 150.0},
    )
    found = compare(a, b)
    assert (found.rungs[0].energy_ratio, found.rungs[0].memory_ratio) == (0.8, 1.5)
    assert found.differences == (
        "cpu 'Some CPU' and 'Other'",
        "governor 'performance' and 'powersave'",
        "load average None and 6.0: other programs ran",
        "bundle: other graphs or weights",
    )
    data = found.to_json()
    assert (data["kind"], data["rungs"][0]["verdict"]) == ("profile-comparison", NOISE)
    assert compare(a, document([rung(2, [5.0] * 50)])).rungs[0].energy_ratio is None


def test_only_what_both_have_is_compared() -> None:
    a = document([rung(2, [5.0] * 50), rung(16, [9.0] * 50)])
    b = document([rung(16, [9.0] * 50)])
    both = replace(
        b, configurations=(*b.configurations, *document([rung(2, [1.0])], settings={"batch_size": 8}).configurations)
    )
    found = compare(a, both)
    assert [item.rank for item in found.rungs] == [16]
    assert found.left_out == ("static, batch 8, sequence 8: only in the second",)


def test_what_cannot_be_compared_is_refused_in_a_line() -> None:
    a = document([rung(2, [5.0] * 50)])
    for other, says in (
        (replace(a, model="large"), "two models, tiny and large"),
        (document([rung(2, [5.0] * 50)], settings={"batch_size": 8}), "no rung in a configuration in common"),
        (document([rung(5, [5.0] * 50)]), "no rung in a configuration in common"),
        (document([replace(rung(2, [5.0] * 50), flops_fraction=0.5)]), "two ladders"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            compare(a, other)
        assert caught.value.hint
