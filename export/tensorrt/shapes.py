"""From sizes of named dimensions to the shapes that an engine's inputs may have.

batch 1:1:8, sequence 1:128:256   ->   input_ids  [1, 1] .. [1, 128] .. [8, 256]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nsn_edge.bundle import Manifest, TensorSpec
from nsn_edge.bundle.engines import ShapeRange
from nsn_edge.errors import UsageError

BATCH, SEQUENCE, CACHE = "batch_size", "sequence_length", "past_sequence_length"
"""Optimum's names of the dimensions."""

_SUM = " + "
_MOST_TOKENS = 512
"""An engine reserves memory for its largest shapes, whether they come or not."""
_MOST_CACHED = 1024
_USUAL_TOKENS = 128


@dataclass(frozen=True)
class SizeRange:
    """How large a dimension may be."""

    min: int
    opt: int
    """What the engine is made fastest for."""
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.max:
            raise UsageError(f"sizes must rise from least to largest, not {self}", "write MIN:OPT:MAX, as in 1:128:256")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str) -> SizeRange:
        """From `MIN:OPT:MAX`, or one number for a fixed size.

        Raises:
            UsageError: it is neither, or the numbers do not rise.
        """
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
            raise UsageError(f"{text!r} is no range of sizes", "write MIN:OPT:MAX, as in 1:128:256, or one number")
        numbers = [int(part) for part in parts]
        return cls(*(numbers if len(numbers) == 3 else numbers * 3))


def default_sizes(manifest: Manifest) -> dict[str, SizeRange]:
    """For the dimensions that every bundle names the same."""
    longest = min(manifest.task.max_length or _MOST_TOKENS, _MOST_TOKENS)
    usual = min(_USUAL_TOKENS, longest)
    names = dimension_names(manifest.inputs)
    if CACHE in names:
        cached = min(manifest.task.max_length or _MOST_CACHED, _MOST_CACHED)
        return {
            BATCH: SizeRange(1, 1, 1),
            SEQUENCE: SizeRange(1, usual, longest),
            CACHE: SizeRange(0, min(_USUAL_TOKENS, cached), cached),
        }
    sizes = {BATCH: SizeRange(1, 1, 8), SEQUENCE: SizeRange(1, usual, longest)}
    return {name: size for name, size in sizes.items() if name in names}


def check_sizes(manifest: Manifest, sizes: Mapping[str, SizeRange]) -> None:
    """Raises:
    UsageError: a dimension that the model does not have, one without sizes, or sizes that the model cannot take.
    """
    names = dimension_names(manifest.inputs)
    known = ", ".join(sorted(names)) or "none"
    if strays := sorted(set(sizes) - names):
        raise UsageError(f"the model has no dimension {strays[0]!r}", f"its dimensions are {known}")
    if missing := sorted(names - set(sizes)):
        raise UsageError(
            f"nothing says how large the dimension {missing[0]!r} may be", f"say it with --dim {missing[0]}=MIN:OPT:MAX"
        )
    for name, size in sizes.items():
        if name != CACHE and size.min < 1:
            raise UsageError(f"{name} begins at {size.min}", "sizes are 1 or more; the cache alone may be empty")
    longest = manifest.task.max_length
    if longest and SEQUENCE in sizes and sizes[SEQUENCE].max > longest:
        raise UsageError(
            f"sequences of up to {sizes[SEQUENCE].max} tokens, and the model takes {longest} at most",
            f"lower --sequence to {min(sizes[SEQUENCE].min, longest)}:{min(sizes[SEQUENCE].opt, longest)}:{longest}",
        )


def dimension_names(specs: Sequence[TensorSpec]) -> set[str]:
    """The named dimensions; of a sum its parts."""
    named = {size for spec in specs for size in spec.shape if isinstance(size, str)}
    return {part for name in named for part in name.split(_SUM)}


def shape_ranges(specs: Sequence[TensorSpec], sizes: Mapping[str, SizeRange]) -> dict[str, ShapeRange]:
    """By input."""
    return {
        spec.name: ShapeRange(*(tuple(_size(size, sizes, which) for size in spec.shape) for which in _ENDS))
        for spec in specs
    }


_ENDS = ("min", "opt", "max")


def _size(size: int | str, sizes: Mapping[str, SizeRange], which: str) -> int:
    if isinstance(size, int):
        return size
    return sum(getattr(sizes[part], which) for part in size.split(_SUM))
