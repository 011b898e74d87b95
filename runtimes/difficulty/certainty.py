"""How certain a classifier is of an answer, as one number from 0 to 1 per row of logits.

    logits --softmax--> p, sorted p1 >= p2 >= ...
    margin            p1 - p2                the lead of the first choice over the second
    max_probability   p1                     the first choice alone
    entropy           1 - H(p) / ln(n)       all n classes: 1 for one sure class, 0 where all are alike

With two classes the three order answers alike. All of them grow with certainty, so a threshold means the same in each:
answers below it are uncertain.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nsn_edge.errors import UsageError

MEASURES = ("margin", "max_probability", "entropy")
"""What a rule can measure certainty by."""


def probabilities(logits: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Softmax over the last axis: `[n, classes]` of any float dtype -> float64 `[n, classes]`; NaN where a row has a
    logit that is not finite."""
    values = np.asarray(logits, dtype=np.float64)
    values = np.where(np.isfinite(values).all(axis=-1, keepdims=True), values, np.nan)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    share: npt.NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return share


def certainty(logits: npt.NDArray[np.generic], measure: str) -> npt.NDArray[np.float64]:
    """How certain each answer is.

    Args:
        logits: float `[n, classes]`, two classes or more.
        measure: one of `MEASURES`.

    Returns:
        float64 `[n]` in `[0, 1]`; 0 for a row with a logit that is not finite, which is no answer at all.

    Raises:
        UsageError: an unknown measure, or logits of another shape.
    """
    if measure not in MEASURES:
        raise UsageError(f"unknown measure {measure!r}", f"choose one of {', '.join(MEASURES)}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UsageError(f"certainty is measured on logits [answers, two classes or more], not {list(logits.shape)}")
    p = probabilities(logits)
    if measure == "entropy":
        entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
        found = 1.0 - entropy / np.log(p.shape[1])
    else:
        two = np.partition(p, -2, axis=1)[:, -2:]
        found = two[:, 1] - two[:, 0] if measure == "margin" else two[:, 1]
    bounded: npt.NDArray[np.float64] = np.clip(np.nan_to_num(found, nan=0.0), 0.0, 1.0)
    return bounded
