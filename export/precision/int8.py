"""int8 weights with scales that no rank changes, so that a prefix of a quantised factor is the factor at that rank.

    A   [R, d_in]   int8, one scale per row       a rank's rows and their scales are the first r of each
    B   [R, d_out]  int8, one scale per column    taken over all R rows: the scales are the same at every rank
    W   [d_out, d_in] (dense)                     one scale per output, as B

    x -> DynamicQuantizeLinear -> MatMulInteger(A_r^T) -> * (scale of x * scales of A_r)  = h
    h -> DynamicQuantizeLinear -> MatMulInteger(B_r)   -> * (scale of h * scales of B)    -> + bias

Symmetric, in -127..127 (-128 is left out, so that no weight has a magnitude without a negative). Activations are
quantised by the engine while it runs, to uint8 over the range of each tensor: nothing to calibrate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.errors import ExportError

LEVELS = 127
"""Steps on either side of zero."""

SMALLEST_ROW = 1e-20
"""Added to what a token is divided by where each has a range of its own: a row of zeros stays one."""


def quantise(name: str, matrix: npt.NDArray[Any], *, axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A matrix as int8 and its scales, `matrix ~ integers * scales`.

    Args:
        name: of the tensor, for messages.
        matrix: `[rows, columns]`, float32 or float16.
        axis: what is reduced over: 1 for a scale per row, 0 for a scale per column.

    Returns:
        integers, int8, as the matrix; scales, float32, `[rows]` or `[columns]`. All zeros get the scale 1.

    Raises:
        ExportError: the matrix holds a NaN or an infinity.
    """
    largest = np.abs(matrix).max(axis=axis, keepdims=True).astype(np.float32)
    if not np.isfinite(largest).all():
        raise ExportError(f"{name} holds values that are not finite, which int8 cannot", "is the checkpoint whole?")
    # The smallest normal number: a scale below it would have too few digits left, and its inverse overflow.
    usable = largest >= np.finfo(np.float32).tiny * LEVELS
    scales = np.where(usable, largest / LEVELS, np.float32(1)).astype(np.float32)
    integers = np.clip(np.rint(matrix / scales), -LEVELS, LEVELS).astype(np.int8)
    return integers, scales.reshape(-1)
