"""How warm a device gets: one thermal resistance, one time constant, fitted to a recorded trace.

    power in  --R-->  rise over the surroundings,   d(rise)/dt = (R * power - rise) / tau

The model is linear, so what a rung adds to a recorded device is added to the recorded temperature: the recording keeps
its own heat, its fan and the noise of its sensor, and the model answers for the difference alone.

The usual first order model of a package (JESD51-14 calls the steady part the junction-to-ambient resistance). It knows
no fan and no second, faster mass: `ThermalFit` says how far it is off on the part of the trace it has not seen.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nsn_edge.errors import TraceError, UsageError
from nsn_edge.runtimes.telemetry.base import Reading
from nsn_edge.runtimes.telemetry.replay import TelemetryTrace

DEFAULT_AMBIENT_C = 25.0
"""Of the room where a trace was recorded. A trace under steady load cannot tell it from the resistance."""

_FITTED = 0.7  # of the trace; the rest is predicted
_FEWEST_ROWS = 60


@dataclass(frozen=True)
class ThermalModel:
    """A body that power warms and its surroundings cool."""

    resistance_c_per_w: float
    """How many degrees each watt is worth in the long run."""
    time_constant_s: float
    """After this long 63 % of a step have happened."""

    def __post_init__(self) -> None:
        for name in ("resistance_c_per_w", "time_constant_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise UsageError(f"{name} is {value:g}, not a positive number")

    @property
    def heat_capacity_j_per_c(self) -> float:
        """Joules that warm the body by one degree."""
        return self.time_constant_s / self.resistance_c_per_w

    def after(self, rise_c: float, power_w: float, seconds: float) -> float:
        """The rise after some seconds of constant power. Exact for any step.

        Args:
            rise_c: over the surroundings, now.
            power_w: that goes in.
            seconds: 0 or more.
        """
        target_c = self.resistance_c_per_w * power_w
        return target_c + (rise_c - target_c) * math.exp(-seconds / self.time_constant_s)

    def seconds_above(self, rise_c: float, power_w: float, seconds: float, limit_c: float) -> float:
        """How long of the next seconds of constant power the rise is above `limit_c`. Exact: it moves one way."""
        end_c = self.after(rise_c, power_w, seconds)
        if (rise_c > limit_c) == (end_c > limit_c):
            return seconds if rise_c > limit_c else 0.0
        target_c = self.resistance_c_per_w * power_w
        crossing_s = self.time_constant_s * math.log((rise_c - target_c) / (limit_c - target_c))
        crossing_s = min(max(crossing_s, 0.0), seconds)
        return crossing_s if rise_c > limit_c else seconds - crossing_s


@dataclass(frozen=True)
class ThermalFit:
    """A thermal model and how well it tells a trace."""

    model: ThermalModel
    """What was found."""
    ambient_c: float
    """Assumed."""
    rmse_c: float
    """On the rows that were fitted."""
    held_out_rmse_c: float
    """On the rows after them, predicted from the power alone: no temperature of theirs is used."""
    fitted_rows: int
    """At the trace's beginning."""
    held_out_rows: int
    """At its end."""
    power: str
    """What stands for the device's power: `power_mw`, or the sum of which rails."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def calibrate_thermal(trace: TelemetryTrace, ambient_c: float = DEFAULT_AMBIENT_C) -> ThermalFit:
    """Least squares over the whole course that the model predicts from the power, not row by row: the noise of a
    sensor would be taken for fast cooling otherwise.

    The power is `power_mw` where every row knows it, and else the sum of the rails but `VDDQ...`, which hang on another
    one. Rails that leave something out make the resistance too large, which errs to the warm side.

    Args:
        trace: with power and temperature in 60 rows or more. Rows without either are left out.
        ambient_c: of the room, assumed.

    Raises:
        TraceError: too few rows, no power, or a temperature that does not follow it.
    """
    by_rail = any(reading.power_mw is None for reading in trace.readings)
    rows = [
        (reading.time_s, power_w, reading.temperature_c)
        for reading in trace.readings
        if (power_w := device_power_w(reading, by_rail)) is not None and reading.temperature_c is not None
    ]
    if len(rows) < _FEWEST_ROWS:
        raise TraceError(
            f"{trace.name} has power and temperature in {len(rows)} rows, and a thermal model takes {_FEWEST_ROWS}",
            "give the scenario a [thermal] table with resistance_c_per_w and time_constant_s",
        )
    time_s, power_w, heat_c = np.array(rows).T
    fitted = round(len(rows) * _FITTED)

    def residuals(tau_s: float) -> tuple[np.ndarray, float]:
        """Of every row, and the resistance, for one time constant: linear least squares on the first rows."""
        answer = _unit_response(time_s, power_w, tau_s)
        decay = np.exp(-(time_s - time_s[0]) / tau_s)
        columns = np.stack([answer, decay], axis=1)  # of the resistance, and of the rise at the start
        found, *_ = np.linalg.lstsq(columns[:fitted], heat_c[:fitted] - ambient_c, rcond=None)
        return heat_c - ambient_c - columns @ found, float(found[0])

    def error(tau_s: float) -> float:
        return _rms(residuals(tau_s)[0][:fitted])

    longest_s = 4.0 * (time_s[-1] - time_s[0])
    grid = np.geomspace(max(float(np.median(np.diff(time_s))), 1e-3), max(longest_s, 1.0), 60)
    tau_s = min(grid, key=error)
    tau_s = min(np.geomspace(tau_s / 1.2, tau_s * 1.2, 25), key=error)
    left, resistance = residuals(tau_s)
    if not resistance > 0.0:
        raise TraceError(
            f"the temperature of {trace.name} does not follow its power at an ambient temperature of {ambient_c:g} C",
            "give the scenario a [thermal] table with resistance_c_per_w and time_constant_s",
        )
    return ThermalFit(
        model=ThermalModel(resistance, float(tau_s)),
        ambient_c=ambient_c,
        rmse_c=_rms(left[:fitted]),
        held_out_rmse_c=_rms(left[fitted:]),
        fitted_rows=fitted,
        held_out_rows=len(rows) - fitted,
        power=" + ".join(sorted(_rails(trace.readings[0]))) if by_rail else "power_mw",
    )


def device_power_w(reading: Reading, by_rail: bool) -> float | None:
    """What a device draws in watts: its own word, or the sum of its rails but those that hang on another one."""
    if not by_rail:
        return reading.power_mw / 1000.0 if reading.power_mw is not None else None
    rails = _rails(reading)
    return sum(rails.values()) / 1000.0 if rails else None


def _rails(reading: Reading) -> dict[str, float]:
    return {rail: power_mw for rail, power_mw in reading.rails_mw.items() if not rail.startswith("VDDQ")}


def _unit_response(time_s: np.ndarray, power_w: np.ndarray, tau_s: float) -> np.ndarray:
    """What a body of 1 degree per watt that starts cold answers to the power; each row's holds until the next."""
    answer = np.zeros_like(power_w)
    decays = np.exp(-np.diff(time_s) / tau_s)
    for row, decay in enumerate(decays):
        answer[row + 1] = decay * answer[row] + (1.0 - decay) * power_w[row]
    return answer


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
