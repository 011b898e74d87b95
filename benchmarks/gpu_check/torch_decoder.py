"""A decoder in torch at every rung, reading and writing: the whole-model reference.

Llama's blocks in their real sizes: normalisation, attention over a fixed cache, gated MLP; random weights. There is no
vocabulary and no rotary embedding: neither depends on the rank, and both would only dilute the ratios further.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_check.section import NotHereError, Section
from gpu_check.timing import latency_rows, nvml, switch_row
from gpu_check.torch_device import TorchDevice
from gpu_check.torch_layers import FRACTIONS

_TOLERANCE = {"float32": 1e-3, "float16": 2e-2}


def run(section: Section) -> None:
    """Measure."""
    device = TorchDevice(section)
    small = section.plan.quick or not device.on_gpu
    sizes = (64, 160, 2, 2, 16) if small else (4096, 11008, 32, 8, 512)
    with device.torch.inference_mode(), nvml(section) as gpu:
        decoder = Decoder(device, *sizes)
        section.results.facts["decoder"] = decoder.describe()
        for batch in (1, 2 if small else 32):
            work = partial(_measure, section, device, decoder, batch, gpu)
            section.part(f"batch {batch}", work, least_s=10.0 if device.on_gpu else 1.0)
        if not device.on_gpu:
            section.results.notes.append("CUDA graphs and memory: not run: they need a GPU")


class Decoder:
    """Blocks of nested layers over a cache of fixed length."""

    def __init__(self, device: TorchDevice, hidden: int, inner: int, heads: int, blocks: int, past: int) -> None:
        """
        Args:
            device: where it lies.
            hidden: width of a token.
            inner: width inside of the MLP.
            heads: of the attention.
            blocks: at most; fewer where memory is short.
            past: tokens that are read before writing.

        Raises:
            NotHereError: not even two blocks fit.
        """
        from nsn_edge.ladder import uniform_ladder
        from nsn_edge.layers import NSNLinear

        torch = device.torch
        self.device, self.heads, self.past, self.length = device, heads, past, 2 * past
        self.hidden, self.dtype = hidden, torch.float16 if device.on_gpu else torch.float32
        block = [*((name, hidden, hidden) for name in "qkvo"), ("gate", hidden, inner), ("up", hidden, inner)]
        block.append(("down", inner, hidden))
        each = sum(d_in * d_out for _, d_in, d_out in block) * 2 * torch.finfo(self.dtype).bits // 8
        if device.on_gpu:
            blocks = min(blocks, int(0.5 * device.free_bytes()) // each)
        if blocks < 2:
            raise NotHereError(f"a block takes {each / 1e6:.0f} MB, {device.free_bytes() / 1e6:.0f} MB are free")
        self.ladder = uniform_ladder(
            [
                (f"{i}.{name}", d_in, d_out, d_in * d_out // (d_in + d_out))
                for i in range(blocks)
                for name, d_in, d_out in block
            ],
            align=64 if device.on_gpu else 4,
        )
        self.bytes = blocks * each // 2
        self.ranks = [self.ladder.rank_for_fraction(fraction) for fraction in FRACTIONS]
        self.dense = self.ladder.max_rank + 1
        self.fractions = {**{rank: self.ladder.flops_fraction(rank) for rank in self.ranks}, self.dense: 1.0}
        self.blocks = blocks
        self.layers = {
            layer.name: NSNLinear.from_factors(
                device.random(layer.curve.full_rank, layer.d_in, dtype=self.dtype, scale=layer.d_in**-0.5),
                device.random(layer.curve.full_rank, layer.d_out, dtype=self.dtype, scale=layer.curve.full_rank**-0.5),
                None,
                layer.curve,
                device.random(layer.d_out, layer.d_in, dtype=self.dtype, scale=layer.d_in**-0.5),
            )
            for layer in self.ladder.layers
        }

    @property
    def dtype_name(self) -> str:
        """As `float16`."""
        return str(self.dtype).removeprefix("torch.")

    def describe(self) -> dict[str, Any]:
        """For the document."""
        return {"blocks": self.blocks, "hidden": self.hidden, "weight_bytes": self.bytes, "dtype": self.dtype_name}

    def select(self, rank: int) -> None:
        """Make the whole model one of that rank, or dense."""
        for layer in self.layers.values():
            layer.dense = rank == self.dense
            if rank != self.dense:
                layer.rank = layer.curve(rank)

    def cache(self, batch: int) -> list[tuple[Any, Any]]:
        """Keys and values of every block, `[batch, heads, length, width]`, empty."""
        shape = (batch, self.heads, self.length, self.hidden // self.heads)
        zeros = self.device.torch.zeros
        return [
            tuple(zeros(shape, device=self.device.where, dtype=self.dtype) for _ in "kv") for _ in range(self.blocks)
        ]

    def __call__(self, x: Any, cache: list[tuple[Any, Any]], positions: Any) -> Any:
        """Read tokens `[batch, n, hidden]` at `positions` `[n]`, a tensor, so that a recorded graph can move on."""
        torch = self.device.torch
        from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

        batch, n, hidden = x.shape
        mask = torch.arange(self.length, device=x.device)[None, :] <= positions[:, None]
        for i, (keys, values) in enumerate(cache):
            layer = {name: self.layers[f"{i}.{name}"] for name in ("q", "k", "v", "o", "gate", "up", "down")}
            y = rms_norm(x, (hidden,))
            q, k, v = (layer[name](y).view(batch, n, self.heads, -1).transpose(1, 2) for name in "qkv")
            keys.index_copy_(2, positions, k)
            values.index_copy_(2, positions, v)
            y = scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            x = x + layer["o"](y.transpose(1, 2).reshape(batch, n, hidden))
            y = rms_norm(x, (hidden,))
            x = x + layer["down"](silu(layer["gate"](y)) * layer["up"](y))
        return x

    def at(self, rank: int, x: Any, cache: list[tuple[Any, Any]], positions: Any) -> Callable[[], Any]:
        """A call at a rank."""

        def call() -> Any:
            self.select(rank)
            return self(x, cache, positions)

        return call


def _measure(section: Section, device: TorchDevice, decoder: Decoder, batch: int, gpu: Any) -> None:
    torch, results, quick = device.torch, section.results, section.plan.quick
    past = decoder.past
    prompt = device.random(batch, past, decoder.hidden, dtype=decoder.dtype, scale=1.0)
    token = device.random(batch, 1, decoder.hidden, dtype=decoder.dtype, scale=1.0)
    before, at = torch.arange(past, device=device.where), torch.tensor([past], device=device.where)
    cache = decoder.cache(batch)
    about = {"model": f"decoder of {decoder.blocks} blocks of {decoder.hidden}", "batch_size": batch}
    ranks = (decoder.dense, *reversed(decoder.ranks))
    if batch == 1:  # it takes two more caches
        results.parity += [_parity(decoder, rank, prompt, token, {**about}) for rank in ranks]
    long = past if batch == 1 else past // 4  # many prompts are read shorter: a board takes seconds for each call else
    for workload, x, positions in (("decode", token, at), ("prefill", prompt[:, :long].contiguous(), before[:long])):
        n = x.shape[1]
        place = {**about, "workload": workload, "tokens": n, "past": past if n == 1 else 0, "dtype": decoder.dtype_name}
        runs = {rank: decoder.at(rank, x, cache, positions) for rank in ranks}
        count = device.count_for(runs[decoder.dense], quick)
        eager = {rank: device.eager(call, count) for rank, call in runs.items()}
        results.rows += latency_rows(
            section, eager, decoder.fractions, decoder.dense, None, count, **place, form="eager"
        )
        if not device.on_gpu:
            continue
        recorded = device.recorded(runs)
        energy = gpu if batch == 1 else None  # it takes seconds a rung
        results.rows += latency_rows(
            section, recorded.calls(count), decoder.fractions, decoder.dense, energy, count, **place, form="CUDA graph"
        )
        results.memory += [
            {**place, "form": "CUDA graph", "rank": rank, "added_bytes": added, "of_weights": added / decoder.bytes}
            for rank, added in list(recorded.added_bytes.items())[1:]
        ]
        results.parity += [_replay_parity(device, decoder, recorded, rank, runs[rank], place) for rank in ranks]
        switch = switch_row(section, recorded.calls(1), lambda rank: None, **place, form="CUDA graph")
        results.switches.append(switch)
    single = {rank: device.eager(lambda: decoder(token, cache, at), 1) for rank in ranks}
    results.switches.append(switch_row(section, single, decoder.select, **about, workload="decode", form="eager"))


def _parity(decoder: Decoder, rank: int, prompt: Any, token: Any, about: dict[str, Any]) -> dict[str, Any]:
    """Reading all tokens at once against reading all but one, then that one from the cache."""
    torch = decoder.device.torch
    decoder.select(rank)
    n = prompt.shape[1]
    positions = torch.arange(n + 1, device=prompt.device)
    whole = decoder(torch.cat([prompt, token], dim=1), decoder.cache(prompt.shape[0]), positions)[:, -1]
    cache = decoder.cache(prompt.shape[0])
    decoder(prompt, cache, positions[:n])
    return _difference(decoder, rank, decoder(token, cache, positions[n:])[:, -1], whole, about, "one pass")


def _replay_parity(
    device: TorchDevice, decoder: Decoder, recorded: Any, rank: int, run: Callable[[], Any], about: dict[str, Any]
) -> dict[str, Any]:
    recorded.calls(1)[rank]()
    replayed = recorded.output.clone()
    eager = run()
    device.synchronise()
    return _difference(decoder, rank, replayed, eager, about, "eager")


def _difference(
    decoder: Decoder, rank: int, got: Any, expected: Any, about: dict[str, Any], against: str
) -> dict[str, Any]:
    difference = float((got - expected).abs().max() / expected.abs().max())
    assert difference == difference, f"rank {rank} gives values that are not numbers"
    limit = _TOLERANCE[decoder.dtype_name]
    return {
        **about,
        "rank": rank,
        "against": against,
        "difference": difference,
        "limit": limit,
        "ok": difference <= limit,
    }
