"""Two profiles side by side: per configuration and rung the ratio of the medians, and whether it is more than noise.

    ratio = median latency of B / median latency of A           below 1: B is faster

**The noise band** holds 95 % of the ratios that chance alone would give. Where both profiles have their turns it is a
bootstrap (Efron and Tibshirani, 1993): turns are drawn anew from each profile, in blocks of neighbours as long as the
square root of their number (Kuensch, 1989: turns next to each other share a clock and a neighbour's job), and the ratio
of the drawn medians is taken 1,000 times. A few blocks know little of their own spread, so the band is widened as
Student's t is for as many. Elsewhere the band comes from the percentiles: the spread is taken as that of a normal
distribution with the same p90, the standard error of a median is 1.2533 times the standard deviation over the square
root of the number of turns, and the two add up in squares on the logarithm.

Either band knows only what changed within a run. Between two runs of one program medians move by a few per cent, too
(memory lies elsewhere, a clock settles elsewhere): a change below `least_change` is called noise, whatever the band.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.profiling.device import same_device, same_engine
from nsn_edge.runtimes.profiling.document import DeviceProfile
from nsn_edge.runtimes.profiling.result import Profile, RungProfile, configuration_name

FASTER, SLOWER, NOISE = "faster", "slower", "within noise"

LEAST_CHANGE = 0.03
"""Ratios nearer to 1 than this are called noise by default."""

_DRAWS = 1000
_Z95 = 1.959964  # of the normal distribution
_Z90 = 1.281552
_MEDIAN_ERROR = 1.2533141  # sqrt(pi / 2): of a median against a mean
_FEWEST_TURNS = 5
_LARGEST_ERROR = 10.0  # nothing is known by then, and its exponential still is a number


@dataclass(frozen=True)
class RungComparison:
    """One rung in one configuration, in both profiles."""

    configuration: Mapping[str, Any]
    rank: int
    dense: bool
    a_p50_ms: float
    b_p50_ms: float
    ratio: float
    """`b_p50_ms / a_p50_ms`."""
    low: float
    high: float
    """The noise band around the ratio."""
    method: str
    """Of the band: `bootstrap` or `percentiles`."""
    verdict: str
    """Of B: `faster`, `slower` or `within noise`."""
    energy_ratio: float | None
    """Millijoules of a call, B against A; None unless both are known."""
    memory_ratio: float | None
    """Peak memory of the configuration, B against A; None unless both are known."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Two profiles of one model."""

    a: DeviceProfile
    b: DeviceProfile
    least_change: float
    rungs: tuple[RungComparison, ...]
    differences: tuple[str, ...]
    """What is not alike: device, engine, bundle."""
    left_out: tuple[str, ...]
    """Configurations that only one of them has."""

    @property
    def common_change(self) -> float | None:
        """The geometric mean of all ratios, if each of at least two agrees with it within its own noise: then all rungs
        changed alike, as they do where the machine and not the model changed. None otherwise, or where it is no more
        than noise itself."""
        ratios = [rung.ratio for rung in self.rungs]
        if len(ratios) < 2:
            return None
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        alike = all(r.low <= mean <= r.high or abs(r.ratio / mean - 1) <= LEAST_CHANGE for r in self.rungs)
        return mean if alike and abs(mean - 1) > self.least_change else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "schema_version": 1,
            "kind": "profile-comparison",
            "model": self.a.model,
            "a": {"bundle": self.a.bundle_path, "device": self.a.device},
            "b": {"bundle": self.b.bundle_path, "device": self.b.device},
            "least_change": self.least_change,
            "rungs": [rung.to_json() for rung in self.rungs],
            "common_change": self.common_change,
            "differences": list(self.differences),
            "left_out": list(self.left_out),
        }


def compare(a: DeviceProfile, b: DeviceProfile, *, least_change: float = LEAST_CHANGE, seed: int = 0) -> Comparison:
    """Compare every rung in every configuration that both have.

    Args:
        a: what is compared with.
        b: what is compared: `faster` says that B is.
        least_change: smaller changes than this share are called noise.
        seed: of the bootstrap.

    Raises:
        UsageError: the profiles are of two models or ladders, or have no configuration or rung in common.
    """
    if not 0 <= least_change < 1:
        raise UsageError(f"the least change cannot be {least_change}", "it is a share, 0 or more and below 1")
    if a.model != b.model:
        raise UsageError(f"these profiles are of two models, {a.model} and {b.model}", "compare two of one model")
    random = np.random.default_rng(seed)
    pairs = [(one, _counterpart(one, b)) for one in a.configurations]
    found: list[RungComparison] = []
    for one, other in pairs:
        if other is not None:
            found += _rungs(one, other, least_change, random)
    if not found:
        raise UsageError(
            "these profiles have no rung in a configuration in common",
            f"the first has {a.names() or 'none'}; the second {b.names() or 'none'}",
        )
    mine = {configuration_name(profile.configuration) for profile in a.configurations}
    theirs = {configuration_name(profile.configuration) for profile in b.configurations}
    return Comparison(
        a=a,
        b=b,
        least_change=least_change,
        rungs=tuple(found),
        differences=tuple(_differences(a, b)),
        left_out=tuple(
            [f"{name}: only in the first" for name in sorted(mine - theirs)]
            + [f"{name}: only in the second" for name in sorted(theirs - mine)]
        ),
    )


