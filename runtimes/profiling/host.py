"""What a latency was measured on. A number without its machine says nothing.

Only what explains speed is read; nothing that identifies a person or one machine (no host name, no user, no serial
number). Whatever cannot be read is None: unknown is not zero.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("nsn-edge", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
"""Distributions whose versions matter to a measurement."""

_CPU = "sys/devices/system/cpu/cpu0"

# A device tree or a vendor writes these where a name belongs.
_PLACEHOLDERS = {"", "none", "default string", "to be filled by o.e.m.", "system product name"}


@dataclass(frozen=True)
class Host:
    """The machine, as far as it can be known."""

    cpu: str | None = None
    """The processor's name."""
    architecture: str | None = None
    """`x86_64`, `aarch64`, ..."""
    cores: int | None = None
    """Logical processors of the machine."""
    usable_cores: int | None = None
    """Those this process may run on (its affinity)."""
    governor: str | None = None
    """How the kernel picks the clock: `performance`, `schedutil`, ..."""
    frequency_mhz: float | None = None
    """The first processor's clock at the time."""
    max_frequency_mhz: float | None = None
    """The highest clock the governor may pick."""
    memory_mb: float | None = None
    """Physical memory, in 10^6 bytes."""
    load_1m: float | None = None
    """The load average of the last minute: what else was running."""
    machine: str | None = None
    """The board or the computer's model; on a Jetson, from the device tree."""
    gpu: str | None = None
    """NVIDIA GPUs of a PC, by the driver's names; a Jetson's is part of its board."""
    l4t: str | None = None
    """The Jetson's Linux for Tegra release, like `36.4.3`."""
    system: str | None = None
    """The distribution's name."""
    kernel: str | None = None
    """The kernel's release."""
    python: str | None = None
    """The Python version."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of those of `PACKAGES` that are installed."""
    measured_at: str | None = None
    """UTC, ISO 8601."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    def summary(self) -> str:
        """One line for people."""
        cores = self.usable_cores or self.cores
        parts = [
            self.machine,
            self.cpu or self.architecture or "unknown processor",
            f"{cores} core{'s' if cores != 1 else ''}" if cores else None,
            f"{self.frequency_mhz / 1e3:.2f} GHz" if self.frequency_mhz else None,
            self.gpu,
            f"governor {self.governor}" if self.governor else None,
            f"{self.memory_mb / 1e3:.1f} GB" if self.memory_mb else None,
            f"L4T {self.l4t}" if self.l4t else None,
            f"Python {self.python}" if self.python else None,
            *(f"{name} {version}" for name, version in self.packages.items()),
        ]
        return ", ".join(part for part in parts if part)


def describe_host(
    root: Path = Path("/"),
    *,
    version_of: Callable[[str], str | None] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> Host:
    """Read what this machine is. Never raises: each fact that cannot be read is None.

    Args:
        root: where `/proc`, `/sys` and `/etc` are looked for.
        version_of: the installed version of a distribution; `importlib.metadata` by default.
        now: the time, with its zone.
    """
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    here = root == Path("/")
    return Host(
        cpu=_cpu_name(cpuinfo),
        architecture=platform.machine() or None,
        cores=len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or None,
        usable_cores=_usable_cores() if here else None,
        governor=read_text(root / _CPU / "cpufreq/scaling_governor"),
        frequency_mhz=_khz(root / _CPU / "cpufreq/scaling_cur_freq") or _cpuinfo_mhz(cpuinfo),
        max_frequency_mhz=_khz(root / _CPU / "cpufreq/scaling_max_freq"),
        memory_mb=memory_mb(root, "MemTotal"),
        load_1m=_load(root),
        machine=machine_model(root),
        gpu=gpu_names(root),
        l4t=l4t_release(root),
        system=_system(root),
        kernel=read_text(root / "proc/sys/kernel/osrelease"),
        python=platform.python_version(),
        packages=installed_versions(PACKAGES, version_of or installed_version),
        measured_at=now().astimezone(timezone.utc).isoformat(timespec="seconds"),
    )


def read_text(path: Path, limit: int = 1 << 20) -> str | None:
    """A small text file, stripped of blanks and NULs; None where it is missing, empty or does not answer.

    Read by `os.read`: a gated sensor answers EAGAIN, which Python's own file objects turn into a TypeError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError):
        return None
    try:
        chunks: list[bytes] = []
        while (chunk := os.read(descriptor, 1 << 16)) and sum(map(len, chunks)) < limit:
            chunks.append(chunk)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return b"".join(chunks).decode(errors="replace").strip(" \t\r\n\x00") or None


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, without importing it; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, KeyError, OSError, ValueError):
        return None  # a damaged installation is as good as none


