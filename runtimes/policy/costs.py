"""What each rung of a ladder costs on this device and how good it is: what policies plan with.

    profile (measured here) + ladder (from the manifest) --> RungCosts

Two rungs next to each other may be as fast as each other within the noise of the measurement, and then the lower one
may even seem the slower. Nothing here smooths that away: a policy compares what was measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nsn_edge.errors import NsnEdgeError, RankError, UsageError
from nsn_edge.ladder import RankLadder
from nsn_edge.runtimes.profiling.device import same_device, same_engine
from nsn_edge.runtimes.profiling.host import Host
from nsn_edge.runtimes.profiling.result import Profile, RungProfile

_Z99 = statistics.NormalDist().inv_cdf(0.99)

LOWER_IS_BETTER = frozenset({"perplexity", "loss"})
"""Metrics of a manifest that fall as a model gets better; every other rises."""

_PROFILE_IT = "measure it here: nsn-edge profile BUNDLE -o profile.json"


@dataclass(frozen=True)
class RungCost:
    """One rung on this device."""

    rank: int
    """The model's rank."""
    p50_ms: float
    """Median latency of one call, without waiting in a queue."""
    p99_ms: float
    """The latency that 99 of 100 calls keep; never below the median."""
    energy_mj: float | None = None
    """Millijoules of one call beyond what the idle device draws; None where no sensor told."""
    quality: float | None = None
    """More is better. Of a metric that falls as a model gets better (perplexity), the ladder's best value divided by
    the rung's. None where the manifest has no measurement."""

    def __post_init__(self) -> None:
        for name, value in (("p50_ms", self.p50_ms), ("p99_ms", self.p99_ms)):
            if not (math.isfinite(value) and value > 0.0):
                raise UsageError(f"the {name} of rank {self.rank} is {value}, not a positive number", _PROFILE_IT)
        if self.p99_ms < self.p50_ms:
            raise UsageError(
                f"the p99_ms of rank {self.rank} is {self.p99_ms:g}, below its median of {self.p50_ms:g}", _PROFILE_IT
            )
        if self.energy_mj is not None and not (math.isfinite(self.energy_mj) and self.energy_mj >= 0.0):
            raise UsageError(f"the energy_mj of rank {self.rank} is {self.energy_mj}, not 0 or more", _PROFILE_IT)
        if self.quality is not None and not math.isfinite(self.quality):
            raise UsageError(f"the quality of rank {self.rank} is {self.quality}, not a number")

    @cached_property
    def spread(self) -> float:
        """The standard deviation of a call against its median, as of a normal distribution with this 99th
        percentile."""
        return (self.p99_ms - self.p50_ms) / _Z99 / self.p50_ms


@dataclass(frozen=True)
class RungCosts:
    """Every rung of one ladder."""

    rungs: tuple[RungCost, ...]
    """Rising in rank; one for each rung of the ladder."""
    quality_metric: str | None = None
    """Which of the manifest's metrics `quality` is; None where there is none."""

    def __post_init__(self) -> None:
        if not self.rungs:
            raise UsageError("costs need at least one rung", _PROFILE_IT)
        if list(self.ranks) != sorted(set(self.ranks)):
            raise UsageError(f"costs must rise in rank: {list(self.ranks)}")

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Of the rungs, lowest first."""
        return tuple(rung.rank for rung in self.rungs)

    @cached_property
    def by_rank(self) -> Mapping[int, RungCost]:
        """Each rung's costs."""
        return {rung.rank: rung for rung in self.rungs}

    def at(self, rank: int) -> RungCost:
        """The costs of one rung.

        Raises:
            RankError: there is no rung.
        """
        try:
            return self.by_rank[rank]
        except KeyError:
            raise RankError(f"no costs of rank {rank}", f"the rungs are {', '.join(map(str, self.ranks))}") from None

    @property
    def knows_energy(self) -> bool:
        """Whether the energy of every rung is known."""
        return all(rung.energy_mj is not None for rung in self.rungs)

    @property
    def knows_quality(self) -> bool:
        """Whether the quality of every rung is known."""
        return all(rung.quality is not None for rung in self.rungs)

    @cached_property
    def best_first(self) -> tuple[int, ...]:
        """The ranks by quality, the best first, of equals the higher; without quality by rank, that is by FLOPs."""
        if not self.knows_quality:
            return tuple(reversed(self.ranks))
        best = sorted(self.rungs, key=lambda rung: (rung.quality, rung.rank), reverse=True)
        return tuple(rung.rank for rung in best)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"quality_metric": self.quality_metric, "rungs": [asdict(rung) for rung in self.rungs]}


