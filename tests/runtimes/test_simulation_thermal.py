"""The thermal model: exact steps, conserved energy, and a calibration that finds what made the trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import data_root

from nsn_edge.errors import TraceError, UsageError
from nsn_edge.runtimes.simulation import ThermalModel, calibrate_thermal
from nsn_edge.runtimes.telemetry import Reading, TelemetryTrace, load_trace

ORIN: Path = data_root() / "telemetry" / "agx_orin_jtop_20min_1hz.csv"

models = st.builds(ThermalModel, st.floats(0.1, 20.0), st.floats(1.0, 1000.0))
rises = st.floats(-40.0, 80.0)
powers = st.floats(0.0, 60.0)
seconds = st.floats(0.0, 500.0)


@given(models, rises, powers, seconds, seconds)
def test_two_steps_are_one(model: ThermalModel, rise_c: float, power_w: float, first_s: float, then_s: float) -> None:
    halfway = model.after(rise_c, power_w, first_s)
    assert model.after(halfway, power_w, then_s) == pytest.approx(
        model.after(rise_c, power_w, first_s + then_s), abs=1e-6
    )


@given(models, st.lists(st.tuples(powers, st.floats(0.1, 50.0)), min_size=1, max_size=20), rises)
def test_energy_is_conserved(model: ThermalModel, steps: list[tuple[float, float]], rise_c: float) -> None:
    """What went in is what the body stores and what it gave away: C * rise, and the integral of rise / R."""
    start_c, given_j, lost_j = rise_c, 0.0, 0.0
    for power_w, step_s in steps:
        after_c = model.after(rise_c, power_w, step_s)
        target_c = model.resistance_c_per_w * power_w
        # The integral of an exponential that moves from rise to after around its target.
        integral = target_c * step_s + model.time_constant_s * (rise_c - after_c)
        lost_j += integral / model.resistance_c_per_w
        given_j += power_w * step_s
        rise_c = after_c
    stored_j = model.heat_capacity_j_per_c * (rise_c - start_c)
    assert given_j == pytest.approx(stored_j + lost_j, rel=1e-6, abs=1e-6)


@given(models, rises, powers, st.floats(0.1, 200.0), rises)
def test_time_above_a_limit_is_exact(
    model: ThermalModel, rise_c: float, power_w: float, step_s: float, limit_c: float
) -> None:
    above_s = model.seconds_above(rise_c, power_w, step_s, limit_c)
    assert 0.0 <= above_s <= step_s
    moments = (np.arange(4000) + 0.5) * step_s / 4000
    target_c = model.resistance_c_per_w * power_w
    course = target_c + (rise_c - target_c) * np.exp(-moments / model.time_constant_s)
    if np.abs(course - limit_c).min() > 1e-6:
        assert above_s == pytest.approx(float((course > limit_c).mean()) * step_s, abs=2 * step_s / 4000)


@given(st.floats(0.3, 8.0), st.floats(10.0, 120.0), st.floats(-10.0, 40.0))
@settings(max_examples=12)
def test_calibration_finds_the_model_that_made_the_trace(resistance: float, tau_s: float, ambient_c: float) -> None:
    model = ThermalModel(resistance, tau_s)
    rng = np.random.default_rng(0)
    rise_c, readings = 3.0, []
    for row in range(400):
        power_w = 5.0 + 20.0 * (row // 40 % 2) + float(rng.uniform(0.0, 3.0))
        readings.append(Reading(float(row), temperature_c=ambient_c + rise_c, power_mw=1000.0 * power_w))
        rise_c = model.after(rise_c, power_w, 1.0)
    fit = calibrate_thermal(TelemetryTrace("made", tuple(readings)), ambient_c)
    assert fit.model.resistance_c_per_w == pytest.approx(resistance, rel=0.02)
    assert fit.model.time_constant_s == pytest.approx(tau_s, rel=0.03)
    assert fit.held_out_rmse_c < 0.02 * resistance * 25.0
    assert (fit.fitted_rows, fit.held_out_rows) == (280, 120)


def test_rails_stand_for_the_power_where_the_board_has_no_input_rail() -> None:
    readings = [
        Reading(float(row), temperature_c=30.0 + 10.0 * (1.0 - 0.99**row), rails_mw={"VDD_CPU": 4e3, "VDDQ_X": 9e9})
        for row in range(100)
    ]
    fit = calibrate_thermal(TelemetryTrace("rails", tuple(readings)))
    assert fit.power == "VDD_CPU"
    assert 0.1 < fit.model.resistance_c_per_w < 20.0


@pytest.mark.parametrize(
    ("readings", "message"),
    [
        ([Reading(float(row), temperature_c=50.0) for row in range(100)], "power and temperature in 0 rows"),
        ([Reading(float(row), temperature_c=50.0, power_mw=1e3) for row in range(59)], "in 59 rows"),
        (
            [Reading(float(row), temperature_c=5.0, power_mw=1e3) for row in range(100)],
            "does not follow its power at an ambient temperature of 25 C",
        ),
    ],
)
def test_traces_that_tell_no_model(readings: list[Reading], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        calibrate_thermal(TelemetryTrace("poor", tuple(readings)))


@pytest.mark.parametrize(("resistance", "tau_s"), [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_a_model_without_sense_is_refused(resistance: float, tau_s: float) -> None:
    with pytest.raises(UsageError, match="not a positive number"):
        ThermalModel(resistance, tau_s)


@pytest.mark.skipif(not ORIN.is_file(), reason=f"the recorded log {ORIN} is not here")
def test_the_recorded_orin() -> None:
    fit = calibrate_thermal(load_trace(ORIN))
    assert fit.power == "VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0"
    assert 0.5 < fit.model.resistance_c_per_w < 2.0
    assert 60.0 < fit.model.time_constant_s < 600.0
    assert fit.rmse_c < 0.5
    assert fit.held_out_rmse_c < 1.0
