"""Writing a bundle: what is in it, what it weighs, and what is left when writing fails."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.errors import ExportError, NsnEdgeError, RankError, UsageError
from nsn_edge.export import exporter
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.graph import Graph
from nsn_edge.export.weights import WeightStore
from nsn_edge.layers import nsn_layers


def test_the_manifest_tells_what_is_there(bert_bundle: Bundle, bert_checkpoint: Checkpoint) -> None:
    reopened = Bundle.open(bert_bundle.path)
    assert reopened.manifest == bert_bundle.manifest
    assert reopened.manifest.model == "tiny-bert"
    assert reopened.manifest.architecture == "BertModel"
    assert reopened.manifest.ladder.layers == bert_checkpoint.ladder.layers
    assert reopened.manifest.ladder.rungs[-1].dense
    on_disk = {file.name for file in bert_bundle.path.iterdir()} - {"manifest.json"}
    assert on_disk == {artifact.path for artifact in reopened.manifest.artifacts}
    for artifact in reopened.manifest.artifacts:
        data = bert_bundle.file(artifact).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (artifact.size_bytes, artifact.sha256)


def test_inputs_and_outputs_keep_optimum_s_names_and_only_real_sizes_vary(bert_bundle: Bundle) -> None:
    manifest = bert_bundle.manifest
    assert [spec.name for spec in manifest.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert manifest.inputs[0].shape == ("batch_size", "sequence_length")
    assert manifest.inputs[0].dtype == "int64"
    (output,) = manifest.outputs
    assert (output.name, output.dtype) == ("last_hidden_state", "float32")
    assert output.shape == ("batch_size", "sequence_length", 32)


def test_weights_are_stored_once_whatever_the_number_of_rungs(
    bert_checkpoint: Checkpoint, bert_graph: Graph, tmp_path: Path
) -> None:
    def weights(ranks: tuple[int, ...], forms: tuple[str, ...] = GRAPH_FORMS) -> int:
        config = ExportConfig(fractions=(), ranks=ranks, forms=forms)
        bundle = export_bundle(bert_checkpoint, tmp_path / str(len(ranks)), config, graph=bert_graph)
        return next(a.size_bytes for a in bundle.manifest.artifacts if a.kind == "weights")

    few, many = weights((8,)), weights(tuple(range(1, 32)))
    assert many == few
    model = bert_checkpoint.model
    factors = sum(layer.A.nbytes + layer.B.nbytes for layer in nsn_layers(model).values())
    dense = sum(layer.weight.nbytes for layer in nsn_layers(model).values())
    others = sum(p.nbytes for n, p in model.named_parameters() if not n.endswith((".A", ".B")))
    assert many <= 1.1 * (factors + dense + others)  # alignment weighs more in a model this small
    # Rungs alone need no direction past the highest of them; an eighth of the ranks, an eighth of the factors.
    assert weights((4,), ("static",)) <= 1.1 * (factors / 8 + dense + others)


def test_weight_bytes_grow_with_the_rank_and_name_what_loading_reads(bert_bundle: Bundle) -> None:
    ladder = bert_bundle.manifest.ladder
    sizes = [bert_bundle.graph(rank).weight_bytes for rank in ladder.ranks]
    assert all(size is not None and size > 0 for size in sizes)
    assert sizes[:-1] == sorted(sizes[:-1])


def test_ranks_and_fractions_together_make_the_rungs(bert_checkpoint: Checkpoint) -> None:
    ladder = bert_checkpoint.ladder
    config = ExportConfig(fractions=(0.5,), ranks=(3, 3))
    assert config.rungs_of(ladder).ranks == (3, ladder.rank_for_fraction(0.5), 32)
    assert not ExportConfig(fractions=(0.5,), dense_top=False).rungs_of(ladder).rungs[-1].dense


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"ranks": (0,)}, RankError, "rank 0 is outside 1..32"),
        ({"ranks": (33,)}, RankError, "rank 33 is outside 1..32"),
        ({"fractions": (0.0,)}, RankError, r"lies in \(0, 1\]"),
        ({"fractions": (1.5,)}, RankError, r"lies in \(0, 1\]"),
        ({"forms": ("diagonal",)}, UsageError, "unknown form 'diagonal'"),
        ({"fractions": (), "dense_top": False}, UsageError, "without rungs"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    settings: dict[str, Any], error: type[Exception], words: str, bert_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        export_bundle(bert_checkpoint, tmp_path / "bundle", ExportConfig(**settings))
    assert list(tmp_path.iterdir()) == []


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), NsnEdgeError),
        (ExportError("a lowering failed"), ExportError),
    ],
    ids=["interrupt", "full disk", "lowering"],
)
@pytest.mark.parametrize("stage", ["store", "last graph"])
def test_a_failed_export_leaves_the_old_bundle(
    failure: BaseException,
    expected: type[BaseException],
    stage: str,
    bert_checkpoint: Checkpoint,
    bert_graph: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "bundle"
    old = export_bundle(bert_checkpoint, path, ExportConfig(fractions=(0.5,)), graph=bert_graph)

    def fail(*_: object) -> None:
        raise failure

    if stage == "store":
        monkeypatch.setattr(WeightStore, "_append", fail)
    else:
        monkeypatch.setattr(exporter, "lower_masked", fail)
    with pytest.raises(expected):
        export_bundle(bert_checkpoint, path, ExportConfig(fractions=(0.25,)), graph=bert_graph)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]
    assert Bundle.open(path).manifest == old.manifest


def test_a_full_disk_is_named_with_the_room_there_is(
    bert_checkpoint: Checkpoint, bert_graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightStore, "_append", full_disk)
    with pytest.raises(NsnEdgeError, match=r"no space left on the disk .* MB are free there"):
        export_bundle(bert_checkpoint, tmp_path / "bundle", graph=bert_graph)


def test_a_folder_that_is_not_a_bundle_is_never_replaced(
    bert_checkpoint: Checkpoint, bert_graph: Graph, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(UsageError, match="did not write"):
        export_bundle(bert_checkpoint, tmp_path, graph=bert_graph)
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_without_the_dense_weights_there_is_no_dense_rung(tmp_path: Path) -> None:
    import torch

    from nsn_edge.bundle import TaskSpec
    from nsn_edge.convert import NSNConfig, nsnify_
    from nsn_edge.export.trace import trace_module

    model = torch.nn.Sequential(torch.nn.Linear(6, 6)).eval()
    nsnify_(model, NSNConfig(method="svd", align=1, keep_dense=False))
    checkpoint = Checkpoint(model=model, task=TaskSpec("custom"), name="m", provenance={})
    graph = trace_module(model, {"input": torch.randn(2, 6)}, ["y"], {"input": {0: "n"}, "y": {0: "n"}})
    with pytest.raises(ExportError, match="original weight of '0', which was not kept"):
        export_bundle(checkpoint, tmp_path / "b", ExportConfig(fractions=(), ranks=(2,)), graph=graph)
    bundle = export_bundle(
        checkpoint, tmp_path / "b", ExportConfig(fractions=(), ranks=(2, 6), dense_top=False), graph=graph
    )
    assert bundle.manifest.ladder.ranks == (2, 6)
