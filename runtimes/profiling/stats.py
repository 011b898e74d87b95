"""What a list of latencies says, in the numbers people ask for.

Percentiles interpolate linearly between the two nearest ordered samples (Hyndman and Fan's type 7, numpy's default):
the p-th of n samples lies at position `p (n - 1)`. A p99 of fewer than about 100 samples is therefore little more than
the maximum; `p99_is_thin` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nsn_edge.errors import UsageError

UNSTEADY_CV = 0.10
"""A coefficient of variation above this means that the machine was disturbed, or changed its clock, while measuring."""

SAMPLES_FOR_P99 = 100
"""With fewer samples, less than one of them lies above the 99th percentile."""


@dataclass(frozen=True)
class LatencyStats:
    """A summary of latencies, all in milliseconds except `n` and `cv`."""

    n: int
    """Number of samples."""
    mean_ms: float
    """Arithmetic mean."""
    std_ms: float
    """Standard deviation of the sample (divisor n - 1); 0 for a single one."""
    cv: float
    """Coefficient of variation, `std_ms / mean_ms`; no unit."""
    min_ms: float
    """Fastest."""
    p50_ms: float
    """Median."""
    p90_ms: float
    """90th percentile."""
    p95_ms: float
    """95th percentile."""
    p99_ms: float
    """99th percentile."""
    max_ms: float
    """Slowest."""

    @classmethod
    def from_samples(cls, samples_ms: Sequence[float]) -> LatencyStats:
        """Summarise samples.

        Raises:
            UsageError: there are none, or one is negative or not a number.
        """
        values = np.asarray(samples_ms, dtype=np.float64)
        if values.size == 0:
            raise UsageError("no latencies to summarise", "measure at least one repetition")
        if not np.isfinite(values).all() or values.min() < 0:
            raise UsageError("latencies are finite and not negative; the clock gave something else")
        # A mean of equal numbers can round past them; no mean lies outside its samples.
        mean = float(np.clip(values.mean(), values.min(), values.max()))
        std = float(values.std(ddof=1)) if values.size > 1 else 0.0
        p50, p90, p95, p99 = (float(value) for value in np.percentile(values, [50, 90, 95, 99]))
        return cls(
            n=int(values.size),
            mean_ms=mean,
            std_ms=std,
            cv=std / mean if mean > 0 else 0.0,
            min_ms=float(values.min()),
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            max_ms=float(values.max()),
        )

    @property
    def steady(self) -> bool:
        """Whether the coefficient of variation is at most `UNSTEADY_CV`."""
        return self.cv <= UNSTEADY_CV

    @property
    def p99_is_thin(self) -> bool:
        """Whether too few samples were taken for the 99th percentile to mean much."""
        return self.n < SAMPLES_FOR_P99
