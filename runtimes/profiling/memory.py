"""The memory of this process, and of a GPU.

What the peak is, and is not: the kernel's high-water mark of resident pages (`VmHWM`). It counts Python and every
library, shared pages of mapped files (the weights) as long as they are resident, and everything that the process did
since the mark was last set back; one number stands for all rungs together. Linux lets a process set its own mark back
(`clear_refs`, see proc(5)); where that is refused, the mark is of the process's whole life. It does not count memory of
a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nsn_edge.errors import NsnEdgeError

_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_RESIDENT = re.compile(r"^VmRSS:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class MemoryUse:
    """Resident memory of the process around one configuration, in megabytes (10^6 bytes); None where nobody says."""

    before_mb: float | None
    """Before the first graph was loaded: Python, the engine's library, the inputs."""
    loaded_mb: float | None
    """With every graph loaded and run once."""
    after_mb: float | None
    """When all was measured, every graph still loaded."""
    peak_is_own: bool
    """Whether the peak is of this configuration alone; otherwise it is of all that the process did until then."""
    device_mb: float | None = None
    """What the memory in use on the GPU grew by, until all was measured; other programs' included."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def resident_memory_mb(root: Path = Path("/")) -> float | None:
    """Resident memory of this process now, in megabytes (10^6 bytes); None where the system does not say."""
    return _of_status(_RESIDENT, root)


def reset_peak_memory(root: Path = Path("/")) -> bool:
    """Set the process's high-water mark back to what is resident now; whether the system let us."""
    try:
        descriptor = os.open(root / "proc/self/clear_refs", os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(descriptor, b"5")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def give_memory_back() -> None:
    """Return what the C library keeps of freed memory to the system, so that what comes next is seen to grow. Only
    glibc can; elsewhere nothing happens."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def device_memory_mb(open_gpu: Callable[[], Any]) -> float | None:
    """Memory in use on the GPU, by all programs, in megabytes (10^6 bytes); None without NVML or where it is shared
    with the processor.

    Args:
        open_gpu: `NvmlGpu.open`.
    """
    try:
        with open_gpu() as gpu:
            used = gpu.memory_used_bytes()
    except NsnEdgeError:
        return None
    return None if used is None else float(used) / 1e6


def peak_memory_mb(root: Path = Path("/")) -> float | None:
    """Most resident memory of this process so far, in megabytes (10^6 bytes); None where the system does not say.

    Args:
        root: where `proc/self/status` is looked for.
    """
    found = _of_status(_HIGH_WATER, root)
    if found is not None:
        return found
    return _rusage_peak_mb() if root == Path("/") else None


def _of_status(pattern: re.Pattern[str], root: Path) -> float | None:
    try:
        match = pattern.search((root / "proc/self/status").read_text())
    except OSError:
        return None
    return int(match[1]) * 1024 / 1e6 if match else None


def _rusage_peak_mb() -> float | None:
    try:
        import resource  # absent on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
