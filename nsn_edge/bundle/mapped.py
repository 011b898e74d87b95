"""The weights of a bundle as views of the mapped file: what the graphs of form `bound` take as inputs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nsn_edge.bundle.manifest import BoundTensor
from nsn_edge.bundle.store import Bundle
from nsn_edge.errors import BundleError


class MappedFactors:
    """What is bound, mapped read-only. Pages are read when first used and shared with other processes."""

    def __init__(self, bundle: Bundle) -> None:
        """
        Raises:
            BundleError: the bundle has no graph of form `bound`, or its weights cannot be mapped.
        """
        tensors = bundle.manifest.bound_tensors
        if not tensors:
            raise BundleError(f"{bundle.path} describes no factors to bind", "export it with --form bound")
        weights = next(artifact for artifact in bundle.manifest.artifacts if artifact.kind == "weights")
        try:
            data = np.memmap(bundle.file(weights), dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise BundleError(f"{weights.path} cannot be mapped: {error}") from error
        # A plain array: memmap's slicing is a method in Python, and none of its methods is needed.
        plain = np.asarray(data)

        def whole(tensor: BoundTensor) -> npt.NDArray[np.floating]:
            return plain[tensor.offset : tensor.end].view(tensor.dtype).reshape(tensor.shape)

        self._factors = {tensor.name: (whole(tensor), tensor.layer) for tensor in tensors if not tensor.original}
        self._originals = {tensor.name: whole(tensor) for tensor in tensors if tensor.original}
        self._ladder = bundle.manifest.ladder

    def at(self, rank: int) -> dict[str, npt.NDArray[np.floating]]:
        """Each factor's first rows, `[layer rank, features]`, by the name of the graph's input. Views, not copies.

        Raises:
            RankError: `rank` is outside `1..R`.
        """
        rows = self._ladder.layer_ranks(rank)
        return {name: whole[: rows[layer]] for name, (whole, layer) in self._factors.items()}

    def originals(self) -> dict[str, npt.NDArray[np.floating]]:
        """The original weights, `[d_in, d_out]`, by the name of the dense rung's input; empty without such a rung."""
        return dict(self._originals)
