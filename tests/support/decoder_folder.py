"""A tiny random decoder as `save_pretrained` leaves it, with a tokenizer that has no padding token."""

from __future__ import annotations

from pathlib import Path

from families import family_model

WORDS = ("the", "a", "to", "of", "is", "and", "in", "for", "object", "if", "class", "method", "call", "value")


def write_decoder_folder(path: Path, family: str = "llama") -> Path:
    """Write model, configuration and tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS), "abcdefghijklmnopqrstuvwxyz . , ( )"], trainer)
    family_model(family).save_pretrained(path)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path)
    return path
