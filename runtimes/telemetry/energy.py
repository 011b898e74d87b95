"""Counters of energy, made monotone: they wrap, begin anew after a suspend or with the driver, and now and then lie."""

from __future__ import annotations

LARGEST_W = 10_000.0
"""More than any counter here counts. A step that would need more power was no consumption."""

_SHORTEST_S = 0.1
"""Counters move in steps: between two reads that follow at once, as much may have been counted as in this time."""


class EnergyMeter:
    """Adds up what a counter of joules says, from 0 at its first value. It never falls."""

    def __init__(self, largest_w: float = LARGEST_W) -> None:
        """
        Args:
            largest_w: the power that nothing counted here exceeds.
        """
        self._largest_w = largest_w
        self.total_j = 0.0
        """Since the first value."""
        self._last_j: float | None = None
        self._last_s = 0.0

    def add(self, value_j: float, now_s: float, wraps_at_j: float | None = None) -> float | None:
        """Take the counter's value.

        A counter that fell has wrapped, if it wraps and the step makes sense; else it began anew. A step that would
        need more than the largest power is left out.

        Args:
            value_j: what the counter says.
            now_s: monotonic seconds.
            wraps_at_j: its highest value, if it wraps. More than one wrap between two reads cannot be seen.

        Returns:
            The joules since the value before; None where that is not known.
        """
        last_j, elapsed_s = self._last_j, max(now_s - self._last_s, _SHORTEST_S)
        self._last_j, self._last_s = value_j, now_s
        if last_j is None:
            return None
        step_j = value_j - last_j
        if step_j < 0.0 and wraps_at_j is not None:
            step_j += wraps_at_j
        if not 0.0 <= step_j <= self._largest_w * elapsed_s:
            return None
        self.total_j += step_j
        return step_j
