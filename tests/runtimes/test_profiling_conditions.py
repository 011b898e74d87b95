"""How the device was while it was measured: steady by the stated rule, throttled, settled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from timed_engine import FakeEngine, FakeSensors

from nsn_edge.bundle import Bundle
from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.runtimes.profiling import Conditions, EnergySettings, MeasureSettings, ProfileSettings, profile_bundle
from nsn_edge.runtimes.profiling.conditions import Watcher, is_steady, latency_change

START_S = 5.0  # the engine's start


def conditions(path: Path, engine: FakeEngine, sensors: Any, seconds: float, settle_s: float = 0.0) -> Conditions:
    measure = MeasureSettings(warmup=0, min_repetitions=1, min_time_s=seconds / 4, max_time_s=1e4)
    settings = ProfileSettings(measure=measure, energy=EnergySettings(turn_s=0.0), settle_s=settle_s)
    profile = profile_bundle(
        Bundle.open(path), engine, settings, source=sensors, clock=engine.clock, sleep=engine.sleep
    )
    found = profile.conditions
    assert found is not None
    assert Conditions.from_json(found.to_json()) == found
    assert (found.steady is False) == any("not steady" in warning for warning in profile.warnings)
    assert bool(found.throttled) == any("throttled" in warning for warning in profile.warnings)
    return found


def test_a_device_that_holds_still_is_steady(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    sensors = FakeSensors(
        engine,
        others=lambda now_s: {"temperature_c": 55.0, "power_mode": "15W", "cpu_mhz": 1500.0, "throttling": False},
    )
    found = conditions(tiny_bundle[0], engine, sensors, seconds=60.0)
    assert (found.steady, found.throttled, found.power_mode) == (True, False, "15W")
    assert found.temperature_slope_c_per_min == pytest.approx(0.0)
    assert found.latency_change == pytest.approx(0.0, abs=1e-6)
    assert found.duration_s > 60.0
    assert 100 < len(found.samples) <= 240
    assert found.samples[0].cpu_mhz == 1500.0
    assert found.before["temperature_c"] == found.after["temperature_c"] == 55.0


def test_one_that_warms_up_is_not(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    sensors = FakeSensors(engine, others=lambda now_s: {"temperature_c": 40.0 + now_s / 10})  # 6 degrees a minute
    found = conditions(tiny_bundle[0], engine, sensors, seconds=60.0)
    assert found.steady is False
    assert found.temperature_slope_c_per_min == pytest.approx(6.0, rel=0.05)


def test_one_that_slows_down_is_not_even_without_a_thermometer(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine(slowdown=lambda now_s: 1.0 if now_s < 15.0 else 1.2)
    found = conditions(tiny_bundle[0], engine, FakeSensors(engine), seconds=20.0)
    assert (found.steady, found.temperature_change_c) == (False, None)
    assert found.latency_change == pytest.approx(0.2, abs=0.05)


def test_a_short_run_and_one_without_a_thermometer_cannot_tell(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    warm = FakeSensors(engine, others=lambda now_s: {"temperature_c": 55.0})
    assert conditions(tiny_bundle[0], engine, warm, seconds=8.0).steady is None
    engine = FakeEngine()
    blind = conditions(tiny_bundle[0], engine, FakeSensors(engine), seconds=60.0)
    assert (blind.steady, blind.throttled) == (None, None)


@pytest.mark.parametrize("sign", ["throttling", "over_current"])
def test_throttling_for_a_moment_is_seen(tiny_bundle: tuple[Path, Any], sign: str) -> None:
    engine = FakeEngine()

    def others(now_s: float) -> Mapping[str, Any]:
        return {sign: 12.0 < now_s < 13.0}

    assert conditions(tiny_bundle[0], engine, FakeSensors(engine, others=others), seconds=30.0).throttled is True


def test_settling_waits_until_heat_comes_to_rest_and_no_longer(tiny_bundle: tuple[Path, Any]) -> None:
    def warmth(now_s: float) -> dict[str, Any]:
        return {"temperature_c": min(40.0 + (now_s - START_S) / 2, 70.0)}  # at rest after a minute

    engine = FakeEngine()
    found = conditions(tiny_bundle[0], engine, FakeSensors(engine, others=warmth), seconds=40.0, settle_s=600.0)
    assert 60.0 < found.settled_s < 100.0
    assert found.steady is True
    engine = FakeEngine()
    found = conditions(tiny_bundle[0], engine, FakeSensors(engine, others=warmth), seconds=40.0, settle_s=20.0)
    assert found.settled_s == pytest.approx(20.0, abs=0.1)
    engine = FakeEngine()  # without a thermometer nobody knows: all of it
    assert conditions(tiny_bundle[0], engine, FakeSensors(engine), seconds=1.0, settle_s=30.0).settled_s >= 30.0
    with pytest.raises(UsageError, match="settle for -1"):
        ProfileSettings(settle_s=-1.0)


def test_the_rule() -> None:
    assert is_steady(2.0, 0.05, 30.0) is True
    assert is_steady(-2.1, 0.0, 300.0) is False
    assert is_steady(0.0, -0.06, 5.0) is False
    assert is_steady(0.0, 0.0, 29.0) is None
    assert is_steady(None, 0.0, 300.0) is None
    assert is_steady(0.0, None, 300.0) is None
    # Rungs of different speed are put together by their own medians.
    turns = [(float(at), rank, rank * (1.0 if at < 15 else 1.1)) for at in range(30) for rank in (2, 16)]
    assert latency_change(turns, 29.0) == pytest.approx(0.1, abs=0.01)
    assert latency_change([], 0.0) is None


def test_nothing_measured_is_no_error() -> None:
    engine = FakeEngine()
    found = Watcher(FakeSensors(engine), engine.clock).conditions()
    assert (found.duration_s, found.samples, found.steady) == (0.0, (), None)
    with pytest.raises(NsnEdgeError, match="conditions are not readable"):
        Conditions.from_json({"samples": [3]})
