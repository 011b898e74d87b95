"""A trace and a scenario laid out row by row: all that happens whatever the policy does.

The closed loop and the oracle both work on it, so they speak of the same requests, the same luck and the same heat.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nsn_edge.errors import TraceError, UsageError
from nsn_edge.runtimes.policy.costs import RungCosts
from nsn_edge.runtimes.simulation.scenario import Scenario, holds
from nsn_edge.runtimes.simulation.thermal import ThermalFit, ThermalModel, calibrate_thermal, device_power_w
from nsn_edge.runtimes.telemetry.base import Reading
from nsn_edge.runtimes.telemetry.replay import TelemetryTrace

_LARGEST_GAP = 10.0  # of a trace's usual step, or seconds, whichever is longer
_P99_Z = 2.3263478740408408  # the standard normal's 99th percentile
_LUCK = 3.0  # a service time lies within so many standard deviations: no profile knows more


@dataclass(frozen=True)
class World:
    """What no policy changes. Arrays with one entry per row of the trace, or one per request."""

    trace: TelemetryTrace
    """The recording."""
    scenario: Scenario
    """What is laid on it."""
    costs: RungCosts
    """Of the rungs; each quality known."""
    thermal: ThermalModel
    """How the device warms."""
    fit: ThermalFit | None
    """How the thermal model was found; None: the scenario named it."""
    seed: int
    """Of the requests."""
    limit_c: float | None
    """Not to be exceeded; None: neither trace nor scenario knows one."""
    time_s: np.ndarray
    """float64 `[rows]`: when each row begins."""
    step_s: np.ndarray
    """float64 `[rows]`: how long it lasts."""
    recorded_c: np.ndarray
    """float64 `[rows]`: the recorded temperature; where its sensor was silent, a straight line between its words."""
    rise_c: np.ndarray
    """float64 `[rows]`: how much warmer than recorded the surroundings are."""
    base_w: np.ndarray
    """float64 `[rows]`: what the device draws besides the rungs."""
    on_mains: np.ndarray
    """bool `[rows]`."""
    slowdown: np.ndarray
    """float64 `[rows]`: how much longer everything takes, throttling aside."""
    arrival_s: np.ndarray
    """float64 `[requests]`, rising."""
    luck: np.ndarray
    """float64 `[requests]`: standard deviations by which a request's service time is off, the same at every rung."""

    @property
    def end_s(self) -> float:
        """When the last row ends."""
        return float(self.time_s[-1] + self.step_s[-1])

    @cached_property
    def service_s(self) -> np.ndarray:
        """float64 `[requests, rungs]`: how long each request takes at each rung on a device at ease: log-normal through
        the profile's median and 99th percentile."""
        median_s = np.array([rung.p50_ms for rung in self.costs.rungs]) / 1000.0
        spread = np.log([rung.p99_ms / rung.p50_ms for rung in self.costs.rungs]) / _P99_Z
        times: np.ndarray = median_s * np.exp(spread * self.luck[:, None])
        return times

    @cached_property
    def energy_j(self) -> np.ndarray:
        """float64 `[requests, rungs]`: beyond what the device draws anyway; in proportion to the service time."""
        if self.scenario.active_w is not None:
            modelled: np.ndarray = self.service_s * self.scenario.active_w
            return modelled
        per_call_j = np.array([(rung.energy_mj or 0.0) / 1000.0 for rung in self.costs.rungs])
        energy: np.ndarray = self.service_s * per_call_j / np.array([rung.p50_ms / 1000.0 for rung in self.costs.rungs])
        return energy

    @cached_property
    def quality(self) -> np.ndarray:
        """float64 `[rungs]`."""
        return np.array([rung.quality for rung in self.costs.rungs], dtype=float)

    @property
    def energy_is_modelled(self) -> bool:
        """Whether joules come from an assumed power, and not from the profile's sensor."""
        return self.scenario.active_w is not None


def lay_out(
    trace: TelemetryTrace,
    scenario: Scenario,
    costs: RungCosts,
    *,
    seed: int = 0,
    arrivals: np.ndarray | None = None,
) -> World:
    """Put a scenario on a trace.

    Args:
        trace: without gaps; its temperature must be known somewhere.
        scenario: what happens.
        costs: of the rungs, with their quality.
        seed: of the requests' times and luck: the same one gives the same world.
        arrivals: int64 `[rows]`, requests in each row; None: at random, as the scenario says.

    Raises:
        TraceError: the trace has a gap, or not what the scenario needs.
        UsageError: a rung without quality or energy, an event after the trace's end, or senseless arrivals.
    """
    _check_costs(costs, scenario)
    time_s = np.array([reading.time_s for reading in trace.readings])
    step_s = _steps(trace, time_s)
    since_s = time_s - time_s[0]
    _check_events(scenario, float(since_s[-1] + step_s[-1]), trace.name)
    fit = None if scenario.thermal else calibrate_thermal(trace, scenario.ambient_c)
    thermal = scenario.thermal or (fit.model if fit else None)
    assert thermal is not None
    limit_c = scenario.temperature_limit_c
    if limit_c is None:
        limit_c = min(
            (r.temperature_limit_c for r in trace.readings if r.temperature_limit_c is not None), default=None
        )
    rng = np.random.default_rng(seed)
    arrival_s = _arrivals(trace, scenario, time_s, step_s, since_s, rng, arrivals)
    return World(
        trace=trace,
        scenario=scenario,
        costs=costs,
        thermal=thermal,
        fit=fit,
        seed=seed,
        limit_c=limit_c,
        time_s=time_s,
        step_s=step_s,
        recorded_c=_temperature(trace, time_s),
        rise_c=np.array(
            [sum(heat.rise_c for heat in scenario.heat if holds(heat, now)) for now in since_s], dtype=float
        ),
        base_w=_base_power(trace, scenario),
        on_mains=np.array([_on_mains(*row, scenario) for row in zip(trace.readings, since_s, strict=True)]),
        slowdown=np.array(
            [math.prod(load.slowdown for load in scenario.load if holds(load, now)) for now in since_s], dtype=float
        ),
        arrival_s=arrival_s,
        luck=np.clip(rng.standard_normal(len(arrival_s)), -_LUCK, _LUCK),
    )


