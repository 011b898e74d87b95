"""What the doctor asks, and how: everything here can be replaced by a test."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nsn_edge.errors import MissingDependencyError
from nsn_edge.runtimes.doctor.findings import Finding, Status
from nsn_edge.runtimes.profiling.host import installed_version, l4t_release
from nsn_edge.runtimes.telemetry.nvml import import_nvml


def _import_providers() -> Sequence[str]:
    import onnxruntime

    # In a container it would complain on the console about devices that are not there.
    onnxruntime.set_default_logger_severity(3)
    return list(onnxruntime.get_available_providers())


def _nvidia_smi() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"nvidia-smi failed: {(done.stderr or done.stdout).strip()[:200]}")
    return done.stdout


def _import_nvml() -> Any:
    try:
        return import_nvml()
    except MissingDependencyError:
        return None


@dataclass(frozen=True)
class Device:
    """Everything the doctor asks, replaceable by a test."""

    root: Path = Path("/")
    """Where `/proc`, `/sys` and `/etc` are looked for."""
    version_of: Callable[[str], str | None] = installed_version
    """The installed version of a distribution."""
    has_module: Callable[[str], bool] = lambda name: find_spec(name) is not None
    """Whether a module can be imported (JetPack installs TensorRT as a module, not always with metadata)."""
    providers: Callable[[], Sequence[str]] = _import_providers
    """onnxruntime's available providers; raises where it cannot be imported."""
    nvidia_smi: Callable[[], str | None] = _nvidia_smi
    """`name, driver, memory` per GPU; None where the program is not there."""
    nvml: Callable[[], Any] = _import_nvml
    """The module `pynvml`; None where it is not installed."""
    pause: Callable[[], object] = lambda: time.sleep(0.2)
    """Waits for a counter to count."""
    disk_free: Callable[[], int] = lambda: shutil.disk_usage(Path.cwd()).free
    """Free bytes where one works."""

    def has_nvidia_gpu(self) -> bool:
        """Whether an NVIDIA driver or a Jetson is there."""
        return (self.root / "proc/driver/nvidia/version").exists() or l4t_release(self.root) is not None


def package(device: Device, area: str, distribution: str, extra: str, gives: str) -> Finding:
    """Whether a distribution is installed, by its metadata, and the extra that brings it."""
    version = device.version_of(distribution)
    if version:
        return Finding(area, distribution, Status.PRESENT, version, gives)
    return Finding(area, distribution, Status.ABSENT, "not installed", gives, f"pip install 'nsn-edge[{extra}]'")


def one_line(error: BaseException) -> str:
    """An error for a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
