"""The result JSONs, read and checked, as the report needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nsn_edge.errors import NsnEdgeError

VERSIONS = {"profile": (1, 2), "simulation": (1,), "verification": (1,), "search": (1,)}
"""Schema versions that can be read, by kind."""

_View = TypeVar("_View")


@dataclass(frozen=True)
class Rung:
    """One rung of the profile."""

    rank: int
    dense: bool
    flops_fraction: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    repetitions: int
    steady: bool
    load_ms: float | None
    quality: Mapping[str, float]

    @property
    def label(self) -> str:
        """How the rung is called throughout the report."""
        return rung_label(self.dense, self.flops_fraction)


@dataclass(frozen=True)
class ProfileView:
    """What every rung costs."""

    model: str
    host: Mapping[str, Any]
    settings: Mapping[str, Any]
    rungs: tuple[Rung, ...]
    """Rising in rank."""
    peak_memory_mb: float | None
    warnings: tuple[str, ...]

    @property
    def precision(self) -> str:
        """Of the weights; profiles that do not say are older than any but float32."""
        return str(self.settings.get("precision", "fp32"))

    @property
    def dense(self) -> Rung | None:
        """The rung the others are compared with."""
        return next((rung for rung in self.rungs if rung.dense), None)

    @property
    def labels(self) -> dict[int, str]:
        """Each rung's label by rank."""
        return {rung.rank: rung.label for rung in self.rungs}

    def relative(self, rung: Rung) -> float | None:
        """Median latency against the dense rung's."""
        return rung.p50_ms / self.dense.p50_ms if self.dense and self.dense.p50_ms > 0 else None


@dataclass(frozen=True)
class Moment:
    """One row of the simulated timeline; what was not known is None."""

    time_s: float
    battery_pct: float | None
    on_mains: bool | None
    temperature_c: float | None
    rank: int
    """What the policy asked for."""
    answered_by: int
    """What answered: the old rung while the new one still loads."""
    latency_ms: float | None


@dataclass(frozen=True)
class Switch:
    """One change of rank."""

    time_s: float
    from_rank: int
    to_rank: int
    reason: str


@dataclass(frozen=True)
class SimulationView:
    """A trace replayed through a policy."""

    trace: str
    duration_s: float
    labels: Mapping[int, str]
    """Each rung's label by rank, lowest first."""
    timeline: tuple[Moment, ...]
    switches: tuple[Switch, ...]
    time_at_rung_s: Mapping[int, float]
    switches_per_minute: float | None
    queries: int | None
    failed_queries: int | None


@dataclass(frozen=True)
class Check:
    """One graph compared with torch."""

    form: str
    rank: int
    dense: bool | None
    """Whether the graph is the original; None where it was not said."""
    max_abs_diff: float | None
    """None where the graph gave something that is not a number."""
    tolerance: float
    relative: bool
    """Whether the tolerance is of the difference relative to the tensor's largest magnitude."""
    passed: bool
    worst_tensor: str | None


@dataclass(frozen=True)
class VerificationView:
    """Every graph compared with torch."""

    passed: bool
    checks: tuple[Check, ...]
    quality: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Hit:
    """One search result."""

    score: float
    title: str
    text: str


@dataclass(frozen=True)
class Answer:
    """A query answered at a rank."""

    query: str
    rank: int
    latency_ms: float | None
    hits: tuple[Hit, ...]


def rung_label(dense: bool, flops_fraction: float) -> str:
    """How a rung is called throughout the report: its share of the linear FLOPs."""
    return "dense" if dense else percent(flops_fraction)


def percent(fraction: float) -> str:
    """A fraction in per cent, whole unless that hides everything; the sign is never parted from its number."""
    value = fraction * 100
    return f"{value:.0f}\N{NO-BREAK SPACE}%" if value >= 0.95 else f"{value:.2g}\N{NO-BREAK SPACE}%"


def profile_view(data: Mapping[str, Any]) -> ProfileView:
    """Read a profile.

    Raises:
        NsnEdgeError: it is something else, too new, or lacks a key; likewise for the functions below.
    """
    return _read("profile", data, _profile)


def simulation_view(data: Mapping[str, Any]) -> SimulationView:
    """Read a simulation."""
    return _read("simulation", data, _simulation)


def verification_view(data: Mapping[str, Any]) -> VerificationView:
    """Read a verification."""
    return _read("verification", data, _verification)


def answer_view(data: Mapping[str, Any]) -> Answer:
    """Read a search."""
    return _read("search", data, _answer)


