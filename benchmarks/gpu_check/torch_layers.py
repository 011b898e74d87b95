"""The reference for what nesting can give: layers of 4096 in torch, every rank a prefix of the same two tensors.

    dense      y = x W^T                          weight-bound at few tokens, compute-bound at many
    rank r     y = (x A[:r]^T) B[:r]

A stack of them, so that the weights do not fit the cache of the GPU, as those of a real model do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu_check.section import NotHereError, Section
from gpu_check.timing import latency_rows, nvml, switch_row
from gpu_check.torch_device import TorchDevice

FRACTIONS = (0.75, 0.5, 0.35, 0.25)
_ALIGN = 64
_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
"""Largest difference to float64, against the largest value of the output."""


@dataclass(frozen=True)
class Size:
    """Of the stack, and what is run through it."""

    width: int
    layers: int
    tokens: tuple[tuple[str, int, int], ...]
    """Name, batch and tokens of each."""


_FULL = Size(4096, 16, (("decode", 1, 1), ("decode", 32, 1), ("prefill", 1, 512), ("prefill", 32, 128)))
_QUICK = Size(128, 2, (("decode", 1, 1), ("prefill", 2, 8)))


def run(section: Section) -> None:
    """Measure."""
    device = TorchDevice(section)
    size = _QUICK if section.plan.quick or not device.on_gpu else _FULL
    names = ["float32"] if not device.on_gpu else ["float16", "bfloat16", "float32"]
    with device.torch.inference_mode(), nvml(section) as gpu:
        for name in names:
            # One dtype in full; of the others the tokens at which weights and products decide.
            first = name == names[0]
            tokens = size.tokens if first else (size.tokens[0], size.tokens[-1])
            work = partial(_measure_stack, section, device, size, name, tokens, gpu if first else None)
            section.part(name, work, least_s=10.0 if device.on_gpu else 1.0)


def _measure_stack(section: Section, device: TorchDevice, size: Size, dtype: str, tokens: Any, gpu: Any) -> None:
    _measure(section, device, _Stack(device, size, dtype), tokens, gpu)


class _Stack:
    """Nested layers one after the other, with the dense weights beside their factors."""

    def __init__(self, device: TorchDevice, size: Size, dtype_name: str) -> None:
        from nsn_edge.ladder import uniform_ladder
        from nsn_edge.layers import NSNLinear

        self.device, self.size, self.dtype_name = device, size, dtype_name
        self.dtype = getattr(device.torch, dtype_name)
        width, full = size.width, size.width // 2  # where factors cost as much as the dense layer
        layers = size.layers
        each = 2 * width * width * device.torch.finfo(self.dtype).bits // 8
        if device.on_gpu:
            layers = min(layers, int(0.6 * device.free_bytes()) // each)
        if layers < 2:
            raise NotHereError(f"a layer takes {each / 1e6:.0f} MB, {device.free_bytes() / 1e6:.0f} MB are free")
        ladder = uniform_ladder([(str(i), width, width, full) for i in range(layers)], align=min(_ALIGN, full // 8))
        self.ranks = [ladder.rank_for_fraction(fraction) for fraction in FRACTIONS]
        self.dense = full + 1  # stands for the dense layers, which are no rank
        self.fractions = {**{rank: ladder.flops_fraction(rank) for rank in self.ranks}, self.dense: 1.0}
        self.bytes = layers * each // 2
        scale = width**-0.5
        self.modules = [
            NSNLinear.from_factors(
                device.random(full, width, dtype=self.dtype, scale=scale),
                device.random(full, width, dtype=self.dtype, scale=full**-0.5),
                None,
                layer.curve,
                device.random(width, width, dtype=self.dtype, scale=scale),
            )
            for layer in ladder.layers
        ]

    def select(self, rank: int) -> None:
        """Make every layer one of that rank, or dense."""
        for module in self.modules:
            module.dense = rank == self.dense
            if rank != self.dense:
                module.rank = module.curve(rank)

    def __call__(self, x: Any) -> Any:
        for module in self.modules:
            x = module(x)
        return x

    def at(self, rank: int, x: Any) -> Callable[[], Any]:
        """A call at a rank."""

        def call() -> Any:
            self.select(rank)
            return self(x)

        return call


def _measure(section: Section, device: TorchDevice, stack: _Stack, tokens: Any, gpu: Any) -> None:
    results, quick = section.results, section.plan.quick
    about = {"model": f"{len(stack.modules)} layers of {stack.size.width}", "dtype": stack.dtype_name}
    results.parity += [_parity(device, stack, rank, about) for rank in (*stack.ranks, stack.dense)]
    for workload, batch, length in tokens:
        x = device.random(batch * length, stack.size.width, dtype=stack.dtype, scale=1.0)
        place = {**about, "workload": workload, "batch_size": batch, "tokens": length}
        runs = {rank: stack.at(rank, x) for rank in (stack.dense, *reversed(stack.ranks))}
        count = device.count_for(runs[stack.dense], quick)
        eager = {rank: device.eager(call, count) for rank, call in runs.items()}
        results.rows += latency_rows(section, eager, stack.fractions, stack.dense, None, count, **place, form="eager")
        if device.on_gpu:
            recorded = device.recorded(runs)
            calls = recorded.calls(count)
            energy = gpu if batch == 1 else None  # it takes seconds a rung
            results.rows += latency_rows(
                section, calls, stack.fractions, stack.dense, energy, count, **place, form="CUDA graph"
            )
            results.memory += [
                {**place, "form": "CUDA graph", "rank": rank, "added_bytes": added, "of_weights": added / stack.bytes}
                for rank, added in list(recorded.added_bytes.items())[1:]
            ]
            once = recorded.calls(1)
            results.switches.append(switch_row(section, once, lambda rank: None, **place, form="CUDA graph"))
        single = {rank: device.eager(lambda x=x: stack(x), 1) for rank in runs}
        results.switches.append(switch_row(section, single, stack.select, **place, form="eager"))
    if not device.on_gpu:
        results.notes.append("CUDA graphs and memory: not run: they need a GPU")


def _parity(device: TorchDevice, stack: _Stack, rank: int, about: dict[str, Any]) -> dict[str, Any]:
    """The first layer on a few tokens against float64 on the processor."""
    torch = device.torch
    layer = stack.modules[0]
    x = device.random(4, stack.size.width, dtype=stack.dtype, scale=1.0)
    stack.select(rank)
    y = layer(x).double().cpu()
    exact = x.double().cpu()
    if rank == stack.dense:
        expected = exact @ layer.weight.double().cpu().t()
    else:
        factors = [factor[: layer.curve(rank)].double().cpu() for factor in (layer.A, layer.B)]
        expected = exact @ factors[0].t() @ factors[1]
    difference = float((y - expected).abs().max() / expected.abs().max())
    limit = _TOLERANCE[stack.dtype_name]
    assert torch.isfinite(y).all(), f"rank {rank} gives values that are not numbers"
    return {
        **about,
        "rank": rank,
        "against": "float64",
        "difference": difference,
        "limit": limit,
        "ok": difference <= limit,
    }
