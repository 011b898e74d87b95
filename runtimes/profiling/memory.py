"""The memory of this process.

What the peak is, and is not: the kernel's high-water mark of resident pages since the process began (`VmHWM`). It
counts Python and every library, shared pages of mapped files (the weights) as long as they are resident, and everything
the process did before; it never falls, and one number stands for all rungs together. It does not count memory of a GPU.
"""

from __future__ import annotations

import re
from pathlib import Path

_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def peak_memory_mb(root: Path = Path("/")) -> float | None:
    """Most resident memory of this process so far, in megabytes (10^6 bytes); None where the system does not say.

    Args:
        root: where `proc/self/status` is looked for.
    """
    try:
        match = _HIGH_WATER.search((root / "proc/self/status").read_text())
    except OSError:
        match = None
    if match:
        return int(match[1]) * 1024 / 1e6
    return _rusage_peak_mb() if root == Path("/") else None


def _rusage_peak_mb() -> float | None:
    try:
        import resource  # absent on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
