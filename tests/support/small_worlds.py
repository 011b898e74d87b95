"""Small simulated worlds: a few rows, a few requests, and every figure simple enough to check by hand."""

from __future__ import annotations

from typing import Any

from nsn_edge.runtimes.policy import RungCost, RungCosts
from nsn_edge.runtimes.simulation import Scenario, ThermalModel, World, lay_out
from nsn_edge.runtimes.telemetry import Reading, TelemetryTrace

COSTS = RungCosts(
    (
        RungCost(8, 100.0, 120.0, 400.0, 0.6),
        RungCost(16, 200.0, 260.0, 900.0, 0.8),
        RungCost(32, 400.0, 500.0, 2000.0, 1.0),
    ),
    "score",
)
EXACT = RungCosts(tuple(RungCost(c.rank, c.p50_ms, c.p50_ms, c.energy_mj, c.quality) for c in COSTS.rungs), "score")
"""The same without luck: every call takes the median."""


def steady_trace(
    rows: int, step_s: float = 1.0, temperature_c: float = 50.0, power_mw: float = 5000.0
) -> TelemetryTrace:
    """A device at rest."""
    return TelemetryTrace(
        "at rest",
        tuple(Reading(row * step_s, temperature_c=temperature_c, power_mw=power_mw) for row in range(rows)),
    )


def small_scenario(**changes: Any) -> Scenario:
    """Two requests a second with a deadline of a second on a device that warms 2 degrees per watt."""
    settings: dict[str, Any] = {
        "deadline_ms": 1000.0,
        "arrivals_per_s": 2.0,
        "thermal": ThermalModel(2.0, 20.0),
        "temperature_limit_c": 90.0,
        **changes,
    }
    return Scenario(**settings)


def small_world(rows: int = 30, seed: int = 0, costs: RungCosts = COSTS, **changes: Any) -> World:
    """The scenario on the device at rest."""
    return lay_out(steady_trace(rows), small_scenario(**changes), costs, seed=seed)
