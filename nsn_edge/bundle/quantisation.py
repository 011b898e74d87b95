"""What a bundle whose weights were quantised says about it: enough to compute the same with another tool.

The scheme itself is in `docs/precision.md`. The scales lie in `weights.bin` beside the integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from nsn_edge.errors import BundleError

PRECISIONS = ("fp32", "fp16", "int8", "int4")
"""Of the weights of a bundle's graphs, as `export --precision` names them."""

QUANTISED = ("int8", "int4")
"""Those whose weights are integers with scales."""


@dataclass(frozen=True)
class Quantisation:
    """How the weights of a bundle were quantised."""

    precision: str
    """`int8` or `int4`: of the nested layers, but for those of `kept`."""
    kept: tuple[str, ...] = ()
    """Sensitive nested layers, in the order of the model: int8 weights, activations with a range for each token."""
    tables: tuple[str, ...] = ()
    """Weights that are looked up (embeddings), in int8 with a scale per row."""
    products: tuple[str, ...] = ()
    """Weights of products outside the nested layers (a head), in int8 with a scale per output."""
    originals: bool = True
    """Whether a layer past its break-even rank runs its original weight, which costs the same as the product of its
    factors and loses nothing."""
    block_size: int | None = None
    """For `int4`: how many weights share a scale."""
    kept_from: int = 1
    """The lowest rank at which `kept` holds: below it a rung loses so much more than those layers do in integers that
    sparing them buys nothing."""

    def at_rung(self, rank: int) -> Quantisation:
        """What holds at one rung: below `kept_from` no layer is kept."""
        return self if rank >= self.kept_from else replace(self, kept=())

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Any) -> Quantisation:
        """Read and check.

        Raises:
            BundleError: it is not what `to_json` writes.
        """
        hint = "export the bundle again"
        if not isinstance(data, Mapping) or data.get("precision") not in QUANTISED:
            raise BundleError(f"the manifest's quantisation is not of {' or '.join(QUANTISED)}", hint)
        names = {key: data.get(key) for key in ("kept", "tables", "products")}
        for key, value in names.items():
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise BundleError(f"the manifest's quantisation has {value!r} for {key!r}, not a list of names", hint)
        originals, block_size = data.get("originals"), data.get("block_size")
        kept_from = data.get("kept_from", 1)  # older manifests: at every rung
        if not isinstance(originals, bool):
            raise BundleError(f"the manifest's quantisation has {originals!r} for 'originals'", hint)
        if block_size is not None and (type(block_size) is not int or block_size < 1):
            raise BundleError(f"the manifest's quantisation has the block size {block_size!r}", hint)
        if type(kept_from) is not int or kept_from < 1:
            raise BundleError(f"the manifest's quantisation has {kept_from!r} for 'kept_from', not a rank", hint)
        kept, tables, products = (tuple(value or ()) for value in names.values())
        return cls(data["precision"], kept, tables, products, originals, block_size, kept_from)
