"""Build a bundle's engines: plan, look at what is there, check for room, build, write. See the package's picture.

An engine is written beside its place and renamed, its record after it: whoever finds a record finds a whole engine, and
an interrupt leaves the old one or none. What is there and was built from the same bundle, by the same version, for the
same device, with the same options, is kept.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsn_edge._version import __version__
from nsn_edge.atomic import atomic_write_bytes, named_disk_errors
from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engines import (
    ENGINES_FOLDER,
    EngineDevice,
    EngineRecord,
    StoredEngine,
    bundle_hash,
    engine_folder,
    read_record,
    record_path,
    why_unusable,
    write_record,
)
from nsn_edge.errors import StaleEngineError
from nsn_edge.export.tensorrt.builder import build_engine
from nsn_edge.export.tensorrt.checks import Room, check_room
from nsn_edge.export.tensorrt.library import Library
from nsn_edge.export.tensorrt.plan import BuildConfig, EngineJob, plan_jobs
from nsn_edge.export.tensorrt.timing import TimingCache
from nsn_edge.progress import Progress, silent

_STAGE = "build, percent of each engine"


@dataclass(frozen=True)
class PlannedEngine:
    """An engine that is to be, and whether it already is."""

    job: EngineJob
    path: Path
    """Of the engine file."""
    kept: StoredEngine | None
    """The one that is there, where it may stay."""
    reason: str
    """Why it has to be built; empty where it may stay."""


@dataclass(frozen=True)
class BuildPlan:
    """Everything that a build would do."""

    bundle: Bundle
    library: Library
    device: EngineDevice
    folder: Path
    """Where the device's engines go."""
    engines: tuple[PlannedEngine, ...]

    @property
    def jobs(self) -> list[EngineJob]:
        """What has to be built."""
        return [engine.job for engine in self.engines if engine.kept is None]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "bundle": str(self.bundle.path),
            "library": self.library.name,
            "library_version": self.library.version,
            "device": {
                "name": self.device.name,
                "compute_capability": self.device.compute_capability,
                "sm": self.device.sm,
                "key": self.device.key,
            },
            "folder": str(self.folder),
        }


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that is there now."""

    stored: StoredEngine
    built: bool
    """Whether this build made it; otherwise it was there and good."""
    reason: str
    """Why it was built."""


def plan_build(
    bundle: Bundle,
    library: Library,
    config: BuildConfig,
    *,
    device: str | None = None,
    root: Path | None = None,
    force: bool = False,
) -> BuildPlan:
    """What a build would do. Writes nothing.

    Args:
        bundle: whose engines.
        library: that builds them.
        config: which.
        device: `sm86`, `sm80+`; None for what `Library.device` chooses.
        root: where devices' folders are; None for `engines` in the bundle.
        force: build what is already there, too.

    Raises:
        RankError, UsageError: what was asked cannot be.
        EngineError: there is no GPU, and the library needs one.
    """
    jobs = plan_jobs(bundle, config)
    for job in jobs:
        library.check_precision(job.precision)
    target = library.device(device)
    folder = engine_folder(root or bundle.path / ENGINES_FOLDER, library.name, library.version, target)
    engines = []
    for job in jobs:
        path = folder / f"{job.stem}.engine"
        kept, reason = _existing(path, bundle, library, target, job)
        if force and kept is not None:
            kept, reason = None, "asked to"
        engines.append(PlannedEngine(job, path, kept, reason))
    return BuildPlan(bundle, library, target, folder, tuple(engines))


def build(
    plan: BuildPlan, *, timing_cache: bool = True, room: Room | None = None, progress: Progress = silent
) -> list[BuiltEngine]:
    """Carry a plan out.

    Args:
        plan: of `plan_build`.
        timing_cache: use and keep one, where the library has it.
        room: what the machine has left; None to build without asking.
        progress: hears of each engine, in percent where the library tells.

    Raises:
        EngineError: the library refuses a graph, a profile or a network. Engines built before it stay.
        NsnEdgeError: too little memory or disk.
    """
    if room is not None:
        check_room(plan.jobs, room, plan.folder)
    cache = TimingCache(plan.folder if timing_cache else None)
    total, found = 100 * len(plan.jobs), []
    built = 0
    for engine in plan.engines:
        if engine.kept is not None:
            found.append(BuiltEngine(engine.kept, False, ""))
            continue

        def percent(now: int, before: int = 100 * built) -> None:
            progress(_STAGE, before + now, total)

        percent(0)
        made = build_engine(plan.library, plan.bundle, engine.job, plan.device, cache, percent)
        found.append(BuiltEngine(_write(plan, engine, made.data, made.seconds), True, engine.reason))
        built += 1
        progress(_STAGE, 100 * built, total)
    return found


def _existing(
    path: Path, bundle: Bundle, library: Library, device: EngineDevice, job: EngineJob
) -> tuple[StoredEngine | None, str]:
    """The engine that is there if it may stay, else why it may not."""
    if not record_path(path).is_file():
        return None, "never finished" if path.is_file() else "not built yet"
    try:
        stored = read_record(path)
    except StaleEngineError as error:
        return None, error.message
    record = stored.record
    reason = why_unusable(stored, bundle.manifest, device, library.name, library.version, options=job.options)
    if reason is None and (record.profiles, record.precision) != (job.profiles, job.precision):
        reason = f"{path.name} was built with other profiles"
    return (stored, "") if reason is None else (None, reason)


def _write(plan: BuildPlan, engine: PlannedEngine, data: Any, seconds: float) -> StoredEngine:
    job, view = engine.job, memoryview(data)
    with named_disk_errors(engine.path, every=True):
        engine.path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(engine.path, view)
    record = EngineRecord(
        library=plan.library.name,
        library_version=plan.library.version,
        device=plan.device,
        kind=job.kind,
        form=job.form,
        rank=job.rank,
        precision=job.precision,
        profiles=job.profiles,
        bundle_hash=bundle_hash(plan.bundle.manifest),
        options=job.options,
        sha256=hashlib.sha256(view).hexdigest(),
        size_bytes=view.nbytes,
        build_s=seconds,
        created_by={"nsn-edge": __version__, "python": platform.python_version()},
    )
    return write_record(record, engine.path)
