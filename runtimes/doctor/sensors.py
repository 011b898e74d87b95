"""What each sensor answers now, with its unit, or why it does not: absent, asleep, or root's alone.

The readers are those that telemetry uses, so that what is said here is what a policy would see.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from nsn_edge.runtimes.doctor.device import Device
from nsn_edge.runtimes.doctor.findings import Finding, Status
from nsn_edge.runtimes.profiling.host import l4t_release
from nsn_edge.runtimes.telemetry import LinuxBattery, LinuxCpuClock, LinuxRapl, LinuxThermal, NvmlTelemetry, Reading
from nsn_edge.runtimes.telemetry.cpufreq import FOLDER as CPUFREQ_FOLDER
from nsn_edge.runtimes.telemetry.jetson.gpu import GpuFiles
from nsn_edge.runtimes.telemetry.jetson.ina3221 import PowerRails
from nsn_edge.runtimes.telemetry.jetson.over_current import OverCurrent
from nsn_edge.runtimes.telemetry.rapl import FOLDER as RAPL_FOLDER
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

_SUPPLIES, _ZONES, _CHIPS = "/sys/class/power_supply", "/sys/class/thermal", "/sys/class/hwmon"
_ENERGY = "joules per answer"
_LOAD = "what limits the speed now"
_FORBIDDEN = (errno.EACCES, errno.EPERM)


def battery(device: Device) -> Iterable[Finding]:
    """Battery, energy left, mains and battery power."""
    source = LinuxBattery(device.root)
    reading = source.read()
    supply = {True: "on mains", False: "on battery", None: None}[reading.on_mains]
    left = None if reading.battery_j is None else f"{reading.battery_j / 3600:.1f} Wh ({reading.battery_j:.0f} J)"
    why = source.refusals, _SUPPLIES
    yield _sensor("battery", _value(reading.battery_pct, "%"), "rungs that follow the battery", device, *why)
    yield _sensor("energy left", left, "lasting until a given time", device, *why)
    yield _sensor("mains", supply, "full power while plugged in", device, *why)
    yield _sensor("battery power", _value(reading.power_mw, "mW"), _ENERGY, device, *why)


def thermal(device: Device) -> Iterable[Finding]:
    """Temperature and throttling."""
    source = LinuxThermal(device.root)
    reading = source.read()
    temperature = _value(reading.temperature_c, "°C", 1)
    if temperature and reading.temperature_limit_c is not None:
        temperature += f", throttles at {reading.temperature_limit_c:.1f} °C"
    yield _sensor("temperature", temperature, "rungs that follow the heat", device, source.refusals, _ZONES)
    throttling = {True: "throttling now", False: "not throttling", None: None}[reading.throttling]
    gives = "stepping down the moment the chip slows down"
    yield _sensor("throttling alert", throttling, gives, device, source.refusals, _ZONES)


def board(device: Device) -> Iterable[Finding]:
    """What Jetson boards have besides: power rails (INA3221), over-current, the GPU's load and clock."""
    files = SensorFiles()
    rails = PowerRails(device.root, files).read_mw()
    says = ", ".join(f"{rail} {power_mw:.0f} mW" for rail, power_mw in rails.items())
    yield _sensor("power rails", says or None, "power per rail", device, files.refusals, _CHIPS)
    if l4t_release(device.root) is None:
        return
    counters = OverCurrent(device.root, files)
    counters.acted()  # the first reading has nothing to compare with
    acted = {True: "acting now", False: "quiet", None: None}[counters.acted()]
    yield _sensor("over-current", acted, "stepping down before the board is cut off", device, files.refusals, _CHIPS)
    gpu = GpuFiles(device.root, files)
    yield _sensor("GPU load", _value(gpu.load_pct(), "%"), _LOAD, device, files.refusals, "/sys/devices")
    yield _sensor("GPU clock", _value(gpu.clock_mhz(), "MHz"), _LOAD, device, files.refusals, "/sys/class/devfreq")