def _check_costs(costs: RungCosts, scenario: Scenario) -> None:
    if not costs.knows_quality:
        raise UsageError(
            "the bundle does not say how good its rungs are, so no quality can be simulated",
            "measure it: nsn-edge eval CHECKPOINT, then nsn-edge export --quality",
        )
    if scenario.active_w is None and not costs.knows_energy:
        raise UsageError(
            "the profile has no energy, so joules and heat must be modelled",
            "give the scenario active_w, the watts that computing adds",
        )


def _steps(trace: TelemetryTrace, time_s: np.ndarray) -> np.ndarray:
    """How long each row holds; the last one as long as they usually do."""
    if len(time_s) < 2:
        raise TraceError(f"{trace.name} has one row, and a simulation needs a span of time", "give it more rows")
    if trace.gaps:
        begin_s, end_s = trace.gaps[0]
        row = int(np.searchsorted(time_s, end_s))
        raise TraceError(
            f"{trace.where(row)}: rows are missing before this one, nothing is known of {end_s - begin_s:g} s",
            "cut the trace there: what a device did meanwhile cannot be told",
        )
    steps = np.diff(time_s)
    usual_s = float(statistics.median(steps))
    row = int(np.argmax(steps))
    if steps[row] > _LARGEST_GAP * max(usual_s, 1.0):
        raise TraceError(
            f"{trace.where(row + 1)}: a gap of {steps[row]:g} s before this row, where rows are {usual_s:g} s apart",
            "cut the trace there: what a device did meanwhile cannot be told",
        )
    return np.append(steps, usual_s)


def _check_events(scenario: Scenario, duration_s: float, trace: str) -> None:
    for table in ("heat", "unplugged", "load"):
        for event in getattr(scenario, table):
            if event.from_s >= duration_s:
                raise UsageError(
                    f"the scenario's {table} begins at {event.from_s:g} s, and {trace} ends at {duration_s:g} s",
                    "times count from the trace's first row",
                )


def _temperature(trace: TelemetryTrace, time_s: np.ndarray) -> np.ndarray:
    known = [(r.time_s, r.temperature_c) for r in trace.readings if r.temperature_c is not None]
    if not known:
        raise TraceError(f"{trace.name} never says a temperature", "a simulation starts from a recorded one")
    at_s, heat_c = np.array(known).T
    temperature: np.ndarray = np.interp(time_s, at_s, heat_c)
    return temperature


def _base_power(trace: TelemetryTrace, scenario: Scenario) -> np.ndarray:
    if scenario.base_w is not None:
        return np.full(len(trace.readings), scenario.base_w)
    by_rail = any(reading.power_mw is None for reading in trace.readings)
    power_w = [device_power_w(reading, by_rail) for reading in trace.readings]
    known = [value for value in power_w if value is not None]
    if not known and scenario.battery is not None:
        raise TraceError(
            f"{trace.name} does not say what the device draws, so no battery can be simulated",
            "give the scenario base_w, the watts that it draws besides the model",
        )
    usual_w = float(statistics.median(known)) if known else 0.0
    return np.array([usual_w if value is None else value for value in power_w])


def _on_mains(reading: Reading, since_s: float, scenario: Scenario) -> bool:
    return reading.on_mains is not False and not any(holds(gone, since_s) for gone in scenario.unplugged)


def _counted(trace: TelemetryTrace) -> np.ndarray:
    """Requests per second as the trace has them; a row that does not say repeats the one before it."""
    rates, last = [], None
    for reading in trace.readings:
        if reading.work is not None and reading.work.arrivals_per_s is not None:
            last = reading.work.arrivals_per_s
        rates.append(last)
    if rates[0] is None:
        raise TraceError(
            f"{trace.where(0)}: the trace does not say how many requests came",
            "give it a column arrivals_per_s, or the scenario the key",
        )
    return np.array(rates, dtype=float)


def _arrivals(
    trace: TelemetryTrace,
    scenario: Scenario,
    time_s: np.ndarray,
    step_s: np.ndarray,
    since_s: np.ndarray,
    rng: np.random.Generator,
    given: np.ndarray | None,
) -> np.ndarray:
    if given is None:
        rates = _counted(trace) if scenario.arrivals_per_s is None else np.full(len(time_s), scenario.arrivals_per_s)
        for load in scenario.load:
            if load.arrivals_per_s is not None:
                rates[[holds(load, now) for now in since_s]] = load.arrivals_per_s
        counts = rng.poisson(rates * step_s)
    else:
        counts = np.asarray(given)
        if counts.shape != time_s.shape or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise UsageError(f"arrivals are {len(time_s)} whole numbers, one per row of the trace, 0 or more")
    begins, lengths = np.repeat(time_s, counts), np.repeat(step_s, counts)
    moments: np.ndarray = np.sort(begins + lengths * rng.random(len(begins)))
    return moments
