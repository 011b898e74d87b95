"""A profile's JSON, read and checked, as the report needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nsn_edge.report.reading import optional, quality_of, read_as


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
    throughput_per_s: float | None = None
    first_run_ms: float | None = None
    memory_mb: float | None = None
    """What loading it added to the resident memory."""
    energy_mj: float | None = None
    """Of one call, beyond what the device draws idle."""
    turns_ms: tuple[float, ...] = ()
    """Median latency of each turn, in the order taken."""

    @property
    def label(self) -> str:
        """How the rung is called throughout the report."""
        return rung_label(self.dense, self.flops_fraction)


@dataclass(frozen=True)
class Condition:
    """What the sensors said at a moment of the measurement."""

    time_s: float
    temperature_c: float | None
    clock_mhz: float | None
    """Of the GPU where it is known, else of the processor."""


@dataclass(frozen=True)
class Conditions:
    """How the device was while it was measured."""

    duration_s: float
    samples: tuple[Condition, ...]
    power_mode: str | None
    steady: bool | None
    throttled: bool | None
    temperature_slope_c_per_min: float | None
    latency_change: float | None


@dataclass(frozen=True)
class ProfileView:
    """What every rung costs in one configuration."""

    model: str
    host: Mapping[str, Any]
    settings: Mapping[str, Any]
    rungs: tuple[Rung, ...]
    """Rising in rank."""
    peak_memory_mb: float | None
    warnings: tuple[str, ...]
    device: str | None = None
    """The key of device and engine."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """Resident memory besides the peak, as the profile has it."""
    energy_method: str | None = None
    """How energy was measured, in words; None where it was not asked for."""
    idle_mw: float | None = None
    conditions: Conditions | None = None
    grid: tuple[ProfileView, ...] = ()
    """Every configuration, this one among them; empty in one of those itself."""
    failed: tuple[tuple[str, str], ...] = ()
    """Configurations that could not be measured, and why."""

    @property
    def name(self) -> str:
        """The configuration for people: `static, batch 1, sequence 128`."""
        return configuration_name(self.settings)

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
    return read_as("profile", data, _profile)


def _profile(data: Mapping[str, Any]) -> ProfileView:
    """The first configuration; version 1 has one alone, at the top."""
    if data["schema_version"] == 1:
        return _configuration(data, data)
    if not data["configurations"]:
        raise ValueError("nothing was measured")
    grid = tuple(_configuration(data, item) for item in data["configurations"])
    failed = tuple((configuration_name(item), str(item["error"])) for item in data["failed"])
    return replace(grid[0], grid=grid, failed=failed)


def configuration_name(settings: Mapping[str, Any]) -> str:
    """For people: `static, batch 1, sequence 128`."""
    named = (("batch_size", "batch"), ("sequence_length", "sequence"))
    parts = [str(settings["form"])] if settings.get("form") else []
    parts += [f"{name} {settings[key]}" for key, name in named if settings.get(key) is not None]
    return ", ".join([*parts, *(f"{key} {size}" for key, size in (settings.get("dimensions") or {}).items())])


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
            load_ms=optional(item["load_ms"]),
            quality=quality_of(item["quality"]),
            throughput_per_s=optional(item.get("throughput_per_s")),
            first_run_ms=optional(item.get("first_run_ms")),
            memory_mb=optional(item.get("memory_mb")),
            energy_mj=optional(item.get("energy_mj")),
            turns_ms=tuple(map(float, item.get("turns_ms", ()))),
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
        peak_memory_mb=optional(data.get("peak_memory_mb")),
        warnings=tuple(str(warning) for warning in data["warnings"]),
        device=None if document.get("device") is None else str(document["device"]),
        memory=dict(data.get("memory") or {}),
        energy_method=None if data.get("energy") is None else str(data["energy"]["method"]),
        idle_mw=None if data.get("energy") is None else optional(data["energy"]["idle_mw"]),
        conditions=None if data.get("conditions") is None else _conditions(data["conditions"]),
    )


def _conditions(data: Mapping[str, Any]) -> Conditions:
    return Conditions(
        duration_s=float(data["duration_s"]),
        samples=tuple(
            Condition(
                time_s=float(item["time_s"]),
                temperature_c=optional(item.get("temperature_c")),
                clock_mhz=optional(item.get("gpu_mhz") if item.get("gpu_mhz") is not None else item.get("cpu_mhz")),
            )
            for item in data["samples"]
        ),
        power_mode=None if data.get("power_mode") is None else str(data["power_mode"]),
        steady=data.get("steady"),
        throttled=data.get("throttled"),
        temperature_slope_c_per_min=optional(data.get("temperature_slope_c_per_min")),
        latency_change=optional(data.get("latency_change")),
    )
