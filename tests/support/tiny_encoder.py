"""A tiny random sentence encoder as sentence-transformers lays it out; its tokenizer spells words it does not know, so
that real text gives real variety."""

from __future__ import annotations

import json
import string
from pathlib import Path

MAX_LENGTH = 24
HIDDEN = 64
"""Also the largest rank."""

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_LETTERS = string.ascii_lowercase + string.digits
_WORDS = ("the", "a", "is", "of", "to", "and", "file", "class", "error", "value", "object", "statement", "with", "if")


def vocabulary() -> list[str]:
    """Every token, by id."""
    signs = [sign for sign in string.punctuation if sign not in "[]"]
    spelled = [*_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    return [*_SPECIAL, *signs, *spelled, *(word for word in _WORDS if len(word) > 1)]


def write_encoder_folder(path: Path) -> Path:
    """Write configuration, random weights, tokenizer and the embedder's modules: mean pooling, length 1."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokens = vocabulary()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=32,
        initializer_range=0.4,  # texts that differ shall have embeddings that do
    )
    BertModel(config).save_pretrained(path)
    core = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), _SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=MAX_LENGTH, **special).save_pretrained(path)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": place} for kind, place in kinds.items()]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_LENGTH}))
    return path
