"""Plans and the rank's arithmetic, in which nothing of NVIDIA's takes part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.bundle import Bundle, Manifest, TaskSpec, TensorSpec
from nsn_edge.export.tensorrt.plan import BuildConfig, plan_jobs, rank_ranges
from nsn_edge.export.tensorrt.ranks import curve_arithmetic
from nsn_edge.export.tensorrt.shapes import SizeRange, default_sizes, shape_ranges
from nsn_edge.ladder import RankCurve, uniform_ladder


class Number:
    """A whole number with the operations that TensorRT has on shapes, its division included."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __add__(self, other: object) -> Number:
        return Number(self.value + _int(other))

    def __sub__(self, other: object) -> Number:
        return Number(self.value - _int(other))

    def __mul__(self, other: object) -> Number:
        return Number(self.value * _int(other))

    def __floordiv__(self, other: object) -> Number:
        assert self.value >= 0, "division of negative numbers differs between libraries"
        return Number(self.value // _int(other))

    def least(self, bound: object) -> Number:
        return Number(max(self.value, _int(bound)))

    def most(self, bound: object) -> Number:
        return Number(min(self.value, _int(bound)))


def _int(other: object) -> int:
    assert isinstance(other, (int, Number))
    return other.value if isinstance(other, Number) else other


@st.composite
def curves(draw: st.DrawFn) -> RankCurve:
    rising = draw(st.lists(st.integers(2, 300), min_size=1, max_size=6, unique=True).map(sorted))
    heights = draw(st.lists(st.integers(1, 400), min_size=len(rising) + 1, max_size=len(rising) + 1).map(sorted))
    return RankCurve(tuple(zip([1, *rising], heights, strict=True)), draw(st.sampled_from([1, 2, 8, 16])))


@given(curves())
def test_the_arithmetic_is_the_curve_at_every_rank(curve: RankCurve) -> None:
    computed = [curve_arithmetic(Number(rank), curve).value for rank in range(1, curve.max_rank + 1)]
    assert np.array_equal(computed, curve.table())


@given(st.sets(st.integers(1, 63), min_size=1, max_size=8), st.booleans(), st.data())
def test_ranges_of_chosen_rungs_cover_every_rank_once(ranks: set[int], dense: bool, data: st.DataObject) -> None:
    ladder = uniform_ladder([("layer", 64, 64, 64)], align=1).with_rungs(sorted(ranks), dense_top=dense)
    chosen = sorted({*data.draw(st.sets(st.sampled_from(ladder.ranks))), ladder.ranks[-1]})
    ranges = rank_ranges(ladder, chosen)
    assert [best for best, _ in ranges] == chosen
    covered = [rank for _, (low, high) in ranges for rank in range(low, high + 1)]
    assert covered == list(range(1, ladder.max_rank + 1))
    assert all(low <= best == high for best, (low, high) in ranges[:-1])


def test_sums_of_dimensions_are_sums() -> None:
    mask = TensorSpec("attention_mask", "int64", ("batch_size", "past_sequence_length + sequence_length"))
    sizes = {
        "batch_size": SizeRange(1, 2, 4),
        "sequence_length": SizeRange(1, 16, 32),
        "past_sequence_length": SizeRange(0, 100, 200),
    }
    found = shape_ranges([mask], sizes)["attention_mask"]
    assert (found.min, found.opt, found.max) == ((1, 1), (2, 116), (4, 232))


@pytest.mark.parametrize(
    ("max_length", "sequence"), [(None, "1:128:512"), (4096, "1:128:512"), (256, "1:128:256"), (24, "1:24:24")]
)
def test_default_sizes(wide_bundle: Bundle, max_length: int | None, sequence: str) -> None:
    sizes = default_sizes(_manifest(wide_bundle, max_length))
    assert {name: str(size) for name, size in sizes.items()} == {"batch_size": "1:1:8", "sequence_length": sequence}


def _manifest(bundle: Bundle, max_length: int | None) -> Manifest:
    from dataclasses import replace

    return replace(bundle.manifest, task=TaskSpec("feature-extraction", max_length=max_length))


def test_the_default_is_every_rung_in_the_graphs_own_precision(wide_bundle: Bundle) -> None:
    jobs = plan_jobs(wide_bundle, BuildConfig())
    assert [(job.stem, job.artifact.path) for job in jobs] == [
        ("rank-040-fp32", "rank-040.onnx"),
        ("rank-120-fp32", "rank-120.onnx"),
        ("rank-128-fp32", "dense.onnx"),
    ]


def test_both_kinds_of_some_rungs(wide_bundle: Bundle) -> None:
    jobs = plan_jobs(wide_bundle, BuildConfig(kinds=("rung", "dynamic"), ranks=(40, 128), precision="fp16"))
    assert [job.stem for job in jobs] == ["rank-040-fp16", "rank-128-fp16", "sliced-fp16"]
    assert [profile.rank_range for profile in jobs[-1].profiles] == [(1, 40), (41, 128)]


def test_a_bundle_without_the_form(wide_bundle: Bundle, tmp_path: Path) -> None:
    from dataclasses import replace

    from nsn_edge.errors import UsageError

    kept = tuple(a for a in wide_bundle.manifest.artifacts if a.form != "sliced")
    without = Bundle(wide_bundle.path, replace(wide_bundle.manifest, artifacts=kept))
    with pytest.raises(UsageError, match="no sliced graph") as caught:
        plan_jobs(without, BuildConfig(kinds=("dynamic",)))
    assert "--form sliced" in caught.value.hint
