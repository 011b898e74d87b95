"""Records of built engines: what is written is read again, whatever makes an engine unusable is said, in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import TinyModel, sign, write_tiny_bundle

from nsn_edge.bundle import Bundle, Manifest
from nsn_edge.bundle.engines import (
    EngineDevice,
    EngineProfile,
    EngineRecord,
    ShapeRange,
    StoredEngine,
    bundle_hash,
    check_usable,
    engine_folder,
    engine_stem,
    find_engine,
    read_record,
    read_records,
    record_path,
    why_unusable,
    write_record,
)
from nsn_edge.bundle.store import sha256_of
from nsn_edge.errors import EngineError, StaleEngineError

LIBRARY, VERSION = "tensorrt_rtx", "1.7.1.116"
GPU = EngineDevice("NVIDIA GeForce RTX 3060", "8.6")
SM86 = EngineDevice.kind("8.6")


@pytest.fixture
def manifest(tiny_bundle: tuple[Path, TinyModel]) -> Manifest:
    return Bundle.open(tiny_bundle[0]).manifest


@pytest.fixture
def stored(manifest: Manifest, tmp_path: Path) -> StoredEngine:
    return store(tmp_path / "engines", manifest)


def store(root: Path, manifest: Manifest, device: EngineDevice = SM86) -> StoredEngine:
    engine = engine_folder(root, LIBRARY, VERSION, device) / "rank-005-fp32.engine"
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"an engine")
    profiles = (
        EngineProfile("rank 5, one", 5, (5, 5), {"x": ShapeRange((1, 16), (1, 16), (1, 16))}),
        EngineProfile("rank 5", 5, (5, 5), {"x": ShapeRange((1, 16), (2, 16), (8, 16))}),
    )
    record = EngineRecord(
        library=LIBRARY,
        library_version=VERSION,
        device=device,
        kind="rung",
        form="static",
        rank=5,
        precision="fp32",
        profiles=profiles,
        bundle_hash=bundle_hash(manifest),
        options={"level": None, "sizes": {"batch_size": "1:2:8"}},
        sha256=sha256_of(engine),
        size_bytes=9,
        build_s=1.5,
        created_by={"tests": "1"},
    )
    return write_record(record, engine)


def reason(stored: StoredEngine, manifest: Manifest, **changes: Any) -> str | None:
    asked = {"device": GPU, "library": LIBRARY, "library_version": VERSION, **changes}
    return why_unusable(stored, manifest, **asked)


def test_what_is_written_is_read(stored: StoredEngine) -> None:
    assert read_record(stored.path) == stored
    assert read_records(stored.path.parent) == (stored,)


def test_a_good_engine_is_usable(stored: StoredEngine, manifest: Manifest) -> None:
    check_usable(stored, manifest, GPU, LIBRARY, VERSION)
    assert reason(stored, manifest, options=dict(stored.record.options)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": EngineDevice("NVIDIA L4", "8.9")}, "was built for sm86, and this is NVIDIA L4 (sm89)"),
        ({"library": "tensorrt"}, "is an engine of tensorrt_rtx, not of tensorrt"),
        ({"library_version": "1.8.0.1"}, "was built by tensorrt_rtx 1.7.1.116, and 1.8.0.1 is here"),
        ({"options": {"level": 3}}, "was built with other options: level, sizes"),
    ],
)
def test_a_foreign_engine_is_not(stored: StoredEngine, manifest: Manifest, changes: dict[str, Any], words: str) -> None:
    assert reason(stored, manifest, **changes) == f"rank-005-fp32.engine {words}"


def test_an_engine_of_one_gpu_is_not_for_another_of_its_kind(stored: StoredEngine, manifest: Manifest) -> None:
    of_gpu = replace(stored, record=replace(stored.record, device=GPU))
    assert reason(of_gpu, manifest) is None
    other = EngineDevice("NVIDIA RTX A2000", "8.6")
    assert "was built for NVIDIA GeForce RTX 3060 (sm86), and this is NVIDIA RTX A2000" in str(
        reason(of_gpu, manifest, device=other)
    )


def test_an_engine_of_another_bundle_is_refused(stored: StoredEngine, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "other", seed=1)
    with pytest.raises(StaleEngineError, match="built from another bundle") as caught:
        check_usable(stored, Bundle.open(tmp_path / "other").manifest, GPU, LIBRARY, VERSION)
    assert caught.value.hint == "build it again: nsn-edge build BUNDLE --backend tensorrt-rtx"


def test_recording_quality_does_not_make_engines_stale(
    stored: StoredEngine, tiny_bundle: tuple[Path, TinyModel]
) -> None:
    updated = Bundle.open(tiny_bundle[0]).record_quality({5: {"accuracy": 0.5}})
    assert reason(stored, updated.manifest) is None


def test_a_graph_that_changed_does(stored: StoredEngine, tiny_bundle: tuple[Path, TinyModel]) -> None:
    path = tiny_bundle[0]
    graph = path / "rank-005.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    sign(path)
    assert "another bundle" in str(reason(stored, Bundle.open(path).manifest))


def test_a_cut_or_altered_engine_is_refused(stored: StoredEngine, manifest: Manifest) -> None:
    stored.path.write_bytes(b"an Engine")
    assert "is not what was built" in str(reason(stored, manifest))
    assert reason(stored, manifest, check_hash=False) is None
    stored.path.write_bytes(b"an engi")
    assert "has 7 bytes, not 9" in str(reason(stored, manifest, check_hash=False))
    stored.path.unlink()
    assert reason(stored, manifest) == "rank-005-fp32.engine is gone"


def test_a_folder_of_engines_does_not_disturb_the_bundle(tiny_bundle: tuple[Path, TinyModel]) -> None:
    path = tiny_bundle[0]
    before = Bundle.open(path)
    store(path / "engines", before.manifest)
    assert Bundle.open(path).manifest == before.manifest


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.pop(key) and None


def put(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update(values)


PROFILE = {"name": "p", "rank": 5, "rank_range": [5, 5], "inputs": {"x": {"min": [1], "opt": [1], "max": [2]}}}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (put(schema_version=2), "schema version 2; this nsn-edge reads version 1"),
        (put(schema_version=True), "schema version True"),
        (drop("library"), "'library' is None"),
        (put(library="openvino"), "knows tensorrt, tensorrt_rtx"),
        (put(kind="layer"), "knows rung, dynamic"),
        (put(rank=None), "a rung's engine has a rank"),
        (put(kind="dynamic"), "a dynamic one has none"),
        (put(precision="int3"), "knows fp32"),
        (put(profiles=[]), "no optimization profile"),
        (put(profiles=[{**PROFILE, "rank_range": [6, 7]}]), "a profile of rank 5 for 6..7"),
        (put(profiles=[{**PROFILE, "inputs": {"x": {"min": [2], "opt": [1], "max": [2]}}}]), "shapes of 'x' cross"),
        (put(profiles=[{**PROFILE, "inputs": {"x": {"min": [-1], "opt": [1], "max": [2]}}}]), "not sizes"),
        (put(profiles=[{**PROFILE, "inputs": {"x": 3}}]), "3 where an object belongs"),
        (put(device={"name": "x", "compute_capability": "new"}), "'compute_capability' is 'new'"),
        (put(size_bytes="9"), "'size_bytes' is '9'"),
        (put(build_s=True), "'build_s' is True"),
    ],
)
def test_a_record_that_makes_no_sense(
    stored: StoredEngine, damage: Callable[[dict[str, Any]], None], words: str
) -> None:
    file = record_path(stored.path)
    data = json.loads(file.read_text())
    damage(data)
    file.write_text(json.dumps(data))
    with pytest.raises(StaleEngineError) as caught:
        read_record(stored.path)
    assert words in caught.value.message
    assert str(file) in caught.value.message
    assert "build the engine again" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b"[" * 100_000, b" " * (1 << 23)])
def test_a_record_that_is_none(stored: StoredEngine, content: bytes) -> None:
    record_path(stored.path).write_bytes(content)
    with pytest.raises(StaleEngineError):
        read_record(stored.path)


def test_an_engine_without_a_record_does_not_exist(stored: StoredEngine) -> None:
    record_path(stored.path).unlink()
    assert read_records(stored.path.parent) == ()
    with pytest.raises(StaleEngineError, match="no record at"):
        read_record(stored.path)


def test_finding_prefers_the_device_then_its_kind_then_later_ones(manifest: Manifest, tmp_path: Path) -> None:
    root = tmp_path / "engines"

    def found(device: EngineDevice) -> Path:
        return find_engine(root, LIBRARY, VERSION, device, engine_stem("rung", "static", 5, "fp32")).path

    later = store(root, manifest, EngineDevice.kind("8.0+"))
    assert found(GPU) == later.path
    kind = store(root, manifest, SM86)
    assert found(GPU) == kind.path
    own = store(root, manifest, GPU)
    assert found(GPU) == own.path
    assert found(EngineDevice("NVIDIA L4", "8.9")) == later.path


def test_finding_none_says_which_there_are(stored: StoredEngine, tmp_path: Path) -> None:
    with pytest.raises(StaleEngineError) as caught:
        find_engine(tmp_path / "engines", LIBRARY, "2.0", GPU, "rank-005-fp32")
    assert "it has tensorrt_rtx-1.7.1.116-sm86/rank-005-fp32" in caught.value.message
    assert "nsn-edge build BUNDLE --backend tensorrt-rtx" in caught.value.hint


@pytest.mark.parametrize(
    ("device", "gpu", "serves"),
    [
        ("8.0+", "12.0", True),
        ("8.0+", "8.0", True),
        ("8.0+", "7.5", False),
        ("8.6", "8.6", True),
        ("8.6", "8.9", False),
        ("12.0", "8.6", False),
    ],
)
def test_kinds_of_gpus(device: str, gpu: str, serves: bool) -> None:
    assert EngineDevice.kind(device).serves(EngineDevice("a GPU", gpu)) is serves


def test_the_profile_for_a_call(stored: StoredEngine) -> None:
    record = stored.record
    assert record.profile_for(5, {"x": (1, 16)}) == 0
    assert record.profile_for(5, {"x": (8, 16)}) == 1
    with pytest.raises(EngineError, match=r"at rank 5 takes x of .*\[8, 16\], not \[9, 16\]"):
        record.profile_for(5, {"x": (9, 16)})
    with pytest.raises(EngineError, match=r"no profile for rank 8; it takes 5\.\.5"):
        record.profile_for(8, {"x": (1, 16)})
