"""The result JSONs, read and checked, as the report needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nsn_edge.report.profile_view import rung_label
from nsn_edge.report.reading import optional, quality_of, read_as


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


def simulation_view(data: Mapping[str, Any]) -> SimulationView:
    """Read a simulation."""
    return read_as("simulation", data, _simulation)


def verification_view(data: Mapping[str, Any]) -> VerificationView:
    """Read a verification."""
    return read_as("verification", data, _verification)


def answer_view(data: Mapping[str, Any]) -> Answer:
    """Read a search."""
    return read_as("search", data, _answer)


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
                battery_pct=optional(item["battery_pct"]),
                on_mains=None if item["on_mains"] is None else bool(item["on_mains"]),
                temperature_c=optional(item["temperature_c"]),
                rank=int(item["rank"]),
                answered_by=int(item["rank"] if item.get("answered_by_rank") is None else item["answered_by_rank"]),
                latency_ms=optional(item["latency_ms"]),
            )
            for item in data["timeline"]
        ),
        switches=tuple(
            Switch(float(item["time_s"]), int(item["from_rank"]), int(item["to_rank"]), str(item["reason"]))
            for item in data["switches"]
        ),
        time_at_rung_s={int(rank): float(seconds) for rank, seconds in summary["time_at_rung_s"].items()},
        switches_per_minute=optional(summary.get("switches_per_minute")),
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
                max_abs_diff=optional(item["max_abs_diff"]),
                tolerance=float(item["tolerance"]),
                relative=item.get("max_relative_diff") is not None,
                passed=bool(item["passed"]),
                worst_tensor=None if item.get("worst_tensor") is None else str(item["worst_tensor"]),
            )
            for item in data["checks"]
        ),
        quality={int(rank): quality_of(values) for rank, values in (data.get("quality") or {}).items()},
    )


def _answer(data: Mapping[str, Any]) -> Answer:
    return Answer(
        query=str(data["query"]),
        rank=int(data["rank"]),
        latency_ms=optional(data.get("latency_ms")),
        hits=tuple(Hit(float(item["score"]), str(item["title"]), str(item["text"])) for item in data["results"]),
    )


def same_hits(first: Sequence[Hit], second: Sequence[Hit]) -> int:
    """How many results two answers share."""
    return len({(hit.title, hit.text) for hit in first} & {(hit.title, hit.text) for hit in second})
