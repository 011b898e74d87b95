"""Half precision: the graph is float16 throughout, and agrees with torch in float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from families import family_checkpoint, left_padded
from torch import nn

from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import UsageError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.trace import trace_module
from nsn_edge.export.verify import TOLERANCES, verify_bundle


def half_checkpoint(family: str) -> Checkpoint:
    checkpoint = family_checkpoint(family)
    checkpoint.model.half()
    return checkpoint


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_every_form_in_half_precision_says_what_torch_says(family: str, tmp_path: Path) -> None:
    checkpoint = half_checkpoint(family)
    bundle = export_bundle(checkpoint, tmp_path / "bundle", ExportConfig(fractions=(), ranks=(9,), forms=GRAPH_FORMS))
    graphs = [artifact for artifact in bundle.manifest.artifacts if artifact.kind == "graph"]
    assert {artifact.precision for artifact in graphs} == {"fp16"}
    values = {spec.dtype for spec in (*bundle.manifest.inputs, *bundle.manifest.outputs)}
    assert values == {"int64", "float16"}
    for artifact in graphs:
        for name, value in ir.load(bundle.file(artifact)).graph.initializers.items():
            # What is computed in float32 on purpose, rotary angles for one, has small constants of its own.
            small = value.const_value is not None and value.const_value.size <= 64
            assert value.dtype != ir.DataType.FLOAT or small, f"{artifact.path}: {name} is float32"
    batches = [left_padded(3, 17), left_padded(1, 1)]
    if family == "bert":
        batches = [{**batch, "token_type_ids": np.zeros_like(batch["input_ids"])} for batch in batches]
    report = verify_bundle(bundle, checkpoint, batches)
    report.raise_if_failed()
    assert {check.tolerance for check in report.checks} == {TOLERANCES["fp16"]}
    assert max(check.max_relative_diff for check in report.checks) > 0  # two implementations of float16 never agree


def test_single_precision_is_as_before_after_a_model_in_half_precision(tmp_path: Path) -> None:
    config = ExportConfig(fractions=(), ranks=(9,), forms=("static",))
    export_bundle(half_checkpoint("llama"), tmp_path / "half", config)
    checkpoint = family_checkpoint("llama")
    bundle = export_bundle(checkpoint, tmp_path / "single", config)
    assert {artifact.precision for artifact in bundle.manifest.artifacts if artifact.kind == "graph"} == {"fp32"}
    report = verify_bundle(bundle, checkpoint, [left_padded(3, 17)])
    report.raise_if_failed()
    assert {check.tolerance for check in report.checks} == {TOLERANCES["fp32"]}


@pytest.mark.parametrize(
    ("dtypes", "words"),
    [
        ((torch.bfloat16, torch.bfloat16), r"holds bfloat16 weights; .*model.half\(\)"),
        ((torch.float16, torch.float32), "holds float16 and float32 weights"),
    ],
)
def test_other_precisions_are_refused_with_the_way_out(dtypes: tuple[torch.dtype, torch.dtype], words: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).eval()
    nsnify_(model, NSNConfig(method="svd", align=1))
    for layer, dtype in zip(model, dtypes, strict=True):
        layer.to(dtype)
    with pytest.raises(UsageError, match=words):
        trace_module(model, {"input": torch.randn(2, 6)}, ["y"], {})
