"""What is there: the GPU, its driver, and the libraries that the other sections would use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gpu_check.section import Section
from nsn_edge.runtimes.doctor import Device, examine
from nsn_edge.runtimes.profiling.host import describe_host, installed_version
from nsn_edge.runtimes.telemetry import NvmlGpu

_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-python", "nvidia-ml-py")


def run(section: Section) -> None:
    """Fill `facts`."""
    facts = section.results.facts
    facts["host"] = describe_host().to_json()
    facts["packages"] = {name: version for name in _PACKAGES if (version := installed_version(name))}
    for name, ask in (("doctor", _doctor), ("torch", _torch), ("nvml", _nvml)):
        section.part(name, partial(_note, facts, name, ask))


def _note(facts: dict[str, Any], name: str, ask: Callable[[], Any]) -> None:
    facts[name] = ask()


def _doctor() -> list[dict[str, Any]]:
    return [finding.to_json() for finding in examine().findings if finding.area in ("engines", "gpus")]


def gpu_is_there() -> bool:
    """Whether any sign of an NVIDIA GPU is found: the driver's files, a Jetson's, NVML."""
    if Device().has_nvidia_gpu() or Path("/dev/nvidiactl").exists():
        return True
    return not isinstance(_nvml(), str)


def _torch() -> dict[str, Any] | None:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    facts: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": device.name,
            "compute_capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "memory_bytes": device.total_memory,
            "l2_bytes": getattr(device, "L2_cache_size", None),
            "unified_memory": bool(getattr(device, "is_integrated", False)),
        }
    return facts


def _nvml() -> dict[str, Any] | str:
    try:
        gpu = NvmlGpu.open()
    except Exception as error:  # the package may be absent, the driver too
        return str(error)
    with gpu:
        return {
            "name": gpu.name(),
            "driver": gpu.driver(),
            "temperature_c": gpu.temperature_c(),
            "slowdown_c": gpu.slowdown_c(),
            "throttling": gpu.throttling(),
            "sm_clock_mhz": gpu.sm_clock_mhz(),
            "power_mw": gpu.power_mw(),
            "has_energy_counter": gpu.energy_mj() is not None,
            "memory_used_bytes": gpu.memory_used_bytes(),
            "not_supported": sorted(gpu.disabled),
        }
