"""How long a text a loaded model takes, where its tokenizer does not say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decoder_folder import write_decoder_folder
from families import POSITIONS

from nsn_edge.pretrained import load_pretrained


@pytest.mark.parametrize(
    ("family", "task", "longest"),
    [
        ("bert", "feature-extraction", POSITIONS),
        ("roberta", "feature-extraction", POSITIONS - 2),  # its first two positions are the padding's
        ("gpt2", "text-generation", POSITIONS),
        ("llama", "text-generation", POSITIONS),
    ],
)
def test_the_longest_text_is_the_position_table_s(family: str, task: str, longest: int, tmp_path: Path) -> None:
    pretrained = load_pretrained(write_decoder_folder(tmp_path / family, family), task)
    assert pretrained.task.max_length == longest
    ids = torch.full((1, longest), 5)
    assert torch.isfinite(pretrained.model(input_ids=ids)[0]).all()
    if family != "llama":  # rotary positions have no table to run out of
        with pytest.raises((IndexError, RuntimeError)):
            pretrained.model(input_ids=torch.full((1, longest + 1), 5))
