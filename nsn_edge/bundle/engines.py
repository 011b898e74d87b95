"""Built engines on disk: what `build` leaves beside a bundle, and how the runtime knows that one is safe to execute.

    bundle/engines/tensorrt_rtx-1.7.1.116-sm86/     one folder per library, version and device
        rank-064-fp32.engine                        the library's own bytes
        rank-064-fp32.json                          its record, written last: an engine without one does not exist
        sliced-fp32.engine, sliced-fp32.json        the one with the rank as an input
        timing.cache                                measurements that the next build need not repeat

An engine is locked to its device and to its library's version, and holds the weights of one bundle. The libraries
themselves check some of that, late, some of it by crashing; a record says it all, and is checked before they are asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.bundle.engine_record import (
    BACKENDS,
    LIBRARIES,
    PRECISIONS,
    SCHEMA_VERSION,
    EngineDevice,
    EngineProfile,
    EngineRecord,
    ShapeRange,
    build_command,
    slug,
)
from nsn_edge.bundle.manifest import Manifest
from nsn_edge.bundle.store import sha256_of
from nsn_edge.errors import StaleEngineError

__all__ = [
    "BACKENDS",
    "ENGINES_FOLDER",
    "LIBRARIES",
    "PRECISIONS",
    "SCHEMA_VERSION",
    "EngineDevice",
    "EngineProfile",
    "EngineRecord",
    "ShapeRange",
    "StoredEngine",
    "build_command",
    "bundle_hash",
    "check_usable",
    "engine_folder",
    "engine_folders",
    "engine_stem",
    "find_engine",
    "read_record",
    "read_records",
    "record_path",
    "why_unusable",
    "write_record",
]

ENGINES_FOLDER = "engines"
"""In the bundle, unless engines are kept elsewhere."""

_LARGEST_RECORD = 1 << 22


@dataclass(frozen=True)
class StoredEngine:
    """An engine file and its record."""

    path: Path
    """The `.engine` file."""
    record: EngineRecord


def bundle_hash(manifest: Manifest) -> str:
    """What an engine was built from, as a SHA-256: of the names and hashes of all graphs and weights.

    Neither the manifest's bytes nor its quality figures count: recording quality must not make engines stale.
    """
    files = sorted((a.path, a.sha256) for a in manifest.artifacts if a.kind in ("graph", "weights"))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def engine_folder(root: Path, library: str, library_version: str, device: EngineDevice) -> Path:
    """Where under `root` (`bundle / ENGINES_FOLDER`, or elsewhere) a device's engines are."""
    return root / f"{library}-{slug(library_version)}-{device.key}"


def engine_folders(root: Path, library: str, library_version: str, device: EngineDevice) -> list[Path]:
    """Folders under `root` with engines that a device may run, the best first; some may not exist."""
    exact = [
        engine_folder(root, library, library_version, d) for d in (device, EngineDevice.kind(device.compute_capability))
    ]
    later = sorted(root.glob(engine_folder(Path(), library, library_version, EngineDevice.kind("*+")).name))
    return [*exact, *later]


def find_engine(root: Path, library: str, library_version: str, device: EngineDevice, stem: str) -> StoredEngine:
    """The engine of a name for a device: built on it, else ahead of time for its compute capability, else for this and
    later ones.

    Args:
        root: the folder that holds the devices' folders.
        library: one of `LIBRARIES`.
        library_version: in full.
        device: where the engine shall run.
        stem: of `engine_stem`.

    Raises:
        StaleEngineError: there is none, and which there are; or its record makes no sense. Whether the one that was
            found may be executed says `check_usable`.
    """
    for folder in engine_folders(root, library, library_version, device):
        engine = folder / f"{stem}.engine"
        if record_path(engine).is_file():
            return read_record(engine)
    others = sorted(str(file.relative_to(root).with_suffix("")) for file in root.glob("*/*.engine"))
    wanted = engine_folder(Path(), library, library_version, device)
    listed = ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")
    raise StaleEngineError(
        f"no engine {wanted / stem} in {root}" + (f"; it has {listed}" if others else ", and no other one"),
        f"build it: {build_command(library)}",
    )


