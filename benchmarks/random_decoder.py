"""A decoder of any size for timing: a Llama whose weights and factors are random, exported like a real one.

How long a graph takes does not depend on the values of its weights, so nothing is downloaded and nothing factorised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nsn_edge.bundle import Bundle, TaskSpec
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import default_filter
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.ladder import uniform_ladder
from nsn_edge.layers import NSNLinear, replace_module_

POSITIONS = 1024


@dataclass(frozen=True)
class DecoderSize:
    """How large; the vocabulary is small, so that the nested layers are nearly all of the model."""

    hidden: int = 768
    layers: int = 8
    intermediate: int = 2048
    heads: int = 12
    vocabulary: int = 512


def random_decoder(size: DecoderSize) -> Checkpoint:
    """A Llama with random weights, every linear layer but the head nested with random factors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
        )
    ).eval()
    nest_randomly_(model)
    name = f"random Llama {sum(p.numel() for p in _dense_parameters(model)) / 1e6:.0f}M"
    return Checkpoint(model, TaskSpec("text-generation", max_length=POSITIONS), name, {"weights": "random"})


def nest_randomly_(model: nn.Module) -> None:
    """Put a nested layer with random factors, and the dense weight beside them, where each linear layer stands."""
    linears = {name: module for name, module in model.named_modules() if default_filter(module, name)}
    sizes = [(name, m.in_features, m.out_features, min(m.in_features, m.out_features)) for name, m in linears.items()]
    for layer in uniform_ladder(sizes).layers:
        old: Any = linears[layer.name]
        full = layer.curve.full_rank
        A = torch.randn(full, layer.d_in) / layer.d_in**0.5
        B = torch.randn(full, layer.d_out) / full**0.5
        replace_module_(model, old, NSNLinear.from_factors(A, B, old.bias, layer.curve, old.weight.detach()))


def export_random_decoder(path: Path, size: DecoderSize, config: ExportConfig) -> Bundle:
    """The same, as a bundle."""
    return export_bundle(random_decoder(size), path, config)


def _dense_parameters(model: nn.Module) -> list[torch.Tensor]:
    """Those that the original had: the nested layers' dense weights in place of their factors."""
    nested = [module for module in model.modules() if isinstance(module, NSNLinear)]
    factors = {id(tensor) for layer in nested for tensor in (layer.A, layer.B)}
    dense = [layer.weight for layer in nested if layer.weight is not None]
    return [parameter for parameter in model.parameters() if id(parameter) not in factors] + dense
