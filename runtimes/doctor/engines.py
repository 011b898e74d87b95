"""Looking for engines and GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from nsn_edge.runtimes.doctor.device import Device, one_line, package
from nsn_edge.runtimes.doctor.findings import Finding, Status
from nsn_edge.runtimes.profiling.host import l4t_release, machine_model, read_text

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
        install = "install the onnxruntime-gpu wheel that NVIDIA builds for your JetPack"
    else:
        install = "pip uninstall onnxruntime && pip install 'nsn-edge[ort-gpu]'"
    return Finding("engines", provider, Status.ABSENT, "not in this build of onnxruntime", gives, install)


def tokenizers(device: Device) -> Iterable[Finding]:
    """What turns text into ids."""
    yield package(device, "engines", "tokenizers", "ort", "answering text queries with nsn-edge run")


def tensorrt(device: Device) -> Iterable[Finding]:
    """TensorRT, from JetPack, TensorRT-RTX, and what runs the engines that either builds."""
    version = device.version_of("tensorrt")
    found = version is not None or device.has_module("tensorrt")
    gives = "building engines on this GPU and running them: nsn-edge build, run --engine tensorrt"
    detail = (version or "found, version unknown") if found else "not installed; JetPack brings it"
    yield Finding("engines", "tensorrt", Status.PRESENT if found else Status.ABSENT, detail, gives)
    rtx = device.version_of("tensorrt-rtx")
    yield Finding(
        "engines",
        "tensorrt-rtx",
        Status.PRESENT if rtx else Status.ABSENT,
        rtx or "not installed",
        "building engines for RTX GPUs, here or ahead of time, and running them: run --engine tensorrt-rtx",
        None if rtx or not device.has_nvidia_gpu() else "pip install 'nsn-edge[rtx]'",
    )
    bindings = device.version_of("cuda-bindings") or device.version_of("cuda-python")
    yield Finding(
        "engines",
        "CUDA bindings",
        Status.PRESENT if bindings else Status.ABSENT,
        bindings or "not installed",
        "running TensorRT engines; building them needs none",
        None if bindings or not device.has_nvidia_gpu() else "pip install 'nsn-edge[tensorrt]'",
    )


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


def nvml(device: Device) -> Iterable[Finding]:
    """The Python bindings of NVML."""
    version = device.version_of("nvidia-ml-py")
    yield Finding(
        "gpus",
        "NVML bindings",
        Status.PRESENT if version else Status.ABSENT,
        version or "not installed",
        "reading an NVIDIA GPU's power and energy",
        "pip install 'nsn-edge[nvml]'" if version is None and device.has_nvidia_gpu() else None,
    )


def jetson(device: Device) -> Iterable[Finding]:
    """Whether this is a Jetson, and which."""
    release = l4t_release(device.root)
    model = machine_model(device.root)
    if release:
        yield Finding("gpus", "Jetson", Status.PRESENT, f"{model or 'unknown board'}, L4T {release}")
    else:
        yield Finding("gpus", "Jetson", Status.ABSENT, "this is none")