def engine_stem(kind: str, form: str, rank: int | None, precision: str) -> str:
    """`rank-064-fp16`, `sliced-fp32`: the file's name without its suffix."""
    return f"rank-{rank:03}-{precision}" if kind == "rung" else f"{form}-{precision}"


def record_path(engine: Path) -> Path:
    """Where the record of an engine file is."""
    return engine.with_suffix(".json")


def write_record(record: EngineRecord, engine: Path) -> StoredEngine:
    """Write the record of an engine file, in one step. The engine itself must be whole by then."""
    text = json.dumps(record.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_bytes(record_path(engine), text.encode() + b"\n")
    return StoredEngine(engine, record)


def read_record(engine: Path) -> StoredEngine:
    """Read and check the record of an engine file; whether it may be executed says `check_usable`.

    Raises:
        StaleEngineError: the engine or its record is missing, or the record makes no sense.
    """
    file = record_path(engine)
    for needed, what in ((engine, "engine"), (file, "record")):
        if not needed.is_file():
            raise StaleEngineError(f"no {what} at {needed}", "build it: nsn-edge build")
    try:
        if file.stat().st_size > _LARGEST_RECORD:
            raise StaleEngineError("far too large for a record")
        return StoredEngine(engine, EngineRecord.from_json(json.loads(file.read_bytes())))
    except (OSError, ValueError, RecursionError) as error:
        raise StaleEngineError(f"{file} is not readable: {error}", "build the engine again: nsn-edge build") from error
    except StaleEngineError as error:
        raise StaleEngineError(
            f"{file} is not a record that can be used: {error.message}", "build the engine again: nsn-edge build"
        ) from error


def read_records(folder: Path) -> tuple[StoredEngine, ...]:
    """Every engine of a folder that has a record, by name. An engine file without one was never finished.

    Raises:
        StaleEngineError: a record makes no sense, or its engine is missing.
    """
    return tuple(read_record(file.with_suffix(".engine")) for file in sorted(folder.glob("*.json")))


def why_unusable(
    stored: StoredEngine,
    manifest: Manifest,
    device: EngineDevice,
    library: str,
    library_version: str,
    *,
    options: Mapping[str, Any] | None = None,
    check_hash: bool = True,
) -> str | None:
    """Why an engine may not be executed, or need be built again; None if it may.

    Args:
        stored: the engine.
        manifest: of the bundle that it shall serve.
        device: where it shall run.
        library: that shall run it.
        library_version: of the library, in full.
        options: compared if given; a build asks this, the runtime need not.
        check_hash: read the whole engine file and compare its SHA-256, not its size alone.
    """
    record, name = stored.record, stored.path.name
    if record.bundle_hash != bundle_hash(manifest):
        return f"{name} was built from another bundle"
    if record.library != library:
        return f"{name} is an engine of {record.library}, not of {library}"
    if record.library_version != library_version:
        return f"{name} was built by {record.library} {record.library_version}, and {library_version} is here"
    if not record.device.serves(device):
        return f"{name} was built for {_in_words(record.device)}, and this is {_in_words(device)}"
    if options is not None and dict(options) != dict(record.options):
        changed = sorted(key for key in {*options, *record.options} if options.get(key) != record.options.get(key))
        return f"{name} was built with other options: {', '.join(changed)}"
    if not stored.path.is_file():
        return f"{name} is gone"
    size = stored.path.stat().st_size
    if size != record.size_bytes:
        return f"{name} has {size} bytes, not {record.size_bytes}: it was cut or altered"
    if check_hash and sha256_of(stored.path) != record.sha256:
        return f"{name} is not what was built: it was altered"
    return None


def check_usable(
    stored: StoredEngine,
    manifest: Manifest,
    device: EngineDevice,
    library: str,
    library_version: str,
    *,
    check_hash: bool = True,
) -> None:
    """Refuse an engine that is stale, foreign or damaged.

    Raises:
        StaleEngineError: with the reason, and the command that builds it again.
    """
    reason = why_unusable(stored, manifest, device, library, library_version, check_hash=check_hash)
    if reason is not None:
        raise StaleEngineError(reason, f"build it again: {build_command(library)}")


def _in_words(device: EngineDevice) -> str:
    return device.sm if device.is_kind else f"{device.name} ({device.sm})"
