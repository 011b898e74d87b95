"""What each layer sees: the second moments of its inputs, streamed over calibration batches.

    for every batch:  forward pre-hooks see each distinct input (padding left out)  ->  C += x^T x  in float64

Only `[d_in, d_in]` per distinct input is kept, within a batch too, so calibration takes any number of tokens, and no
activation lives longer than without it. Layers fed by the very same tensor (query, key and value; gate and up) share
one sum.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nsn_edge.errors import UnsupportedModelError, UsageError
from nsn_edge.factorize import Covariance
from nsn_edge.progress import Progress, silent

Batch = Mapping[str, Tensor] | Tensor
"""Keyword arguments of the model (with `attention_mask` where there is padding), or its single input."""

COVARIANCE_BYTES = 4e9
"""What `StreamedCovariances` holds at a time. MiniLM's are 0.15 GB in all."""

ModuleFilter = Callable[[nn.Module, str], bool]
"""Whether a module, given with its qualified name, is meant."""


def collect_covariances(
    model: nn.Module, batches: Iterable[Batch], filter_fn: ModuleFilter, progress: Progress = silent
) -> dict[str, Covariance]:
    """Run the batches through the model and sum `x x^T` over the inputs of every module that the filter accepts.

    Tokens that `attention_mask` marks as padding are left out wherever a module's input has the mask's `[batch, seq]`
    as its leading shape. The model runs in evaluation mode without gradients; both are as before afterwards, and the
    hooks are gone, whatever happens.

    Args:
        model: on any device; batches are moved to that of its first parameter.
        batches: any number; each is run once.
        filter_fn: `(module, qualified name)`; names the layers that will be cut.
        progress: hears of every batch.

    Returns:
        By qualified name; a module that no batch reached has zero tokens. Modules that always saw the same tensor
        share one `Covariance` object.

    Raises:
        UnsupportedModelError: the filter accepts no module.
    """
    modules = {name: module for name, module in model.named_modules() if filter_fn(module, name)}
    if not modules:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no linear layers to cut, so there is nothing to calibrate",
            "linear layers inside it can be cut; heads are left as they are unless asked for",
        )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    sums: dict[tuple[str, ...], _Sum] = {}
    total = len(batches) if isinstance(batches, Sequence) else 0
    with evaluating(model), torch.no_grad():
        for done, batch in enumerate(batches, start=1):
            for seen in _inputs_of(model, modules, _to_device(batch, device)):
                sums.setdefault(tuple(seen.names), _Sum()).add(seen)
            progress("calibrate", done, total)
    return _by_module(modules, sums)


