"""A small random model of every supported family, with norms and biases that count, cut into nested factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers as hf

from nsn_edge.bundle import TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, nsnify_

VOCABULARY = 96
POSITIONS = 64
IMAGE = 16

_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
_GROUPED = {**_ENCODER, "num_key_value_heads": 2}
_PHRASE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": POSITIONS}

DECODERS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=POSITIONS)
    ),
    "gpt_neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(**_PHRASE, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8)
    ),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_ENCODER)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_GROUPED, tie_word_embeddings=True)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_GROUPED, sliding_window=8)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_GROUPED, head_dim=8)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**_GROUPED, head_dim=8)),
}
"""By transformers' model type. Their sliding windows are shorter than the tests' texts."""

ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**_ENCODER), add_pooling_layer=False),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**_ENCODER), add_pooling_layer=False),
    "vit": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=IMAGE,
            patch_size=4,
            num_labels=5,
        )
    ),
}
"""By transformers' model type."""

_TASKS = {**dict.fromkeys(DECODERS, "text-generation"), "vit": "image-classification"}


def family_model(name: str) -> Any:
    """A random model, every parameter moved off its initial value, in evaluation mode."""
    torch.manual_seed(0)
    model = {**DECODERS, **ENCODERS}[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def family_checkpoint(name: str) -> Checkpoint:
    """The same, cut by plain SVD."""
    model = family_model(name)
    nsnify_(model, NSNConfig(method="svd", align=1))
    return Checkpoint(model, TaskSpec(_TASKS.get(name, "feature-extraction")), f"tiny-{name}")


def left_padded(batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens `[batch, length]`; row `i` begins with `2 i` of padding."""
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, (batch, length))
    mask = (np.arange(length) >= 2 * np.arange(batch)[:, None]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask}
