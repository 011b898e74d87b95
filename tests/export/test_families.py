"""Every model family: torch against onnxruntime, in every form, at rungs and between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import DECODERS, ENCODERS, IMAGE, VOCABULARY, family_checkpoint, family_model, left_padded

from nsn_edge.bundle import TaskSpec
from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import UnsupportedModelError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.trace import FAMILIES, trace
from nsn_edge.export.verify import verify_bundle

RUNGS = ExportConfig(fractions=(), ranks=(2, 9, 21), forms=GRAPH_FORMS)

_ENCODER = {"query", "key", "value", "dense"}
_GATED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
CUT = {
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gpt_neo": {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _GATED),
    **dict.fromkeys(("bert", "roberta", "vit"), _ENCODER),
}
"""The linear layers of attention and MLP, by the last part of their names."""

SHAPES = ((1, 1), (3, 27), (5, 11))
"""Batch and length; none is what Optimum traces with (2 and 16)."""


def batches(family: str) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    if family == "vit":
        return [{"pixel_values": rng.normal(size=(n, 3, IMAGE, IMAGE)).astype(np.float32)} for n in (1, 3)]
    made = [left_padded(batch, length) for batch, length in SHAPES]
    if family == "bert":
        made = [{**batch, "token_type_ids": rng.integers(0, 2, batch["input_ids"].shape)} for batch in made]
    return made


def test_every_family_that_is_said_to_work_is_tested() -> None:
    assert set(FAMILIES) == set(DECODERS) | set(ENCODERS) == set(CUT)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_says_what_torch_says(family: str, tmp_path: Path) -> None:
    checkpoint = family_checkpoint(family)
    assert {layer.name.rsplit(".", 1)[-1] for layer in checkpoint.ladder.layers} == CUT[family]
    bundle = export_bundle(checkpoint, tmp_path / "bundle", RUNGS)
    report = verify_bundle(bundle, checkpoint, batches(family))
    report.raise_if_failed()
    assert {check.form for check in report.checks} == set(GRAPH_FORMS)
    assert [check.rank for check in report.checks if check.form == "static"] == [2, 9, 21, 32]
    assert [check.dense for check in report.checks if check.form == "static"] == [False, False, False, True]
    assert all(sum(check.form == form for check in report.checks) >= 8 for form in GRAPH_FORMS[1:])


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])  # Conv1D, grouped and tied, grouped
def test_a_saved_decoder_exports_the_same(family: str, tmp_path: Path) -> None:
    family_checkpoint(family).save(tmp_path / "checkpoint")
    loaded = Checkpoint.load(tmp_path / "checkpoint")
    bundle = export_bundle(loaded, tmp_path / "bundle", ExportConfig(fractions=(), ranks=(9,), forms=("static",)))
    verify_bundle(bundle, family_checkpoint(family), [left_padded(2, 7)]).raise_if_failed()
    heads = 4 if family.startswith("gpt") else 2
    cache = ("batch_size", heads, "past_sequence_length + sequence_length", 8)
    assert {spec.name: spec.shape for spec in bundle.manifest.outputs} == {
        "logits": ("batch_size", "sequence_length", VOCABULARY),
        **{f"present.{layer}.{kind}": cache for layer in (0, 1) for kind in ("key", "value")},
    }


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama", "gemma"])
def test_tied_embeddings_are_stored_once(family: str, tmp_path: Path) -> None:
    checkpoint = family_checkpoint(family)
    model = checkpoint.model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    bundle = export_bundle(checkpoint, tmp_path / "bundle", ExportConfig(fractions=(), ranks=(9,), forms=GRAPH_FORMS))
    tied = model.lm_head.weight.detach().numpy()
    data = (bundle.path / "weights.bin").read_bytes()
    assert data.count(tied.tobytes()) == 1
    assert data.count(np.ascontiguousarray(tied.T).tobytes()) == 0


def test_an_untied_head_keeps_the_layout_that_is_fastest(tmp_path: Path) -> None:
    checkpoint = family_checkpoint("qwen2")
    bundle = export_bundle(checkpoint, tmp_path / "bundle", ExportConfig(fractions=(), ranks=(9,), forms=("static",)))
    head = checkpoint.model.lm_head.weight.detach().numpy()
    assert (bundle.path / "weights.bin").read_bytes().count(np.ascontiguousarray(head.T).tobytes()) == 1


def test_an_architecture_that_optimum_does_not_know_is_named_with_those_that_work() -> None:
    import transformers as hf

    model = hf.RwkvForCausalLM(hf.RwkvConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2)).eval()
    nsnify_(model, NSNConfig(method="svd"))
    with pytest.raises(
        UnsupportedModelError, match=r"RwkvForCausalLM \(rwkv\) for the task 'text-generation'"
    ) as caught:
        trace(Checkpoint(model, TaskSpec("text-generation"), "rwkv"))
    assert "llama" in caught.value.hint
    assert "register_tasks_manager_onnx" in caught.value.hint


def test_an_architecture_can_be_added() -> None:
    """As the documentation of supported models shows it."""
    import transformers as hf
    from optimum.exporters.onnx.model_configs import LlamaOnnxConfig, register_tasks_manager_onnx

    @register_tasks_manager_onnx("starcoder2", "text-generation", "text-generation-with-past")
    class Starcoder2OnnxConfig(LlamaOnnxConfig):  # the same inputs, the same cache
        pass

    config = hf.Starcoder2Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    model = hf.Starcoder2ForCausalLM(config).eval()
    nsnify_(model, NSNConfig(method="svd"))
    graph = trace(Checkpoint(model, TaskSpec("text-generation"), "starcoder2"))
    assert [value.name for value in graph.model.graph.outputs] == ["logits", "present.0.key", "present.0.value"]


def test_positions_that_grow_with_the_text_are_refused() -> None:
    import transformers as hf

    for scaling in ({"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}):
        model = hf.LlamaForCausalLM(
            hf.LlamaConfig(
                vocab_size=50,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                rope_scaling=scaling,
            )
        ).eval()
        nsnify_(model, NSNConfig(method="svd"))
        checkpoint = Checkpoint(model, TaskSpec("text-generation"), "llama")
        if scaling["rope_type"] == "linear":
            assert trace(checkpoint).model.graph.num_nodes() > 10
        else:
            with pytest.raises(UnsupportedModelError, match="rope type 'dynamic'"):
                trace(checkpoint)


def test_tracing_leaves_a_decoder_as_it_was() -> None:
    import torch

    model = family_model("llama")
    batch = {name: torch.from_numpy(value) for name, value in left_padded(2, 9).items()}
    checkpoint = family_checkpoint("llama")
    before = checkpoint.model(**batch)
    trace(checkpoint)
    after = checkpoint.model(**batch)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=0)
    assert type(after.past_key_values) is type(before.past_key_values)
    torch.testing.assert_close(after.logits, model(**batch).logits, rtol=1e-4, atol=1e-5)  # full rank is the original