def noise_band(
    a: RungProfile, b: RungProfile, random: np.random.Generator, calls_per_turn: int
) -> tuple[float, float, str]:
    """Where 95 % of the ratios of medians lie that these two runs could have given: low, high, and the method."""
    if min(len(a.turns_ms), len(b.turns_ms)) >= _FEWEST_TURNS:
        drawn = _drawn_medians(b.turns_ms, random) / _drawn_medians(a.turns_ms, random)
        # The medians of turns are not the medians of calls: take the band's width from here, its middle from those.
        low, middle, high = (float(value) for value in np.percentile(drawn, [2.5, 50, 97.5]))
        wider = _widening(min(len(a.turns_ms), len(b.turns_ms)))
        ratio = b.latency.p50_ms / a.latency.p50_ms
        return ratio * (low / middle) ** wider, ratio * (high / middle) ** wider, "bootstrap"
    error = math.hypot(_relative_error(a, calls_per_turn), _relative_error(b, calls_per_turn))
    error = min(error, _LARGEST_ERROR)
    ratio = b.latency.p50_ms / a.latency.p50_ms
    return ratio * math.exp(-_Z95 * error), ratio * math.exp(_Z95 * error), "percentiles"


def _rungs(a: Profile, b: Profile, least_change: float, random: np.random.Generator) -> list[RungComparison]:
    others = {(rung.rank, rung.dense): rung for rung in b.rungs}
    turn = max(int(profile.settings.get("calls_per_turn") or 1) for profile in (a, b))
    found = []
    for rung in a.rungs:
        other = others.get((rung.rank, rung.dense))
        if other is None or min(rung.latency.p50_ms, other.latency.p50_ms) <= 0:
            continue
        if not math.isclose(rung.flops_fraction, other.flops_fraction, abs_tol=1e-3):
            raise UsageError(
                f"these profiles are of two ladders: rank {rung.rank} takes {rung.flops_fraction:.1%} of the linear "
                f"FLOPs in the first and {other.flops_fraction:.1%} in the second",
                "compare bundles of one checkpoint",
            )
        ratio = other.latency.p50_ms / rung.latency.p50_ms
        low, high, method = noise_band(rung, other, random, turn)
        found.append(
            RungComparison(
                configuration=a.configuration,
                rank=rung.rank,
                dense=rung.dense,
                a_p50_ms=rung.latency.p50_ms,
                b_p50_ms=other.latency.p50_ms,
                ratio=ratio,
                low=low,
                high=high,
                method=method,
                verdict=_verdict(ratio, low, high, least_change),
                energy_ratio=_ratio(other.energy_mj, rung.energy_mj),
                memory_ratio=_ratio(b.peak_memory_mb, a.peak_memory_mb),
            )
        )
    return found


def _verdict(ratio: float, low: float, high: float, least_change: float) -> str:
    if abs(ratio - 1) <= least_change or low <= 1 <= high:
        return NOISE
    return FASTER if ratio < 1 else SLOWER


def _drawn_medians(turns_ms: Sequence[float], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Medians of turns drawn anew, in blocks of neighbours that wrap around at the end."""
    values = np.asarray(turns_ms)
    size = len(values)
    block = _block(size)
    starts = random.integers(0, size, (_DRAWS, -(-size // block)))
    places = (starts[:, :, None] + np.arange(block)).reshape(_DRAWS, -1)[:, :size] % size
    medians: npt.NDArray[np.float64] = np.median(values[places], axis=1)
    return medians


def _block(turns: int) -> int:
    return max(1, round(math.sqrt(turns)))


def _widening(turns: int) -> float:
    """By what a band of the normal distribution is too narrow for so few blocks: Student's quantile against the normal
    one (Cornish and Fisher's expansion, Abramowitz and Stegun 26.7.5), and the sample's spread against the true one."""
    blocks = turns / _block(turns)
    freedom = max(blocks - 1, 1.0)
    z = _Z95
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return student / z * math.sqrt(blocks / freedom)


def _relative_error(rung: RungProfile, calls_per_turn: int) -> float:
    """Standard error of the median against it."""
    latency = rung.latency
    deviation = max(latency.p90_ms - latency.p50_ms, 0.0) / _Z90
    return _MEDIAN_ERROR * deviation / math.sqrt(max(latency.n / calls_per_turn, 1)) / latency.p50_ms


def _counterpart(profile: Profile, others: DeviceProfile) -> Profile | None:
    mine = configuration_name(profile.configuration)
    return next((o for o in others.configurations if configuration_name(o.configuration) == mine), None)


def _differences(a: DeviceProfile, b: DeviceProfile) -> list[str]:
    found = [text.replace(", here ", " and ") for text in same_device(a.host, b.host)]
    if a.first and b.first:
        found += [text.replace(", here ", " and ") for text in same_engine(a.first.settings, b.first.settings)]
        precisions = [profile.first.settings.get("precision") for profile in (a, b) if profile.first]
        if None not in precisions and precisions[0] != precisions[1]:
            found.append(f"precision {precisions[0]!r} and {precisions[1]!r}")
    for name, first, second in (
        ("governor", a.host.get("governor"), b.host.get("governor")),
        ("power mode", _power_mode(a), _power_mode(b)),
    ):
        if first is not None and second is not None and first != second:
            found.append(f"{name} {first!r} and {second!r}")
    loads = [(profile.host.get("load_1m"), profile.host.get("usable_cores")) for profile in (a, b)]
    if any(load is not None and cores and load >= cores for load, cores in loads):
        found.append(f"load average {loads[0][0]} and {loads[1][0]}: other programs ran")
    if a.bundle_hash and b.bundle_hash and a.bundle_hash != b.bundle_hash:
        found.append("bundle: other graphs or weights")
    return found


def _power_mode(document: DeviceProfile) -> str | None:
    modes = [p.conditions.power_mode for p in document.configurations if p.conditions is not None]
    return next((mode for mode in modes if mode is not None), None)


def _ratio(b: float | None, a: float | None) -> float | None:
    return b / a if a and b is not None else None
