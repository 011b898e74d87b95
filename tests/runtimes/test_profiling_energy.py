"""Energy of a call: a counter that moves in steps, a meter of power, and sensors that do not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from timed_engine import CALL_MJ, RUN_MS, FakeEngine, FakeSensors

from nsn_edge.bundle import Bundle
from nsn_edge.errors import EngineError, NsnEdgeError, UsageError
from nsn_edge.runtimes.profiling import (
    EnergyMethod,
    EnergySettings,
    MeasureSettings,
    Profile,
    ProfileSettings,
    profile_bundle,
    sensors,
)
from nsn_edge.runtimes.telemetry import DeviceTelemetry, Reading

FEW = MeasureSettings(warmup=1, min_repetitions=10, min_time_s=0.0)


def profile(path: Path, engine: FakeEngine, sensors: Any, **energy: Any) -> Profile:
    settings = ProfileSettings(measure=FEW, energy=EnergySettings(**energy))
    return profile_bundle(Bundle.open(path), engine, settings, source=sensors, clock=engine.clock, sleep=engine.sleep)


@pytest.mark.parametrize("step_s", [0.0, 0.02, 0.1])
def test_a_counter_gives_what_calls_draw_beyond_idling(tiny_bundle: tuple[Path, Any], step_s: float) -> None:
    engine = FakeEngine()
    found = profile(tiny_bundle[0], engine, FakeSensors(engine, step_s=step_s))
    assert found.energy is not None
    assert found.energy.kind == "counter"
    assert "idle power times time subtracted" in found.energy.method
    assert found.energy.idle_mw == pytest.approx(6000.0, rel=0.01)
    for rung in found.rungs:
        assert rung.energy_mj == pytest.approx(CALL_MJ[rung.rank], rel=0.02)
        assert len(rung.energy_rounds_mj) == 2
        assert rung.latency.p50_ms == pytest.approx(RUN_MS[rung.rank])  # no sensor is read in a timed call
    assert not [warning for warning in found.warnings if "energy" in warning]
    assert Profile.from_json(found.to_json()).to_json() == found.to_json()


def test_power_times_time_where_nothing_counts(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    found = profile(tiny_bundle[0], engine, FakeSensors(engine, counter=False), turn_s=2.0)
    assert found.energy is not None
    assert (found.energy.kind, found.energy.idle_mw) == ("power", pytest.approx(6000.0))
    for rung in found.rungs:
        assert rung.energy_mj == pytest.approx(CALL_MJ[rung.rank], rel=0.02)


def test_a_counter_that_stands_still_is_none(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    by_power = profile(tiny_bundle[0], engine, FakeSensors(engine, step_s=1e9)).energy
    assert by_power is not None
    assert (by_power.kind, by_power.idle_mw) == ("power", pytest.approx(6000.0))
    engine = FakeEngine()
    found = profile(tiny_bundle[0], engine, FakeSensors(engine, step_s=1e9, meter=False))
    assert [rung.energy_mj for rung in found.rungs] == [None] * 4
    assert "energy is unknown: no sensor of energy or power answers here" in found.warnings


def test_without_a_sensor_energy_is_unknown_and_said(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    found = profile(tiny_bundle[0], engine, FakeSensors(engine, counter=False, meter=False))
    assert [rung.energy_mj for rung in found.rungs] == [None] * 4
    assert found.energy == EnergyMethod(None, "no sensor of energy or power answers here", None)
    assert "energy is unknown: no sensor of energy or power answers here" in found.warnings
    before = engine.now_s
    assert profile(tiny_bundle[0], engine, FakeSensors(engine), turn_s=0.0).energy is None  # not asked for
    assert engine.now_s - before < 2.0  # nor waited for


def test_a_sensor_that_raises_is_none(tiny_bundle: tuple[Path, Any]) -> None:
    class Broken:
        def read(self) -> Reading:
            raise TypeError("a gated file")

    found = profile(tiny_bundle[0], FakeEngine(), Broken())
    assert [rung.energy_mj for rung in found.rungs] == [None] * 4
    assert found.conditions is not None
    assert found.conditions.before == {}


def test_a_counter_that_is_lost_halfway_leaves_what_is_not_known_unknown(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    sensors = FakeSensors(engine, meter=False)

    class Dying:
        def read(self) -> Reading:
            # The first load takes 5 s, idling 2 s: it dies while energy is measured.
            return sensors.read() if engine.now_s < 12.0 else Reading(engine.now_s)

    found = profile(tiny_bundle[0], engine, Dying())
    unknown = [rung for rung in found.rungs if rung.energy_mj is None]
    assert unknown
    assert any(warning.startswith("energy is unknown for ") for warning in found.warnings)


def test_less_than_idle_is_unknown_not_negative(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    sensors = FakeSensors(engine)

    class Cooling:
        """Its fan stops after it idled: the work seems to take less than nothing."""

        def read(self) -> Reading:
            reading = sensors.read()
            late = max(0.0, engine.now_s - 2.5)
            assert reading.energy_j is not None
            return Reading(engine.now_s, energy_j=reading.energy_j - engine.spent_mj / 1e3 - late)

    assert [rung.energy_mj for rung in profile(tiny_bundle[0], engine, Cooling()).rungs] == [None] * 4


def test_bad_settings_and_bad_documents(tiny_bundle: tuple[Path, Any]) -> None:
    for change in ({"turn_s": -1.0}, {"rounds": 0}, {"idle_s": 0.0}, {"turn_s": float("nan")}):
        with pytest.raises(UsageError, match="cannot measure energy"):
            EnergySettings(**change)
    with pytest.raises(NsnEdgeError, match="energy is not readable"):
        EnergyMethod.from_json({"kind": "counter"})


def test_only_the_part_that_knows_is_asked_often(tiny_bundle: tuple[Path, Any]) -> None:
    engine = FakeEngine()
    counter, asked = FakeSensors(engine), [0]

    class Slow:
        """A part that tells nothing of energy, or raises."""

        def read(self) -> Reading:
            asked[0] += 1
            if asked[0] % 2:
                raise OSError
            return Reading(engine.now_s, temperature_c=50.0)

    parts = {"slow": Slow(), "meter": FakeSensors(engine, counter=False), "counter": counter}
    found = profile(tiny_bundle[0], engine, DeviceTelemetry(parts, engine.clock))
    assert found.energy is not None
    assert found.energy.kind == "counter"
    assert found.rungs[0].energy_mj == pytest.approx(CALL_MJ[2], rel=0.02)
    assert asked[0] < 10


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_gpus_sensors_are_of_an_engine_that_runs_there(monkeypatch: pytest.MonkeyPatch, on_gpu: bool) -> None:
    class Gpu:
        closed = False

        def __enter__(self) -> Gpu:
            return self

        def __exit__(self, *error: object) -> None:
            Gpu.closed = True

        def __getattr__(self, name: str) -> Any:
            return lambda: {"energy_mj": 5e6, "power_mw": 9e4, "sm_clock_mhz": 1200.0}.get(name)

    monkeypatch.setattr(sensors.NvmlGpu, "open", lambda: Gpu())
    with sensors.sensors_for({"provider": "cuda" if on_gpu else "cpu"}) as source:
        assert ("gpu" in source.parts) is on_gpu
        reading = source.read()
        if on_gpu:
            assert (reading.power_mw, reading.gpu_mhz) == (9e4, 1200.0)
            gpu = sensors.energy_sensor(source)
            assert isinstance(gpu, sensors.GpuSensors)
            assert gpu.read().energy_j == 5e3
    assert Gpu.closed is on_gpu


def test_without_nvml_the_machine_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise EngineError("NVML does not start")

    monkeypatch.setattr(sensors.NvmlGpu, "open", absent)
    with sensors.sensors_for({"provider": "cuda"}) as source:
        assert "gpu" not in source.parts
        assert source.read().gpu_mhz is None