def _read(kind: str, data: Mapping[str, Any], read: Callable[[Mapping[str, Any]], _View]) -> _View:
    try:
        if data["kind"] != kind or data["schema_version"] not in VERSIONS[kind]:
            raise NsnEdgeError(
                f"the report needs a {kind} of schema version {' or '.join(map(str, VERSIONS[kind]))}, "
                f"not {data['kind']!r} of version {data['schema_version']!r}",
                f"run nsn-edge again to get a new {kind}",
            )
        return read(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NsnEdgeError(f"the {kind} for the report is not readable: {error!r}") from error


def _profile(data: Mapping[str, Any]) -> ProfileView:
    """The first configuration; version 1 has one alone, at the top."""
    if data["schema_version"] == 1:
        return _configuration(data, data)
    if not data["configurations"]:
        raise ValueError("nothing was measured")
    return _configuration(data, data["configurations"][0])


def _configuration(document: Mapping[str, Any], data: Mapping[str, Any]) -> ProfileView:
    rungs = [
        Rung(
            rank=int(item["rank"]),
            dense=bool(item["dense"]),
            flops_fraction=float(item["flops_fraction"]),
            p50_ms=float(item["p50_ms"]),
            p90_ms=float(item["p90_ms"]),
            p99_ms=float(item["p99_ms"]),
            mean_ms=float(item["mean_ms"]),
            std_ms=float(item["std_ms"]),
            repetitions=int(item["repetitions"]),
            steady=bool(item["steady"]),
            load_ms=_optional(item["load_ms"]),
            quality=_quality(item["quality"]),
        )
        for item in data["rungs"]
    ]
    if not rungs:
        raise ValueError("no rungs")
    return ProfileView(
        model=str(document["bundle"]["model"]),
        host=dict(document["host"]),
        settings=dict(data["settings"]),
        rungs=tuple(sorted(rungs, key=lambda rung: (rung.rank, rung.dense))),
        peak_memory_mb=_optional(data.get("peak_memory_mb")),
        warnings=tuple(str(warning) for warning in data["warnings"]),
    )


def _simulation(data: Mapping[str, Any]) -> SimulationView:
    summary = data["summary"]
    ladder = sorted(data["ladder"], key=lambda item: int(item["rank"]))
    queries, failed = summary.get("queries"), summary.get("failed_queries")
    return SimulationView(
        trace=str(data["trace"]["name"]),
        duration_s=float(data["trace"]["duration_s"]),
        labels={int(item["rank"]): rung_label(bool(item["dense"]), float(item["flops_fraction"])) for item in ladder},
        timeline=tuple(
            Moment(
                time_s=float(item["time_s"]),
                battery_pct=_optional(item["battery_pct"]),
                on_mains=None if item["on_mains"] is None else bool(item["on_mains"]),
                temperature_c=_optional(item["temperature_c"]),
                rank=int(item["rank"]),
                answered_by=int(item["rank"] if item.get("answered_by_rank") is None else item["answered_by_rank"]),
                latency_ms=_optional(item["latency_ms"]),
            )
            for item in data["timeline"]
        ),
        switches=tuple(
            Switch(float(item["time_s"]), int(item["from_rank"]), int(item["to_rank"]), str(item["reason"]))
            for item in data["switches"]
        ),
        time_at_rung_s={int(rank): float(seconds) for rank, seconds in summary["time_at_rung_s"].items()},
        switches_per_minute=_optional(summary.get("switches_per_minute")),
        queries=None if queries is None else int(queries),
        failed_queries=None if failed is None else int(failed),
    )


def _verification(data: Mapping[str, Any]) -> VerificationView:
    return VerificationView(
        passed=bool(data["passed"]),
        checks=tuple(
            Check(
                form=str(item["form"]),
                rank=int(item["rank"]),
                dense=None if item.get("dense") is None else bool(item["dense"]),
                max_abs_diff=_optional(item["max_abs_diff"]),
                tolerance=float(item["tolerance"]),
                relative=item.get("max_relative_diff") is not None,
                passed=bool(item["passed"]),
                worst_tensor=None if item.get("worst_tensor") is None else str(item["worst_tensor"]),
            )
            for item in data["checks"]
        ),
        quality={int(rank): _quality(values) for rank, values in (data.get("quality") or {}).items()},
    )


def _answer(data: Mapping[str, Any]) -> Answer:
    return Answer(
        query=str(data["query"]),
        rank=int(data["rank"]),
        latency_ms=_optional(data.get("latency_ms")),
        hits=tuple(Hit(float(item["score"]), str(item["title"]), str(item["text"])) for item in data["results"]),
    )


def _quality(data: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in data.items()}


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def same_hits(first: Sequence[Hit], second: Sequence[Hit]) -> int:
    """How many results two answers share."""
    return len({(hit.title, hit.text) for hit in first} & {(hit.title, hit.text) for hit in second})
