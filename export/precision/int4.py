"""int4 weights in blocks, laid out so that a rank is still a prefix.

onnxruntime's `MatMulNBits` computes `x W` from `W` packed by output, `[outputs, blocks of inputs, bytes]`. For A the
outputs are the directions, and rank r is the first r rows. For B the directions are the *inputs*, so a rank would cut
every row short: B is stored with its blocks outermost, and a transpose of the prefix gives what the operator wants.

    A   [R, ceil(d_in / block), block / 2]     rank r: the first r rows
    B   [ceil(R / block), d_out, block / 2]    rank r: the first ceil(r / block) blocks; what the last of them holds
                                               past r is not read, since the operator is told that it has r inputs

The transpose stands in the graph as a node over a constant: the engine folds it while loading, so B has one copy on
disk for all ranks, and any rank works, not multiples of the block alone.

Symmetric: a block's largest weight becomes -8 or 8 steps, rounded and packed by onnxruntime's own quantiser.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.errors import ExportError, MissingDependencyError

BLOCK_SIZE = 32
"""Weights that share a scale."""

_MIDDLE = 8


def quantise_blocks(name: str, matrix: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """A matrix `[inputs, outputs]` in blocks along its inputs.

    Args:
        name: of the tensor, for messages.
        matrix: float32 or float16.

    Returns:
        packed, uint8 `[outputs, blocks, BLOCK_SIZE / 2]`, the first of two weights in the lower four bits; scales,
        float32 `[outputs, blocks]`.

    Raises:
        ExportError: the matrix holds a NaN or an infinity.
        MissingDependencyError: onnxruntime, which packs, is not installed.
    """
    try:
        from onnxruntime.capi._pybind_state import quantize_matmul_4bits
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "ort", "exporting int4 weights") from error
    if not np.isfinite(matrix).all():
        raise ExportError(f"{name} holds values that are not finite, which int4 cannot", "is the checkpoint whole?")
    inputs, outputs = matrix.shape
    blocks = -(-inputs // BLOCK_SIZE)
    padded = np.zeros((blocks * BLOCK_SIZE, outputs), np.float32)
    padded[:inputs] = matrix
    packed = np.zeros((outputs, blocks, BLOCK_SIZE // 2), np.uint8)
    scales = np.zeros((outputs, blocks), np.float32)
    zero_points = np.zeros((outputs, -(-blocks // 2)), np.uint8)
    quantize_matmul_4bits(packed, padded, scales, zero_points, BLOCK_SIZE, outputs, blocks * BLOCK_SIZE, True)
    return packed, scales


def unpack(packed: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32], inputs: int) -> npt.NDArray[np.float32]:
    """The weights that `MatMulNBits` sees, `[inputs, outputs]`, of what `quantise_blocks` gives."""
    steps = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.float32) - _MIDDLE
    weights = steps.reshape(*scales.shape, BLOCK_SIZE) * scales[..., None]
    return np.ascontiguousarray(weights.reshape(len(packed), -1)[:, :inputs].T)
