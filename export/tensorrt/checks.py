"""Is there room? Asked before a build begins: one that fails at the end has cost minutes, or the machine."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nsn_edge.errors import NsnEdgeError
from nsn_edge.export.tensorrt.plan import EngineJob

_BUILDER_BYTES = 500_000_000
_COPIES = 4
"""The process held 0.26 GB and up to 7 times the weights of small models, up to 4 times those of larger ones, while
TensorRT-RTX 1.7 built MiniLM and a Llama of 57 M: `benchmarks/build.py`."""


@dataclass(frozen=True)
class Room:
    """What a machine has left."""

    memory_bytes: int | None
    """That a process may still take; None where nobody says."""
    disk_bytes: int
    """Where the engines go."""

    @classmethod
    def here(cls, folder: Path, root: Path = Path("/")) -> Room:
        """Of this machine.

        Args:
            folder: where the engines go; it need not exist yet.
            root: of the filesystem that describes the machine.
        """
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        known = [bytes_ for bytes_ in (_meminfo(root), _cgroup(root)) if bytes_ is not None]
        return cls(min(known) if known else None, shutil.disk_usage(existing).free)


def check_room(jobs: Sequence[EngineJob], room: Room, folder: Path) -> None:
    """Refuse what cannot end well.

    Args:
        jobs: that are to be built, one after the other.
        room: what is left.
        folder: where the engines go, for the message.

    Raises:
        NsnEdgeError: too little memory for the largest, or disk for all.
    """
    if not jobs:
        return
    largest = max(jobs, key=memory_bytes)
    if room.memory_bytes is not None and memory_bytes(largest) > room.memory_bytes:
        raise NsnEdgeError(
            f"building {largest.stem} takes about {_mb(memory_bytes(largest))} of memory, and "
            f"{_mb(room.memory_bytes)} are free",
            "close other programs, build single rungs with --rank, or --skip-checks to try it all the same",
        )
    needed = sum(job.expected_bytes for job in jobs)
    if needed > room.disk_bytes:
        engines = f"{len(jobs)} engine{'s' if len(jobs) > 1 else ''}"
        raise NsnEdgeError(
            f"{engines} would take about {_mb(needed)}, and {_mb(room.disk_bytes)} are free in {folder}",
            "make room, write elsewhere with --engines, or build fewer with --rank",
        )


def memory_bytes(job: EngineJob) -> int:
    """About what building one engine takes."""
    return _BUILDER_BYTES + _COPIES * (job.artifact.weight_bytes or 0)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"


def _meminfo(root: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _cgroup(root: Path) -> int | None:
    """What a container's limit leaves. Pages of files are counted as used and given back when needed."""
    folder = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError, IndexError):
        limit = int((folder / "memory.max").read_text())  # "max" is no number: no limit
        used = int((folder / "memory.current").read_text())
        lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        files = sum(int(words[1]) for words in lines if words[0] in ("inactive_file", "active_file"))
        return max(limit - used + files, 0)
    return None