def installed_versions(
    distributions: tuple[str, ...], version_of: Callable[[str], str | None] = installed_version
) -> dict[str, str]:
    """Versions of those distributions that are installed, in the order asked for."""
    found = {name: version_of(name) for name in distributions}
    return {name: version for name, version in found.items() if version}


def machine_model(root: Path) -> str | None:
    """The board's name from the device tree (ARM boards, Jetson), or the product name from DMI (PCs)."""
    for path in (
        "sys/firmware/devicetree/base/model",
        "proc/device-tree/model",
        "sys/class/dmi/id/product_name",
    ):
        text = read_text(root / path)
        if text and text.lower() not in _PLACEHOLDERS:
            return text
    return None


def gpu_names(root: Path) -> str | None:
    """The NVIDIA GPUs that the driver has found, like `2 x NVIDIA H200`, without waking any of them."""
    names: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for card in sorted((root / "proc/driver/nvidia/gpus").iterdir()):
            match = re.search(r"^Model:\s*(\S.*)$", read_text(card / "information") or "", re.MULTILINE)
            if match and not match[1].startswith("Unknown"):
                names[match[1].strip()] = names.get(match[1].strip(), 0) + 1
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items()) or None


def l4t_release(root: Path) -> str | None:
    """A Jetson's Linux for Tegra release from `/etc/nv_tegra_release`, as `36.4.3`.

    The file's first line reads `# R38 (release), REVISION: 2.0, GCID: ...`.
    """
    match = re.match(
        r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", read_text(root / "etc/nv_tegra_release") or ""
    )
    return f"{match[1]}.{match[2]}" if match else None


def memory_mb(root: Path, name: str) -> float | None:
    """An entry of `/proc/meminfo` (`MemTotal`, `MemAvailable`), in 10^6 bytes."""
    match = re.search(rf"^{re.escape(name)}:\s+(\d+) kB$", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 / 1e6 if match else None


def _cpu_name(cpuinfo: str) -> str | None:
    # ARM kernels have no "model name"; some have "Model" (the board) or "Hardware" (the chip).
    for key in ("model name", "Hardware", "cpu model"):
        match = re.search(rf"^{key}\s*:\s*(\S.*)$", cpuinfo, re.MULTILINE)
        if match:
            return " ".join(match[1].split())
    return None


def _cpuinfo_mhz(cpuinfo: str) -> float | None:
    match = re.search(r"^cpu MHz\s*:\s*([\d.]+)\s*$", cpuinfo, re.MULTILINE)
    try:
        return float(match[1]) if match else None
    except ValueError:
        return None


def _khz(path: Path) -> float | None:
    text = read_text(path)
    return int(text) / 1e3 if text and text.isascii() and text.isdigit() else None


def _usable_cores() -> int | None:
    # Only Linux has affinities.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _load(root: Path) -> float | None:
    match = re.match(r"\d+\.\d+\b", read_text(root / "proc/loadavg") or "")
    return float(match[0]) if match else None


def _system(root: Path) -> str | None:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', read_text(root / "etc/os-release") or "", re.MULTILINE)
    return match[1] or None if match else None