def processor(device: Device) -> Iterable[Finding]:
    """The processor's energy counters, asked twice for the power between, and its clock."""
    rapl = LinuxRapl(device.root)
    reading = rapl.read()
    if reading.energy_j is not None:
        device.pause()
        reading = rapl.read()
    rails = ", ".join(f"{zone} {power_mw:.0f} mW" for zone, power_mw in reading.rails_mw.items())
    says = rails or "counting" if reading.energy_j is not None else None
    yield _sensor("processor energy", says, _ENERGY, device, rapl.refusals, f"/{RAPL_FOLDER}")
    clock = LinuxCpuClock(device.root)
    mhz = _value(clock.read().cpu_mhz, "MHz")
    yield _sensor("processor clock", mhz, _LOAD, device, clock.refusals, f"/{CPUFREQ_FOLDER}")


def gpu(device: Device) -> Iterable[Finding]:
    """An NVIDIA GPU through NVML. One that sleeps is not woken for this."""
    nvml = device.nvml() if device.has_nvidia_gpu() else None
    if nvml is None:
        return  # that the bindings are missing is said beside the driver
    gives = "heat, power and energy of the GPU"
    with NvmlTelemetry(root=device.root, nvml=nvml) as source:
        if source.sleeps:
            yield Finding("sensors", "GPU", Status.PRESENT, "sleeps, and was not woken", gives)
            return
        reading = source.read()
        says = _gpu_says(reading)
        lacks = ", ".join(sorted(name.removeprefix("nvmlDeviceGet") for name in source.disabled))
    if says is None:
        jetson = l4t_release(device.root) is not None  # most of them have no NVML, and their files tell
        detail = "NVML does not answer" + ("" if jetson else "; nvidia-smi says more")
        yield Finding("sensors", "GPU", Status.ABSENT if jetson else Status.FAULTY, detail, gives)
    else:
        detail = f"{says}; not supported: {lacks}" if lacks else says
        yield Finding("sensors", "GPU", Status.PRESENT, detail, gives)


def _gpu_says(reading: Reading) -> str | None:
    known = (
        _value(reading.temperature_c, "°C"),
        _value(reading.power_mw, "mW"),
        "energy counter" if reading.energy_j is not None else None,
        None if reading.gpu_load_pct is None else f"load {reading.gpu_load_pct:.0f} %",
        _value(reading.gpu_mhz, "MHz"),
        "throttling now" if reading.throttling else None,
    )
    return ", ".join(part for part in known if part) or None


def _value(value: float | None, unit: str, digits: int = 0) -> str | None:
    return None if value is None else f"{value:.{digits}f} {unit}"


def _sensor(
    name: str, says: str | None, gives: str, device: Device, refusals: Mapping[Path, int], where: str
) -> Finding:
    """What a sensor says; where it is silent, what refused: a file that is there is no absent sensor."""
    if says:
        return Finding("sensors", name, Status.PRESENT, says, gives)
    forbidden = [path for path, code in refusals.items() if code in _FORBIDDEN]
    if forbidden:
        allow = " ".join(str(_plain(device, path)) for path in forbidden)
        detail = (
            f"no permission: {_names(device, forbidden)} is for root alone (docs/telemetry.md says how to allow it)"
        )
        return Finding("sensors", name, Status.FAULTY, detail, gives, f"sudo chmod a+r {allow}")
    asleep = [path for path, code in refusals.items() if code == errno.EAGAIN]
    if asleep:
        return Finding("sensors", name, Status.ABSENT, f"asleep (EAGAIN): {_names(device, asleep)}", gives)
    if refusals:
        path, code = next(iter(refusals.items()))
        detail = f"{_names(device, [path])} answers {errno.errorcode.get(code, code)}: {os.strerror(code)}"
        return Finding("sensors", name, Status.FAULTY, detail, gives)
    return Finding("sensors", name, Status.ABSENT, f"none in {where}", gives)


def _plain(device: Device, path: Path) -> Path:
    return Path("/") / path.relative_to(device.root)


def _names(device: Device, paths: list[Path]) -> str:
    first = str(_plain(device, paths[0]))
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
