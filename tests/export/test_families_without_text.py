"""A vision transformer and a cut head: what is not the usual text model with a dense head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import IMAGE, family_checkpoint, family_model, left_padded

from nsn_edge.adaptation import adapt
from nsn_edge.bundle import TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import EngineError, UsageError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.verify import verify_bundle
from nsn_edge.layers import nsn_layers
from nsn_edge.pretrained import load_pretrained
from nsn_edge.runtimes.engines import OnnxRuntimeEngine

STATIC = ExportConfig(fractions=(), ranks=(9,), forms=("static",))


def images(n: int, size: int = IMAGE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 3, size, size)).astype(np.float32)


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    family_model("vit").save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    return folder


def test_a_model_without_a_tokenizer_is_calibrated_on_its_inputs(vit_folder: Path, tmp_path: Path) -> None:
    batches = [{"pixel_values": torch.from_numpy(images(4))}]
    checkpoint = adapt(vit_folder, "image-classification", NSNConfig(align=1), batches=batches)
    assert load_pretrained(vit_folder, "image-classification").tokenizer is None
    assert checkpoint.provenance["calibration_tokens"] == 4 * (1 + (IMAGE // 4) ** 2)
    assert "calibration_text" not in checkpoint.provenance
    checkpoint.save(tmp_path / "checkpoint")
    checkpoint = Checkpoint.load(tmp_path / "checkpoint")
    bundle = export_bundle(checkpoint, tmp_path / "bundle", STATIC)
    verify_bundle(bundle, checkpoint, [{"pixel_values": images(n)} for n in (1, 5)]).raise_if_failed()
    assert (bundle.path / "preprocessor_config.json").is_file()


def test_without_text_or_inputs_there_is_only_plain_svd(vit_folder: Path) -> None:
    with pytest.raises(UsageError, match="reads no text") as caught:
        adapt(vit_folder, "image-classification")
    assert "--method svd" in caught.value.hint
    checkpoint = adapt(vit_folder, "image-classification", NSNConfig(method="svd"))
    assert len(checkpoint.ladder.layers) == 2 * 6


def test_an_image_of_another_size_is_an_error(tmp_path: Path) -> None:
    bundle = export_bundle(family_checkpoint("vit"), tmp_path / "bundle", STATIC)
    graph = OnnxRuntimeEngine(threads=1).load(bundle.file(bundle.graph(9)))
    assert graph.run({"pixel_values": images(2)})["logits"].shape == (2, 5)
    with pytest.raises(EngineError, match=r"rank-009\.onnx"):
        graph.run({"pixel_values": images(2, size=2 * IMAGE)})
    graph.close()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_head_is_cut_when_asked(family: str, tmp_path: Path) -> None:
    """The llama's is tied to its embeddings, which stay as they are."""
    model = family_model(family)
    embeddings = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    nsnify_(model, NSNConfig(method="svd", align=1, heads=True))
    assert name in nsn_layers(model)
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), embeddings, rtol=0, atol=0)
    Checkpoint(model, TaskSpec("text-generation"), "cut").save(tmp_path / "checkpoint")
    checkpoint = Checkpoint.load(tmp_path / "checkpoint")
    bundle = export_bundle(checkpoint, tmp_path / "bundle", STATIC)
    verify_bundle(bundle, Checkpoint(model, checkpoint.task, "cut"), [left_padded(3, 9)]).raise_if_failed()
    rungs = {check.rank: check for check in verify_bundle(bundle, checkpoint, [left_padded(1, 4)]).checks}
    assert set(rungs) == {9, 32}
