"""The bundle: what is written reads back the same, and whatever was damaged is one line that names it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import ALL_RUNGS, TOP, TinyModel, write_tiny_bundle

from nsn_edge.bundle import Bundle, Manifest, is_bundle_folder
from nsn_edge.errors import BundleError, NsnEdgeError, RankError, UsageError

TinyBundle = tuple[Path, TinyModel]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def manifest_json(tmp_path_factory: pytest.TempPathFactory) -> Json:
    path = tmp_path_factory.mktemp("bundle")
    write_tiny_bundle(path)
    data: Json = json.loads((path / "manifest.json").read_text())
    return data


def assert_one_line(error: NsnEdgeError) -> None:
    assert error.message
    assert "\n" not in str(error)
    assert len(error.message) < 1000


def test_a_bundle_reads_back_as_it_was_written(tiny_bundle: TinyBundle) -> None:
    path, model = tiny_bundle
    bundle = Bundle.open(path)
    assert bundle.manifest.ladder == model.ladder
    assert Manifest.from_json(json.loads(json.dumps(bundle.manifest.to_json()))) == bundle.manifest
    assert bundle.size_bytes == sum(file.stat().st_size for file in path.iterdir())
    assert is_bundle_folder(path)
    for rank in ALL_RUNGS:
        assert bundle.file(bundle.graph(rank)).name == f"rank-{rank:03}.onnx"
    assert bundle.graph(form="sliced").path == "sliced.onnx"


def test_hashing_reports_progress(tiny_bundle: TinyBundle) -> None:
    seen: list[tuple[int, int]] = []
    bundle = Bundle.open(tiny_bundle[0], progress=lambda stage, done, total: seen.append((done, total)))
    total = sum(artifact.size_bytes for artifact in bundle.manifest.artifacts)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_quality_is_recorded_in_the_manifest(tiny_bundle: TinyBundle) -> None:
    path, _ = tiny_bundle
    Bundle.open(path).record_quality({5: {"spearman": 0.9}})
    updated = Bundle.open(path).record_quality({5: {"other": 1.0}, TOP: {"spearman": 1.0}})
    assert Bundle.open(path) == updated
    assert updated.manifest.ladder.rung(5).quality == {"spearman": 0.9, "other": 1.0}
    with pytest.raises(RankError, match="no rung at rank 6"):
        updated.record_quality({6: {"spearman": 0.9}})


@pytest.mark.parametrize(
    ("rank", "form", "error", "message"),
    [
        (0, "static", RankError, "rank 0 is outside 1..16"),
        (17, "static", RankError, "rank 17 is outside 1..16"),
        (6, "static", RankError, "the rungs are 2, 5, 8, 16"),
        (None, "static", UsageError, "name its rank"),
        (None, "gated", UsageError, "it holds masked, sliced, static"),
    ],
)
def test_a_graph_that_is_not_there(
    tiny_bundle: TinyBundle, rank: int | None, form: str, error: type[NsnEdgeError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Bundle.open(tiny_bundle[0]).graph(rank, form)


# --- files -------------------------------------------------------------------------------------------------------


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no bundle at"):
        Bundle.open(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("name", ["weights.bin", "rank-005.onnx", "masked.onnx"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "altered", "a folder"])
def test_a_damaged_file_is_named(tiny_bundle: TinyBundle, name: str, damage: str) -> None:
    path, _ = tiny_bundle
    file = path / name
    data = file.read_bytes()
    file.unlink()
    if damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "longer":
        file.write_bytes(data + b"\0")
    elif damage == "altered":
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "a folder":
        file.mkdir()
    with pytest.raises(BundleError, match=name) as caught:
        Bundle.open(path)
    assert_one_line(caught.value)
    if damage == "altered":
        assert "SHA-256" in caught.value.message
        Bundle.open(path, check_hashes=False)
    else:
        with pytest.raises(BundleError, match=name):
            Bundle.open(path, check_hashes=False)


def test_a_link_that_leads_out_of_the_bundle(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    path, _ = tiny_bundle
    outside = tmp_path / "outside.bin"
    (path / "weights.bin").rename(outside)
    (path / "weights.bin").symlink_to(outside)
    with pytest.raises(BundleError, match=r"weights\.bin leads out of the bundle"):
        Bundle.open(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"a":' * 5000, b'{"schema_version": 1}']
)
def test_a_manifest_that_is_none(tiny_bundle: TinyBundle, content: bytes) -> None:
    path, _ = tiny_bundle
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert_one_line(caught.value)


# --- the manifest's content --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, 1.5, 1.0, True, [1]])
def test_an_unknown_schema_version_is_refused(manifest_json: Json, version: object) -> None:
    with pytest.raises(BundleError, match=r"schema version .* reads version 1"):
        Manifest.from_json({**manifest_json, "schema_version": version})


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../weights.bin", "a/../../b", "a\\b", "a\0b"])
def test_a_path_that_leads_out_is_refused(manifest_json: Json, path: str) -> None:
    data = copy.deepcopy(manifest_json)
    data["artifacts"][0]["path"] = path
    with pytest.raises(BundleError, match="outside the bundle"):
        Manifest.from_json(data)


def _change(key: str, value: object) -> Callable[[Json], None]:
    def change(data: Json) -> None:
        *parents, last = key.split(".")
        target: Any = data
        for part in parents:
            target = target[int(part)] if part.isdigit() else target[part]
        target[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change("inputs", []), "no inputs or no outputs"),
        (_change("inputs.0.dtype", "float33"), "unknown dtype 'float33'"),
        (_change("inputs.0.shape", [-1]), "bad shape"),
        (_change("task.pooling", "max"), "unknown pooling 'max'"),
        (_change("artifacts.0.sha256", "ABC"), "not a SHA-256"),
        (_change("artifacts.0.size_bytes", -1), "negative size"),
        (_change("artifacts.1.form", "folded"), "unknown form 'folded'"),
        (_change("artifacts.1.rank", None), "a static graph has a rank"),
        (_change("artifacts.1.rank", 7), "ranks without a rung: \\[7\\]"),
        (_change("artifacts.1.path", "weights.bin"), "names a file twice"),
        (_change("ladder.layers", []), "the manifest's ladder"),
        (_change("ladder.rungs.0.rank", 99), "the manifest's ladder: rank 99"),
        (_change("ladder.layers.0.curve.knots", [[1, 1], [16, 99]]), "the manifest's ladder"),
        (_change("ladder.layers.0.curve.knots", [[1, 9], [16, 2]]), "must never fall"),
        (_change("ladder.layers.0.d_in", 16.0), "16.0 is not of type int"),
        (_change("ladder.rungs.0.dense", "false"), "'false' is not of type bool"),
        (_change("ladder.rungs.0.quality", {"spearman": float("nan")}), "nan is not a finite number"),
    ],
)
def test_values_that_make_no_sense(manifest_json: Json, change: Callable[[Json], None], message: str) -> None:
    data = copy.deepcopy(manifest_json)
    change(data)
    with pytest.raises(BundleError, match=message) as caught:
        Manifest.from_json(data)
    assert_one_line(caught.value)


_RECOMPUTED = ("max_rank", "dense_macs", "macs", "flops_fraction", "layer_ranks")
"""Written for people and other programs, never read."""

_OPTIONAL = {"form", "rank", "precision", "weight_bytes", "pooling", "max_length"}


def _required_keys(data: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where each key of a JSON document lies that a reader needs."""
    if isinstance(data, dict):
        for key, value in data.items():
            needed = key not in _RECOMPUTED and not (key in _OPTIONAL and at and at[0] in ("artifacts", "task"))
            if needed and (len(at) == 0 or at[0] != "created_by") and at[-1:] != ("quality",):
                yield (*at, key)
                yield from _required_keys(value, (*at, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _required_keys(value, (*at, index))


def test_every_key_is_needed(manifest_json: Json) -> None:
    keys = list(_required_keys(manifest_json))
    assert len(keys) > 50
    for *parents, last in keys:
        data = copy.deepcopy(manifest_json)
        target: Any = data
        for part in parents:
            target = target[part]
        del target[last]
        with pytest.raises(BundleError) as caught:
            Manifest.from_json(data)
        assert_one_line(caught.value)


_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(data=st.data(), junk=_JUNK)
def test_any_value_may_be_junk(manifest_json: Json, data: st.DataObject, junk: object) -> None:
    """Whatever stands anywhere: a manifest, or one line that says why not; never another exception."""
    document = copy.deepcopy(manifest_json)
    *parents, last = data.draw(st.sampled_from(list(_required_keys(manifest_json))))
    target: Any = document
    for part in parents:
        target = target[part]
    target[last] = junk
    try:
        manifest = Manifest.from_json(document)
    except BundleError as error:
        assert_one_line(error)
    else:
        assert Manifest.from_json(json.loads(json.dumps(manifest.to_json(), allow_nan=False))) == manifest


def test_unknown_keys_of_a_newer_writer_are_let_be(manifest_json: Json) -> None:
    newer = {**manifest_json, "novelty": {"a": 1}}
    assert Manifest.from_json(newer) == Manifest.from_json(manifest_json)
