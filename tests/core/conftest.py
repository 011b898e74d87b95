"""Small random transformers and a sentence embedder's folder: the real classes, in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = (
    *("the", "a", "cat", "dog", "mat", "house", "it", "she", "he", "they"),
    *("sat", "ran", "saw", "on", "under", "and", "or", "red", "blue", "big"),
)


def make_bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=80,
        vocab_size=40,
        max_position_embeddings=24,
    )
    return BertModel(config).eval()


def make_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=40, n_positions=24, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


class Tied(nn.Module):
    """One linear layer at two places, as in weight-shared networks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 12)
        self.inner = nn.ModuleDict({"second": self.first})
        self.last = nn.Linear(12, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner["second"](torch.tanh(self.first(x))))


@pytest.fixture
def bert() -> BertModel:
    return make_bert()


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    return make_gpt2()


@pytest.fixture
def tied() -> Tied:
    return Tied()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three sequences, two of them padded."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    mask[2, 2:] = 0
    return {"input_ids": torch.randint(1, 40, (3, 9), generator=generator), "attention_mask": mask}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=20,
    )


@pytest.fixture(scope="session")
def embedder_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A sentence embedder as sentence-transformers lays it out: mean pooling, normalised, 12 tokens at most.

    Tests read it; one that damages it copies it first.
    """
    folder = tmp_path_factory.mktemp("models") / "tiny-embedder"
    make_bert().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    return folder
