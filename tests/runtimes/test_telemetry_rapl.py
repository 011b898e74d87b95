"""The processor's energy counters: they wrap, begin anew, and are root's alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_tree import HandClock, write_cpu_clock, write_rapl

from nsn_edge.runtimes.telemetry import LinuxCpuClock, LinuxRapl, Reading
from nsn_edge.runtimes.telemetry.energy import EnergyMeter
from nsn_edge.runtimes.telemetry.sysfs import FORBIDDEN_RETRY_S


@pytest.fixture
def clock() -> HandClock:
    return HandClock(0.0)


def test_a_package_gives_energy_and_power(tmp_path: Path, clock: HandClock) -> None:
    source = LinuxRapl(tmp_path, clock)
    write_rapl(tmp_path, "0", "package-0", 5_000_000)
    write_rapl(tmp_path, "0:0", "core", 4_000_000)
    assert source.read() == Reading(0.0, energy_j=0.0)
    clock.now_s = 2.0
    write_rapl(tmp_path, "0", "package-0", 35_000_000)
    assert source.read() == Reading(2.0, energy_j=30.0, rails_mw={"package-0": 15_000.0})


def test_several_packages_are_added_up_and_the_platform_is_not(tmp_path: Path, clock: HandClock) -> None:
    source = LinuxRapl(tmp_path, clock)
    for joules in (0, 10):
        clock.now_s = float(joules)
        write_rapl(tmp_path, "0", "package-0", joules * 1_000_000)
        write_rapl(tmp_path, "1", "package-1", joules * 2_000_000)
        write_rapl(tmp_path, "2", "psys", joules * 9_000_000)
        reading = source.read()
    assert reading.energy_j == pytest.approx(30.0)
    assert reading.rails_mw == pytest.approx({"package-0": 1000.0, "package-1": 2000.0, "psys": 9000.0})


def test_where_only_the_platform_tells_it_counts(tmp_path: Path, clock: HandClock) -> None:
    source = LinuxRapl(tmp_path, clock)
    write_rapl(tmp_path, "0", "psys", 0)
    source.read()
    clock.now_s = 1.0
    write_rapl(tmp_path, "0", "psys", 7_000_000)
    assert source.read().energy_j == 7.0


def test_a_silent_package_makes_the_sum_unknown(tmp_path: Path, clock: HandClock) -> None:
    source = LinuxRapl(tmp_path, clock)
    write_rapl(tmp_path, "0", "package-0", 0)
    write_rapl(tmp_path, "1", "package-1", 0)
    source.read()
    clock.now_s = 1.0
    write_rapl(tmp_path, "0", "package-0", 3_000_000)
    write_rapl(tmp_path, "1", "package-1", "")
    assert source.read() == Reading(1.0, rails_mw={"package-0": 3000.0})
    clock.now_s = 2.0
    write_rapl(tmp_path, "1", "package-1", 8_000_000)
    assert source.read().energy_j == pytest.approx(11.0)


def test_a_power_over_no_time_is_not_told(tmp_path: Path, clock: HandClock) -> None:
    source = LinuxRapl(tmp_path, clock)
    write_rapl(tmp_path, "0", "package-0", 0)
    source.read()
    write_rapl(tmp_path, "0", "package-0", 61)
    assert source.read().rails_mw == {}


@given(
    start_uj=st.integers(0, 262_143_328_850),
    steps=st.lists(st.tuples(st.floats(0.01, 100.0), st.floats(0.0, 1999.0)), max_size=40),
    range_uj=st.integers(200_000_000_000, 262_143_328_850),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_a_counter_that_wraps_goes_on(
    tmp_path: Path, start_uj: int, steps: list[tuple[float, float]], range_uj: int
) -> None:
    """However it wraps, the energy is that of the powers between, and never falls."""
    clock = HandClock(0.0)
    source = LinuxRapl(tmp_path, clock)
    spent_j, told_j = 0.0, 0.0
    write_rapl(tmp_path, "0", "package-0", start_uj % range_uj, range_uj)
    source.read()
    for seconds, watts in steps:
        clock.now_s += seconds
        spent_j += seconds * watts
        write_rapl(tmp_path, "0", "package-0", (start_uj + round(spent_j * 1e6)) % range_uj, range_uj)
        energy_j = source.read().energy_j
        assert energy_j is not None
        assert energy_j >= told_j
        assert energy_j == pytest.approx(spent_j, abs=1e-3)
        told_j = energy_j


def test_a_counter_that_began_anew_after_a_suspend_did_not_wrap(tmp_path: Path, clock: HandClock) -> None:
    source = LinuxRapl(tmp_path, clock)
    for seconds, energy_uj in ((0.0, 90_000_000_000), (1.0, 90_010_000_000), (2.0, 4_000_000), (3.0, 9_000_000)):
        clock.now_s = seconds
        write_rapl(tmp_path, "0", "package-0", energy_uj)
        reading = source.read()
    assert reading.energy_j == pytest.approx(15.0)
    assert reading.rails_mw == pytest.approx({"package-0": 5000.0})


@pytest.mark.parametrize("range_uj", ["", 0, "NaN"])
def test_a_counter_of_unknown_range_that_falls_begins_anew(tmp_path: Path, clock: HandClock, range_uj: object) -> None:
    source = LinuxRapl(tmp_path, clock)
    for seconds, energy_uj in ((0.0, 50_000_000), (1.0, 55_000_000), (2.0, 1_000_000), (3.0, 3_000_000)):
        clock.now_s = seconds
        write_rapl(tmp_path, "0", "package-0", energy_uj, range_uj)
        energy_j = source.read().energy_j
    assert energy_j == pytest.approx(7.0)


@given(values=st.lists(st.floats(0.0, 1e12), max_size=20), wraps=st.none() | st.floats(1.0, 1e6))
def test_a_meter_never_falls_whatever_the_counter_says(values: list[float], wraps: float | None) -> None:
    meter, before = EnergyMeter(), 0.0
    for seconds, value in enumerate(values):
        meter.add(value, float(seconds), wraps)
        assert before <= meter.total_j <= 1e4 * (seconds + 1)
        before = meter.total_j


def test_counters_that_are_roots_alone_are_asked_once_and_not_each_second(
    tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidden = write_rapl(tmp_path, "0", "package-0", 1) / "energy_uj"
    asked: list[Path] = []
    real = os.open

    def guard(path: Any, *arguments: Any, **keywords: Any) -> int:
        if Path(path) == forbidden:
            asked.append(forbidden)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", guard)
    source = LinuxRapl(tmp_path, clock)
    for _ in range(200):
        assert source.read() == Reading(clock.now_s)
        clock.now_s += 1.0
    assert len(asked) == 1
    assert source.refusals == {forbidden: errno.EACCES}
    monkeypatch.undo()  # the administrator allows it
    clock.now_s += FORBIDDEN_RETRY_S
    assert source.read().energy_j == 0.0


def test_a_device_without_counters(tmp_path: Path, clock: HandClock) -> None:
    assert LinuxRapl(tmp_path, clock).read() == Reading(0.0)
    (tmp_path / "sys/class/powercap/intel-rapl").mkdir(parents=True)  # the control type, no zone
    (tmp_path / "sys/class/powercap/intel-rapl-mmio:0").mkdir()  # the same counters by another way
    assert LinuxRapl(tmp_path, clock).read() == Reading(0.0)


# --- the processor's clock ------------------------------------------------------------------------------------------


def test_the_fastest_core_counts(tmp_path: Path) -> None:
    for policy, khz in enumerate((800_000, 3_400_123, 1_200_000)):
        write_cpu_clock(tmp_path, policy, khz)
    assert LinuxCpuClock(tmp_path, lambda: 1.0).read() == Reading(1.0, cpu_mhz=3400.123)


@pytest.mark.parametrize("khz", ["0", "<unknown>", "", "-1"])
def test_a_core_that_is_offline_has_no_clock(tmp_path: Path, khz: str) -> None:
    write_cpu_clock(tmp_path, 0, khz)
    source = LinuxCpuClock(tmp_path, lambda: 1.0)
    assert source.read() == Reading(1.0)
    write_cpu_clock(tmp_path, 1, 1_500_000)
    assert source.read().cpu_mhz == 1500.0


def test_a_machine_without_cpufreq(tmp_path: Path) -> None:
    assert LinuxCpuClock(tmp_path, lambda: 1.0).read() == Reading(1.0)
