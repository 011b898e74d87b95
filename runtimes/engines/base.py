"""The seam between the session and whatever executes graphs: two protocols, and the check of inputs they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nsn_edge.bundle import TensorSpec
from nsn_edge.errors import InputError

Array = npt.NDArray[Any]


class LoadedGraph(Protocol):
    """A graph ready to run. `run` is called from several threads at once; `close` when no call is under way."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. The arrays belong to the caller; the graph keeps no reference to them.

        Raises:
            InputError: an input is missing, unknown, of another dtype or of a shape that does not fit.
            EngineError: the engine failed.
        """

    def close(self) -> None:
        """Free the memory. Closing twice is no error."""


class Engine(Protocol):
    """Loads graphs. `load` is called from a background thread, possibly while other graphs run."""

    @property
    def name(self) -> str:
        """For people and results, for example `onnxruntime-cpu`."""

    @property
    def owns_threads(self) -> bool:
        """Whether loaded graphs run on threads that `load` started rather than on the caller's. Such threads inherit
        the loader's priority for good, so their background loads cannot be made to give way to requests."""

    def load(self, graph_path: Path) -> LoadedGraph:
        """Load a graph whose weights may lie in other files beside it.

        Raises:
            EngineError: the file cannot be loaded on this device.
            MissingDependencyError: the engine's package is not installed.
        """

    def describe(self) -> dict[str, Any]:
        """Provider, version and settings as plain JSON types, so that a result says what it was measured with."""


def check_inputs(graph: str, specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Refuse inputs that do not fit a graph, in words that name the input.

    Runs before every inference, so it only compares: no copies, no conversions.

    Raises:
        InputError: an input is missing, unknown, not an array, of another dtype or of a shape that does not fit, be it
            the graph's or that of the other inputs.
    """
    sizes: dict[str, int] = {}
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise InputError(f"{graph} lacks the input {spec.name!r}", f"it takes {_listed(specs)}")
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {spec.name!r} of {graph} is a {type(array).__name__}, not a numpy array")
        if array.dtype != np.dtype(spec.dtype):  # `array.dtype.name` is a string built anew, ten times as slow
            raise InputError(
                f"input {spec.name!r} of {graph} is {array.dtype.name}, not {spec.dtype}",
                f"convert it with .astype('{spec.dtype}')",
            )
        if array.ndim != len(spec.shape) or any(
            size != (wanted if isinstance(wanted, int) else sizes.setdefault(wanted, size))
            for size, wanted in zip(array.shape, spec.shape, strict=True)
        ):
            known = ", ".join(f"{name} {size}" for name, size in sizes.items() if name in spec.shape)
            raise InputError(
                f"input {spec.name!r} of {graph} has the shape {list(array.shape)}, "
                f"which does not fit [{', '.join(map(str, spec.shape))}]" + (f" with {known}" if known else "")
            )
    _check_sums(graph, sizes)
    if len(inputs) != len(specs):
        strays = sorted(set(inputs) - {spec.name for spec in specs})
        raise InputError(f"{graph} has no input {', '.join(map(repr, strays))}", f"it takes {_listed(specs)}")


def _check_sums(graph: str, sizes: Mapping[str, int]) -> None:
    """A dimension called `a + b` (a decoder's mask covers the past and the new tokens) is as large as both together."""
    for name, size in sizes.items():
        parts = name.split(" + ")
        if len(parts) > 1 and all(part in sizes for part in parts) and size != sum(sizes[part] for part in parts):
            raise InputError(
                f"{graph}: {name} is {size} where the other inputs make it {' + '.join(str(sizes[p]) for p in parts)}",
                "the attention mask covers the tokens in the cache and the new ones",
            )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} ({spec.dtype})" for spec in specs)