def rung_costs(
    profile: Profile,
    ladder: RankLadder,
    quality_metric: str | None = None,
    *,
    model: str | None = None,
    host: Host | None = None,
    engine: Mapping[str, Any] | None = None,
) -> RungCosts:
    """What a profile says of the rungs of a ladder, with the quality that the manifest has.

    Args:
        profile: of every rung of the ladder.
        ladder: of the bundle that is to run.
        quality_metric: one of the manifest's metrics; by default the first, by name, that every rung has.
        model: of the bundle's manifest; a profile of another one is refused. None: not compared.
        host: this machine; a profile of another one is refused. None: not compared, to simulate a device elsewhere.
        engine: what executes, `engine.describe()`; a profile of another one is refused. None: not compared.

    Raises:
        UsageError: the profile is of another model, machine, engine or ladder, lacks a rung, or a rung lacks the
            metric.
    """
    if model is not None and profile.model != model:
        raise UsageError(f"the profile is of {profile.model!r}, and the bundle holds {model!r}", _PROFILE_IT)
    if host is not None and (foreign := same_device(profile.host, host)):
        raise UsageError(f"the profile is from another device: {foreign[0]}", _PROFILE_IT)
    if engine is not None and (foreign := same_engine(profile.settings, engine)):
        raise UsageError(f"the profile was taken with another engine: {foreign[0]}", _PROFILE_IT)
    measured = {rung.rank: rung for rung in profile.rungs}
    for rank in ladder.ranks:
        if rank not in measured:
            raise UsageError(f"the profile lacks rank {rank}; it has {_listed(measured)}", _PROFILE_IT)
        if not math.isclose(measured[rank].flops_fraction, ladder.flops_fraction(rank), abs_tol=1e-3):
            raise UsageError(
                f"the profile is of another ladder: rank {rank} took {measured[rank].flops_fraction:.1%} of the FLOPs, "
                f"and takes {ladder.flops_fraction(rank):.1%} here",
                _PROFILE_IT,
            )
    metric, qualities = _qualities(ladder, quality_metric)
    return RungCosts(tuple(_cost(measured[rank], qualities.get(rank)) for rank in ladder.ranks), metric)


def load_costs(
    path: Path,
    ladder: RankLadder,
    *,
    model: str | None = None,
    host: Host | None = None,
    engine: Mapping[str, Any] | None = None,
    form: str | None = None,
) -> RungCosts:
    """`rung_costs` of a profile's file. Every error names the file.

    Args:
        path: of the profile.
        ladder: as for `rung_costs`, and so the others.
        model: see there.
        host: see there.
        engine: see there.
        form: whose configuration is read where the file has several; by default the first.

    Raises:
        UsageError: there is no such file or configuration, or `rung_costs` refuses it.
        NsnEdgeError: it is not a profile.
    """
    try:
        return rung_costs(Profile.load(path, form=form), ladder, model=model, host=host, engine=engine)
    except NsnEdgeError as error:
        if str(path) in error.message:
            raise
        raise type(error)(f"{path}: {error.message}", error.hint) from error


def _cost(rung: RungProfile, quality: float | None) -> RungCost:
    latency = rung.latency
    return RungCost(rung.rank, latency.p50_ms, max(latency.p50_ms, latency.p99_ms), rung.energy_mj, quality)


def _qualities(ladder: RankLadder, asked: str | None) -> tuple[str | None, Mapping[int, float]]:
    """The metric, and the quality of each rung by it: more is better."""
    shared = set.intersection(*(set(rung.quality) for rung in ladder.rungs)) if ladder.rungs else set()
    if asked is not None and asked not in shared:
        raise UsageError(
            f"the bundle has no quality {asked!r} for every rung",
            f"it has {_listed(sorted(shared))}; nsn-edge export --quality puts measurements into it",
        )
    metric = asked or min(shared, default=None)
    if metric is None:
        return None, {}
    values = {rung.rank: rung.quality[metric] for rung in ladder.rungs}
    if metric not in LOWER_IS_BETTER:
        return metric, values
    best = min(values.values())
    if best <= 0.0:
        raise UsageError(f"a {metric} of {best:g} cannot be compared", "measure the quality again: nsn-edge eval")
    return metric, {rank: best / value for rank, value in values.items()}


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) or "none"