class StreamedCovariances(Mapping[str, Covariance]):
    """Covariances of one group of layers at a time, collected when the first of the group is asked for.

    The second moments of a large model's inputs are larger than the model (44 GB for a Llama of 7 B). Layers are
    asked for in the order of the model, and what was collected for one group is let go for the next: memory for time,
    a pass over the batches per group. Layers that were cut meanwhile answer as before, to rounding.

    Args:
        model: as for `collect_covariances`.
        batches: run once per group.
        filter_fn: names the layers that will be cut.
        most_bytes: of one group; a single layer may take more.
        progress: hears of every batch.

    Raises:
        UnsupportedModelError: the filter accepts no module.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        filter_fn: ModuleFilter,
        most_bytes: float = COVARIANCE_BYTES,
        progress: Progress = silent,
    ) -> None:
        sizes = {n: 8 * _in_features(m) ** 2 for n, m in model.named_modules() if filter_fn(m, n)}
        self._model, self._batches, self._progress = model, batches, progress
        self._group_of: dict[str, int] = {}
        self._held: dict[str, Covariance] = {}
        group, held_bytes = 0, 0.0
        for name, size_bytes in sizes.items():
            if held_bytes and held_bytes + size_bytes > most_bytes:
                group, held_bytes = group + 1, 0.0
            held_bytes += size_bytes
            self._group_of[name] = group
        if not sizes:
            collect_covariances(model, (), filter_fn)  # says so
        self.groups = group + 1
        """How many passes over the batches it takes."""
        self.tokens = 0
        """The most that any layer has seen so far."""

    def __getitem__(self, name: str) -> Covariance:
        group = self._group_of[name]
        if name not in self._held:
            self._held.clear()
            members = {member for member, its in self._group_of.items() if its == group}
            self._held = collect_covariances(self._model, self._batches, lambda _, fqn: fqn in members, self._progress)
            self.tokens = max(self.tokens, *(covariance.tokens for covariance in self._held.values()))
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._group_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._group_of)

    def __len__(self) -> int:
        return len(self._group_of)


def text_batches(
    tokenizer: Any, texts: Sequence[str], batch_size: int = 32, max_length: int | None = None
) -> list[dict[str, Tensor]]:
    """Texts as model inputs, sorted by length so that little is padding. See `ordered_text_batches`."""
    return [batch for _, batch in ordered_text_batches(tokenizer, texts, batch_size, max_length)]


def ordered_text_batches(
    tokenizer: Any, texts: Sequence[str], batch_size: int = 32, max_length: int | None = None
) -> list[tuple[list[int], dict[str, Tensor]]]:
    """Texts as model inputs, sorted by length, each batch with the positions of its texts.

    Args:
        tokenizer: a transformers tokenizer; one without a padding token will do.
        texts: one or more.
        batch_size: texts per batch.
        max_length: longer texts are cut to this many tokens; None for the tokenizer's own limit.

    Returns:
        `(positions, inputs)` per batch; inputs are int64 `[batch, seq]`, padded on the right, with `attention_mask`.

    Raises:
        UsageError: no texts, or a batch size below 1.
    """
    if not texts:
        raise UsageError("there are no texts to read", "give one sentence per line")
    if batch_size < 1:
        raise UsageError(f"a batch holds 1 text or more, not {batch_size}")
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_attention_mask=True)
    order = sorted(range(len(texts)), key=lambda i: len(encoded["input_ids"][i]))
    # Padded by hand: tokenizers of decoders often have no padding token, and giving them one would change them.
    padding = {"input_ids": tokenizer.pad_token_id or 0}
    batches = []
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        batch = {
            key: nn.utils.rnn.pad_sequence(
                [torch.tensor(rows[i], dtype=torch.int64) for i in positions],
                batch_first=True,
                padding_value=padding.get(key, 0),
            )
            for key, rows in encoded.items()
        }
        batches.append((positions, batch))
    return batches


def batch_size(batch: Batch) -> int:
    """How many examples a batch holds."""
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch)


def select(batch: Batch, positions: Sequence[int]) -> Batch:
    """Some examples of a batch, by position."""
    at = list(positions)
    return {name: tensor[at] for name, tensor in batch.items()} if isinstance(batch, Mapping) else batch[at]


def some_examples(batches: Sequence[Batch], most: int) -> list[Batch]:
    """At most `most` examples, spread evenly over batches that may be sorted by length."""
    total = sum(map(batch_size, batches))
    count = min(most, total)
    wanted = {i * total // count for i in range(count)}
    chosen: list[Batch] = []
    start = 0
    for batch in batches:
        size = batch_size(batch)
        if at := [i for i in range(size) if start + i in wanted]:
            chosen.append(select(batch, at))
        start += size
    return chosen


@dataclass
class _Sum:
    total: Tensor | None = None
    tokens: int = 0

    def add(self, seen: _Seen) -> None:
        self.total = seen.product if self.total is None else self.total.add_(seen.product)
        self.tokens += seen.tokens


@dataclass
class _Seen:
    """One distinct input tensor of a forward pass, and who took it."""

    tensor: weakref.ref[Tensor]  # while it lives, no other has its identity; held, all activations would stay
    product: Tensor  # taken at once: the model may go on to change the tensor in place
    tokens: int
    names: list[str] = field(default_factory=list)


def _inputs_of(model: nn.Module, modules: Mapping[str, nn.Module], batch: Batch) -> list[_Seen]:
    """The distinct inputs of the modules in one forward pass."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    seen: dict[int, _Seen] = {}

    inputs: list[_Seen] = []

    def keep(name: str, x: Tensor) -> None:
        known = seen.get(id(x))
        if known is None or known.tensor() is not x:
            rows = _token_rows(x, mask).double()
            known = _Seen(weakref.ref(x), rows.T @ rows, len(rows))
            seen[id(x)] = known
            inputs.append(known)
        known.names.append(name)

    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0]))
            hooks.callback(handle.remove)
        model(**batch) if isinstance(batch, Mapping) else model(batch)
    return inputs


def _token_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """`[tokens, d_in]`, padding left out where the mask applies."""
    if mask is not None and mask.dim() == 2 and x.dim() == 3 and x.shape[:2] == mask.shape:
        return x[mask.bool()]
    return x.reshape(-1, x.shape[-1])


def _by_module(modules: Mapping[str, nn.Module], sums: Mapping[tuple[str, ...], _Sum]) -> dict[str, Covariance]:
    shared = {names: Covariance(s.total, s.tokens) for names, s in sums.items() if s.total is not None}
    result = {}
    for name, module in modules.items():
        parts = [part for names, part in shared.items() for _ in range(names.count(name))]
        if len(parts) == 1:
            result[name] = parts[0]
        else:
            features = parts[0].total.shape[0] if parts else _in_features(module)
            total = torch.zeros(features, features, dtype=torch.float64)
            for part in parts:
                total = total.to(part.total.device) + part.total
            result[name] = Covariance(total, sum(part.tokens for part in parts))
    return result


def _in_features(module: nn.Module) -> int:
    """Without an input to look at: linear and nested layers say so, a Conv1D has `[d_in, d_out]`."""
    if isinstance(features := getattr(module, "in_features", None), int):
        return features
    weight = module.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if isinstance(batch, Mapping):
        return {key: value.to(device) for key, value in batch.items()}
    return batch.to(device)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; each one's own mode restored (`model.train()` would thaw what was frozen)."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
