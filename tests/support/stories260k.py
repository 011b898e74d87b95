"""A real Llama of 260,000 parameters in llama2.c's layout, as transformers and tokenizers know it.

    stories260K.bin   7 x int32: dim, hidden, layers, heads, kv heads, vocabulary, positions; then float32 tensors, each
                      stacked over the layers, and two tables of the rotary embedding that nobody needs
    tok512.bin        int32; then for each token float32 score, int32 length, bytes

llama2.c rotates neighbouring features and transformers the two halves of a head, so the rows of the query and key
weights are put in another order, as transformers' conversion of the original Llama does.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nsn_edge.bundle import TaskSpec
from nsn_edge.calibration import collect_covariances
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, default_filter, nsnify_
from nsn_edge.runtimes.generation import Decoder
from nsn_edge.runtimes.generation.generator import left_padded

BOS, EOS = 1, 2
"""A text begins with the first; the model's author stops at either."""

_SPACE = "\u2581"


def load_model(folder: Path) -> LlamaForCausalLM:
    """The model, float32, embeddings and head tied."""
    data = (folder / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = struct.unpack("7i", data[:28])
    assert vocabulary > 0, "a negative size would say that the head is not tied"
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(_weights(data[28:], config), strict=False)
    return model.eval()


def _weights(data: bytes, config: LlamaConfig) -> dict[str, torch.Tensor]:
    values = np.frombuffer(data, dtype="<f4")
    dim, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv_dim = dim // config.num_attention_heads * config.num_key_value_heads
    taken = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal taken
        size = int(np.prod(shape))
        taken += size
        return torch.from_numpy(values[taken - size : taken].reshape(shape).copy())

    embedding = take(config.vocab_size, dim)
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": _halves(take(layers, dim, dim), config.num_attention_heads),
        "self_attn.k_proj": _halves(take(layers, kv_dim, dim), config.num_key_value_heads),
        "self_attn.v_proj": take(layers, kv_dim, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    weights = {f"model.layers.{i}.{name}.weight": w[i] for name, w in stacked.items() for i in range(layers)}
    weights |= {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding, "model.norm.weight": take(dim)}
    rotary = config.max_position_embeddings * (dim // config.num_attention_heads)
    assert len(values) - taken == rotary, "the file has another layout"
    return weights


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """`[layers, d_out, d_in]`: within each head, the even rows before the odd ones."""
    layers, d_out, d_in = weight.shape
    pairs = weight.reshape(layers, heads, d_out // heads // 2, 2, d_in)
    return pairs.transpose(2, 3).reshape(layers, d_out, d_in)


def load_tokenizer(folder: Path) -> Any:
    """The same tokens and merges as a `tokenizers.Tokenizer`; a text begins with `<s>`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = [piece for piece, _ in read_pieces(folder)]
    names = ["<unk>", "<s>", "</s>", *(piece.decode().replace(" ", _SPACE) for piece in pieces[3:])]
    ids = {name: index for index, name in enumerate(names)}
    assert len(ids) == len(pieces)
    merges = sorted(
        ((left, name[len(left) :]) for name in names[259:] for left in _beginnings(name) if left in ids),
        key=lambda pair: ids["".join(pair)],  # SentencePiece merges the likeliest first, and so are the tokens sorted
    )
    merges = [pair for pair in merges if pair[1] in ids]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names[:3]])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def read_pieces(folder: Path) -> list[tuple[bytes, float]]:
    """Each token's bytes and score."""
    data = (folder / "tok512.bin").read_bytes()

    def entries(at: int = 4) -> Iterator[tuple[bytes, float]]:
        while at < len(data):
            score, length = struct.unpack_from("fi", data, at)
            at += 8 + length
            yield data[at - length : at], score

    return list(entries())


def _beginnings(name: str) -> Iterator[str]:
    return (name[:end] for end in range(1, len(name)))


def write_assets(folder: Path, into: Path) -> Path:
    """The files that a model folder of transformers has beside its weights."""
    into.mkdir(parents=True, exist_ok=True)
    load_tokenizer(folder).save(str(into / "tokenizer.json"))
    (into / "generation_config.json").write_text(json.dumps({"bos_token_id": BOS, "eos_token_id": [EOS, BOS]}))
    return into


def published_text(folder: Path) -> str:
    """What the author's own program wrote, taking the likeliest token from the beginning of a text."""
    lines = (folder / "stories260K.md").read_text(encoding="utf-8").splitlines()
    command = next(number for number, line in enumerate(lines) if line.endswith("-t 0.0"))
    return "\n".join(itertools.takewhile(lambda line: line != "```", lines[command + 1 :]))


def told_stories(model: LlamaForCausalLM, stories: int, length: int, seed: int) -> torch.Tensor:
    """Stories that the model tells at temperature 1: int64 `[stories, length]`, the first token `<s>`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        begin = torch.full((stories, 1), BOS)
        return model.generate(
            begin,
            attention_mask=torch.ones_like(begin),
            max_new_tokens=length - 1,
            do_sample=True,
            top_k=0,
            eos_token_id=None,
            pad_token_id=0,
        )


def nested_checkpoint(
    folder: Path, assets: Path, method: str = "whitened", told: torch.Tensor | None = None
) -> Checkpoint:
    """The model cut into nested factors; for `whitened`, calibrated on what `told_stories` gives."""
    model = load_model(folder)
    covariances = None
    if told is not None:
        batches = [{"input_ids": part} for part in told.split(16)]
        covariances = collect_covariances(model, batches, default_filter)
    nsnify_(model, NSNConfig(method=method, align=1), covariances=covariances)
    task = TaskSpec("text-generation", max_length=model.config.max_position_embeddings)
    return Checkpoint(model, task, "stories260K", assets=write_assets(folder, assets))


def perplexity(decoder: Decoder, texts: np.ndarray, rank: int) -> float:
    """Of tokens `[texts, length]`, the first of each given, at a rank of the runtime."""
    step = decoder.step(*left_padded(texts.tolist()), decoder.empty_cache(len(texts)), rank)
    logits = step.logits[:, :-1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probabilities, texts[:, 1:, None], axis=-1)
    return float(np.exp(-chosen.mean()))
