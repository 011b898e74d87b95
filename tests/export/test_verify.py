"""Verification: it passes what is right, and names what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nsn_edge.bundle import Bundle, TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import UsageError, VerificationError
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.export.trace import trace_module
from nsn_edge.export.verify import verify_bundle

Batches = list[dict[str, np.ndarray]]


def test_a_good_bundle_passes_at_rungs_and_between(
    bert_bundle: Bundle, bert_checkpoint: Checkpoint, bert_batches: Batches
) -> None:
    report = verify_bundle(bert_bundle, bert_checkpoint, bert_batches)
    assert report.passed
    report.raise_if_failed()
    rungs = set(bert_bundle.manifest.ladder.ranks)
    static = {check.rank for check in report.checks if check.form == "static"}
    for form in ("sliced", "masked"):
        ranks = {check.rank for check in report.checks if check.form == form}
        assert ranks > rungs | {1, 32}
    assert static == rungs
    assert all(0 <= check.max_abs_diff < 1e-4 for check in report.checks)
    assert report.to_json()["passed"] is True


def test_altered_weights_are_found_and_the_tensor_is_named(
    bert_bundle: Bundle, bert_checkpoint: Checkpoint, bert_batches: Batches, tmp_path: Path
) -> None:
    path = tmp_path / "altered"
    shutil.copytree(bert_bundle.path, path)
    weights = np.memmap(path / "weights.bin", dtype=np.float32, mode="r+")
    weights[np.abs(weights) > 0.2] *= 1.5
    weights.flush()
    report = verify_bundle(Bundle.open(path, check_hashes=False), bert_checkpoint, bert_batches)
    assert not report.passed
    with pytest.raises(VerificationError, match="last_hidden_state differs by"):
        report.raise_if_failed()


def test_weights_that_are_not_numbers_do_not_pass(
    bert_bundle: Bundle, bert_checkpoint: Checkpoint, bert_batches: Batches, tmp_path: Path
) -> None:
    path = tmp_path / "nan"
    shutil.copytree(bert_bundle.path, path)
    weights = np.memmap(path / "weights.bin", dtype=np.float32, mode="r+")
    weights[:] = np.nan
    weights.flush()
    report = verify_bundle(Bundle.open(path, check_hashes=False), bert_checkpoint, bert_batches)
    assert not any(check.passed for check in report.checks)
    assert report.to_json()["checks"][0]["max_abs_diff"] is None
    with pytest.raises(VerificationError):
        report.raise_if_failed()


def test_a_checkpoint_trained_on_since_the_export_is_noticed(
    bert_bundle: Bundle, bert_checkpoint: Checkpoint, bert_batches: Batches
) -> None:
    parameter = next(bert_checkpoint.model.parameters())
    with torch.no_grad():
        parameter.mul_(1.01)
        try:
            report = verify_bundle(bert_bundle, bert_checkpoint, bert_batches)
        finally:
            parameter.div_(1.01)
    assert not report.passed


def test_another_model_is_refused(bert_bundle: Bundle, bert_batches: Batches) -> None:
    model = nn.Sequential(nn.Linear(6, 6)).eval()
    nsnify_(model, NSNConfig(method="svd"))
    other = Checkpoint(model=model, task=TaskSpec("custom"), name="other", provenance={})
    with pytest.raises(UsageError, match="exported from another model"):
        verify_bundle(bert_bundle, other, bert_batches)


def test_no_batches_is_no_verification(bert_bundle: Bundle, bert_checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="no input batches"):
        verify_bundle(bert_bundle, bert_checkpoint, [])


def test_a_size_that_the_trace_fixed_is_found(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = 0
            for row in range(x.shape[0]):  # a Python loop: the trace keeps the traced number of rows
                total = total + x[row]
            return self.layer(total)

    model = Fixed().eval()
    nsnify_(model, NSNConfig(method="svd", align=1))
    checkpoint = Checkpoint(model=model, task=TaskSpec("custom"), name="fixed", provenance={})
    graph = trace_module(model, {"x": torch.randn(2, 4)}, ["y"], {"x": {0: "n"}})
    bundle = export_bundle(checkpoint, tmp_path / "b", ExportConfig(fractions=(), ranks=(2,)), graph=graph)
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(n, 4)).astype(np.float32)} for n in (2, 5)]
    report = verify_bundle(bundle, checkpoint, batches)
    assert {check.worst_batch for check in report.checks} == {1}
    assert not report.passed
