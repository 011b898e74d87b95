"""The turns that rungs had while they were measured, in time order: what a bootstrap and a plot need of the samples."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from nsn_edge.runtimes.profiling.conditions import Watcher

MOST_TURNS = 200


class Turns:
    """Collects turns; `add` is for `measure(after_turn=...)`."""

    def __init__(self, watcher: Watcher | None = None) -> None:
        """
        Args:
            watcher: hears of every turn, too.
        """
        self._watcher = watcher
        self._medians: dict[int, list[float]] = {}

    def add(self, rank: int, start_s: float, samples_ms: Sequence[float]) -> None:
        """Note a turn's median."""
        self._medians.setdefault(rank, []).append(statistics.median(samples_ms))
        if self._watcher is not None:
            self._watcher.turn(rank, start_s, samples_ms)

    def of(self, rank: int) -> tuple[float, ...]:
        """Medians in milliseconds, in order, at most `MOST_TURNS`."""
        return merged(self._medians.get(rank, []))


def merged(values: Sequence[float], most: int = MOST_TURNS) -> tuple[float, ...]:
    """At most so many: neighbours are replaced by their median. Six digits: no clock is better."""
    size = -(-len(values) // most) or 1
    groups = (values[start : start + size] for start in range(0, len(values), size))
    return tuple(float(f"{statistics.median(group):.6g}") for group in groups)
