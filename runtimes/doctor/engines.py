"""Looking for engines and GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from nsn_edge.runtimes.doctor.device import Device, one_line, package
from nsn_edge.runtimes.doctor.findings import Finding, Status
from nsn_edge.runtimes.profiling.host import l4t_release, read_text

CPU_PROVIDER = "CPUExecutionProvider"
"""What every build of onnxruntime has."""

_GPU_PROVIDERS = {
    "CUDAExecutionProvider": "running rungs on an NVIDIA GPU",
    "TensorrtExecutionProvider": "running rungs through TensorRT, built on the first load",
}


def onnxruntime(device: Device) -> Iterable[Finding]:
    """onnxruntime and the providers of this build."""
    version = device.version_of("onnxruntime-gpu") or device.version_of("onnxruntime")
    gives = "running bundles"
    try:
        available = list(device.providers())
    except ImportError as error:
        broken = version is not None
        yield Finding(
            "engines",
            "onnxruntime",
            Status.FAULTY if broken else Status.ABSENT,
            f"{version} is installed and cannot be imported: {one_line(error)}" if broken else "not installed",
            gives,
            "pip install --force-reinstall onnxruntime" if broken else "pip install 'nsn-edge[ort]'",
        )
        return
    yield Finding("engines", "onnxruntime", Status.PRESENT, version or "version unknown", gives)
    if CPU_PROVIDER in available:
        yield Finding("engines", CPU_PROVIDER, Status.PRESENT, "available", "running every rung on the processor")
    for provider, provider_gives in _GPU_PROVIDERS.items():
        yield _gpu_provider(device, provider, provider_gives, available)


def _gpu_provider(device: Device, provider: str, gives: str, available: Sequence[str]) -> Finding:
    gpu = device.has_nvidia_gpu()
    if provider in available:
        # Built in is not the same as working: it starts when a graph is loaded, and needs the CUDA libraries then.
        detail = "built in; starts when a graph is loaded" if gpu else "built in, but no NVIDIA GPU was found"
        return Finding("engines", provider, Status.PRESENT if gpu else Status.FAULTY, detail, gives)
    if not gpu:
        return Finding("engines", provider, Status.ABSENT, "not in this build, and no NVIDIA GPU was found", gives)
    if l4t_release(device.root):
        install = "install an onnxruntime-gpu built for your JetPack: docs/jetson.md names where they are"
    else:
        install = "pip uninstall onnxruntime && pip install 'nsn-edge[ort-gpu]'"
    return Finding("engines", provider, Status.ABSENT, "not in this build of onnxruntime", gives, install)


def tokenizers(device: Device) -> Iterable[Finding]:
    """What turns text into ids."""
    yield package(device, "engines", "tokenizers", "ort", "answering text queries with nsn-edge run")


def gpus(device: Device) -> Iterable[Finding]:
    """NVIDIA GPUs, from `nvidia-smi` or the driver's files."""
    driver = read_text(device.root / "proc/driver/nvidia/version")
    listed = device.nvidia_smi()
    gives = "GPU providers of onnxruntime"
    if listed and listed.strip():
        for line in listed.strip().splitlines():
            yield Finding("gpus", "NVIDIA GPU", Status.PRESENT, line.strip(), gives)
        return
    names = [_gpu_model(path) for path in sorted((device.root / "proc/driver/nvidia/gpus").glob("*/information"))]
    for name in names:
        yield Finding("gpus", "NVIDIA GPU", Status.PRESENT, name or "model unknown", gives)
    if not names and driver:
        yield Finding("gpus", "NVIDIA GPU", Status.FAULTY, "the driver is loaded, and it lists no GPU", gives)
    if not names and not driver:
        yield Finding("gpus", "NVIDIA GPU", Status.ABSENT, "no driver, no nvidia-smi", gives)


def _gpu_model(path: Path) -> str | None:
    # The file also holds the GPU's UUID, which is nobody's business.
    for line in (read_text(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "Model":
            return value.strip() or None
    return None
