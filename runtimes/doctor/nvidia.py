"""NVIDIA's software as it lies on the disk: JetPack, CUDA and TensorRT libraries, TensorRT's Python module, NVML.

Files are looked at and nothing is loaded: a broken driver can take the process with it. On a Jetson, JetPack installs
all of this as Debian packages; TensorRT's Python module lands in the system's dist-packages, for the system's Python
alone, where a plain virtual environment does not see it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from nsn_edge.runtimes.doctor.device import Device
from nsn_edge.runtimes.doctor.findings import Finding, Status
from nsn_edge.runtimes.profiling.host import l4t_release, machine_model, read_text
from nsn_edge.runtimes.telemetry.jetson import JetsonBoard

_LIBRARY_FOLDERS = (
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/aarch64-linux-gnu/nvidia",
    "usr/lib/aarch64-linux-gnu/tegra",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/local/cuda/lib64",
    "usr/local/cuda/targets/aarch64-linux/lib",
    "usr/local/cuda/targets/sbsa-linux/lib",
)

_LIBRARIES = ("cudart", "cublas", "cudnn", "nvinfer")

_VENV = "python3 -m venv --system-site-packages .venv, with the system's python3"


def jetson(device: Device) -> Iterable[Finding]:
    """Whether this is a Jetson, which, with which JetPack, in which power mode."""
    release = l4t_release(device.root)
    if not release:
        yield Finding("gpus", "Jetson", Status.ABSENT, "this is none")
        return
    jetpack = JetsonBoard(l4t=release).jetpack
    board = machine_model(device.root) or "unknown board"
    jetpack_says = f" (JetPack {jetpack})" if jetpack else ""
    yield Finding("gpus", "Jetson", Status.PRESENT, f"{board}, L4T {release}{jetpack_says}")
    mode = _power_mode(device.root)
    yield Finding(
        "gpus",
        "power mode",
        Status.PRESENT if mode else Status.ABSENT,
        mode or "the board does not say; sudo nvpmodel -q asks it",
        "knowing what a latency was measured at; nsn-edge never sets it",
    )


def _power_mode(root: Path) -> str | None:
    """The name of the current mode: its number by what nvpmodel left, its name by the board's table. Numbers mean
    different modes on different boards."""
    status = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    if not status:
        return None
    number = int(status[1])
    table = read_text(root / "etc/nvpmodel.conf") or ""
    for found in re.finditer(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", table):
        if int(found[1]) == number:
            return f"{found[2]} ({number})"
    return f"number {number}"


def tensorrt(device: Device) -> Iterable[Finding]:
    """TensorRT's Python module, from JetPack or a package, TensorRT-RTX, and what runs the engines of either."""
    gives = "building engines on this GPU and running them: nsn-edge build, run --engine tensorrt"
    visible = device.version_of("tensorrt")
    if visible or device.has_module("tensorrt"):
        version = visible or next((version for _, version in _system_modules(device.root) if version), None)
        yield Finding("engines", "tensorrt", Status.PRESENT, version or "found, version unknown", gives)
    elif hidden := next(_system_modules(device.root), None):
        folder, version = hidden
        yield Finding(
            "engines",
            "tensorrt",
            Status.FAULTY,
            f"{version or 'version unknown'} is in /{folder.relative_to(device.root)}, which this Python does not see",
            gives,
            _VENV,
        )
    else:
        on_jetson = l4t_release(device.root) is not None
        detail = "not installed" if on_jetson else "not installed; on a Jetson JetPack brings it"
        install = "sudo apt install python3-libnvinfer" if on_jetson else None
        yield Finding("engines", "tensorrt", Status.ABSENT, detail, gives, install)
    rtx = device.version_of("tensorrt-rtx")
    yield Finding(
        "engines",
        "tensorrt-rtx",
        Status.PRESENT if rtx else Status.ABSENT,
        rtx or "not installed",
        "building engines for RTX GPUs, here or ahead of time, and running them: run --engine tensorrt-rtx",
        None if rtx or not _has_card(device) else "pip install 'nsn-edge[rtx]'",
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


def _has_card(device: Device) -> bool:
    """An NVIDIA GPU that is no Jetson's: TensorRT-RTX is for cards."""
    return device.has_nvidia_gpu() and l4t_release(device.root) is None


def _system_modules(root: Path) -> Iterator[tuple[Path, str | None]]:
    """TensorRT's module in the system's Python folders, and its version by the metadata beside it."""
    for folder in sorted(root.glob("usr/lib/python3*/dist-packages/tensorrt")):
        beside = sorted(folder.parent.glob("tensorrt-*.dist-info")) + sorted(folder.parent.glob("tensorrt-*.egg-info"))
        version = re.match(r"tensorrt-([\d.]+\d)", beside[0].name) if beside else None
        yield folder.parent, version[1] if version else None


def cuda_libraries(device: Device) -> Iterable[Finding]:
    """The driver's library and those of CUDA, cuDNN and TensorRT, by the versions in their files' names."""
    driver = _library_version(device.root, "cuda")
    gpu = device.has_nvidia_gpu()
    yield Finding(
        "gpus",
        "CUDA driver",
        Status.PRESENT if driver else Status.FAULTY if gpu else Status.ABSENT,
        f"libcuda {driver}" if driver else "no libcuda" + (", though there is a GPU" if gpu else ""),
        "anything on the GPU",
    )
    found = {name: version for name in _LIBRARIES if (version := _library_version(device.root, name))}
    yield Finding(
        "gpus",
        "CUDA libraries",
        Status.PRESENT if found else Status.ABSENT,
        ", ".join(f"{name} {version}" for name, version in found.items())
        or "none in the system's folders; packages may bring their own",
        "GPU providers of onnxruntime, TensorRT",
        "sudo apt install nvidia-jetpack" if not found and l4t_release(device.root) else None,
    )


def _library_version(root: Path, name: str) -> str | None:
    """The longest version that a file `lib<name>.so.<version>` bears."""
    versions = [
        found[1]
        for folder in _LIBRARY_FOLDERS
        for path in (root / folder).glob(f"lib{name}.so.*")
        if (found := re.fullmatch(rf"lib{name}\.so\.([\d.]*\d)", path.name))
    ]
    return max(versions, key=len, default=None)


def nvml(device: Device) -> Iterable[Finding]:
    """NVML: the driver's library, and its Python bindings."""
    library = _library_version(device.root, "nvidia-ml")
    gives = "reading an NVIDIA GPU's power and energy"
    version = device.version_of("nvidia-ml-py")
    gpu = device.has_nvidia_gpu()
    yield Finding(
        "gpus",
        "NVML",
        Status.PRESENT if library else Status.ABSENT,
        f"libnvidia-ml {library}" if library else "no libnvidia-ml",
        gives,
    )
    yield Finding(
        "gpus",
        "NVML bindings",
        Status.PRESENT if version else Status.ABSENT,
        version or "not installed",
        gives,
        "pip install 'nsn-edge[nvml]'" if version is None and gpu else None,
    )
