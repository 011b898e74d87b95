"""A rung of a decoder's bundle is an ordinary decoder export: Optimum loads it where it lies and generates with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import family_checkpoint, left_padded

from nsn_edge.checkpoint import Checkpoint
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.layers import at_dense, at_rank

RANK = 9
GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma"])
def test_optimum_generates_from_a_rung_what_torch_generates_at_its_rank(family: str, tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    family_checkpoint(family).save(tmp_path / "checkpoint")
    checkpoint = Checkpoint.load(tmp_path / "checkpoint")
    config = ExportConfig(fractions=(), ranks=(RANK,), forms=("static",))
    bundle = export_bundle(checkpoint, tmp_path / "bundle", config)
    prompt = {name: torch.from_numpy(value) for name, value in left_padded(3, 9).items()}
    for rank, dense in ((RANK, False), (bundle.manifest.ladder.max_rank, True)):
        with at_dense(checkpoint.model) if dense else at_rank(checkpoint.model, rank):
            wanted = checkpoint.model.generate(**prompt, **GREEDY)
        loaded = ORTModelForCausalLM.from_pretrained(bundle.path, file_name=bundle.graph(rank).path)
        assert loaded.generate(**prompt, **GREEDY).tolist() == wanted.tolist()
