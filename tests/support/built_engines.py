"""Engines of the fake library beside a bundle, with real records: what `nsn-edge build` would leave on a device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRt, fake_engine

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engine_record import BACKENDS, EngineDevice, EngineProfile, EngineRecord, ShapeRange
from nsn_edge.bundle.engines import ENGINES_FOLDER, bundle_hash, engine_folder, engine_stem, write_record

ORIN = EngineDevice("Orin", "8.7")
LEAST = {"past_sequence_length": 0}
LARGEST = {"past_sequence_length": 64, "sequence_length": 64}
VERSIONS = {"tensorrt": "10.3.0", "tensorrt-rtx": "1.7.1.116"}
Change = Callable[[EngineRecord], EngineRecord]


@dataclass
class Device:
    """A made-up machine."""

    cuda: FakeCuda
    library: FakeTensorRt


def pretend_device(
    patch: pytest.MonkeyPatch, backend: str = "tensorrt", version: str | None = None, **settings: Any
) -> Device:
    """Put the fake library and CUDA where imports find them."""
    import sys

    cuda = FakeCuda(**settings)
    library = FakeTensorRt(cuda, BACKENDS[backend], version or VERSIONS[backend])
    patch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    patch.setitem(sys.modules, BACKENDS[backend], library)
    return Device(cuda, library)


@contextmanager
def pretended_device(*arguments: Any, **settings: Any) -> Any:
    """The same for fixtures of a larger scope."""
    with pytest.MonkeyPatch.context() as patch:
        yield pretend_device(patch, *arguments, **settings)


def build_engines(
    path: Path,
    backend: str = "tensorrt",
    version: str | None = None,
    device: EngineDevice = ORIN,
    *,
    precision: str = "fp32",
    change: Change = lambda record: record,
    largest: Mapping[str, int] | None = None,
    **plan: Any,
) -> dict[int | None, Path]:
    """Write an engine per rung, and a dynamic one (None) with a profile per rung; return their files."""
    bundle = Bundle.open(path, check_hashes=False)
    ranks = bundle.manifest.ladder.ranks
    sizes = {**LARGEST, **(largest or {})}
    files = {}
    for artifact in bundle.manifest.artifacts:
        if artifact.kind != "graph" or artifact.form not in ("static", "sliced"):
            continue
        kind = "dynamic" if artifact.rank is None else "rung"
        rungs = ranks if artifact.rank is None else (artifact.rank,)
        inputs = {spec.name: _range(spec.shape, sizes) for spec in bundle.manifest.inputs}
        profiles = tuple(
            EngineProfile(f"rank {rank}", rank, _ranks(rank, ranks) if kind == "dynamic" else (rank, rank), inputs)
            for rank in rungs
        )
        ranges = [{name: (r.min, r.max) for name, r in profile.inputs.items()} for profile in profiles]
        data = fake_engine(bundle.file(artifact), ranges, **{"weights_bytes": 100 * rungs[-1], **plan})
        library = BACKENDS[backend]
        record = EngineRecord(
            library=library,
            library_version=version or VERSIONS[backend],
            device=device,
            kind=kind,
            form=str(artifact.form),
            rank=artifact.rank,
            precision=precision,
            profiles=profiles,
            bundle_hash=bundle_hash(bundle.manifest),
            options={},
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            build_s=0.0,
        )
        folder = engine_folder(path / ENGINES_FOLDER, library, record.library_version, device)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{engine_stem(kind, record.form, artifact.rank, precision)}.engine"
        file.write_bytes(data)
        write_record(change(record), file)
        files[artifact.rank] = file
    return files


def _ranks(rank: int, rungs: tuple[int, ...]) -> tuple[int, int]:
    """From above the next lower rung up to this one: together the profiles take every rank."""
    lower = [other for other in rungs if other < rank]
    return (max(lower) + 1 if lower else 1), rank


def _range(shape: tuple[int | str, ...], largest: Mapping[str, int]) -> ShapeRange:
    def size(name: int | str, known: Mapping[str, int], default: int) -> int:
        if isinstance(name, int):
            return name
        return sum(known.get(part, default) for part in name.split(" + "))

    low = tuple(size(name, LEAST, 1) for name in shape)
    high = tuple(size(name, largest, 8) for name in shape)
    return ShapeRange(low, high, high)
