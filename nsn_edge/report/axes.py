"""What every chart shares: a scale from numbers to pixels, round ticks, and the frame they are drawn in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nsn_edge.report.markup import Markup, el

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


@dataclass(frozen=True)
class Scale:
    """A linear map of `[low, high]` to pixels `[start, end]`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value; an empty range maps to the middle."""
        if self.high <= self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Frame:
    """The plotting area inside an SVG, in its pixels."""

    left: float
    top: float
    right: float
    bottom: float


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers covering `[low, high]`: at most `most` of them within it, none outside.

    Raises:
        ValueError: the range is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"no ticks between {low} and {high}")
    if high <= low:
        return [low]
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (*_STEPS, 20.0, 50.0):
        step = magnitude * factor
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if 0 < last - first + 1 <= most:
            # Rounded: 3 * 0.1 is not 0.3, and labels show it.
            return [round(index * step, 12) for index in range(first, last + 1)]
    return [low]


def time_ticks(duration_s: float, most: int) -> tuple[list[float], float, str]:
    """Ticks of a time axis from 0: `(seconds, seconds per unit, unit)`, in steps that clocks use."""
    step = next((step for step in _TIME_STEPS_S if duration_s / step <= most), max(duration_s / most, 1.0))
    seconds = [index * float(step) for index in range(int(duration_s / step + 1e-9) + 1)]
    if duration_s >= 2 * 3600:
        return seconds, 3600.0, "h"
    return (seconds, 60.0, "min") if duration_s >= 180 else (seconds, 1.0, "s")


def tick_labels(values: Sequence[float]) -> list[str]:
    """The values with as many decimals as the longest of them needs: 0.9 and 1.0, not 0.9 and 1."""
    shortest = [f"{value:.10g}" for value in values]
    decimals = max((len(text.partition(".")[2]) for text in shortest if "e" not in text), default=0)
    return [f"{value:.{decimals}f}" for value in values]


def x_axis(frame: Frame, scale: Scale, values: list[float], labels: list[str], title: str) -> Markup:
    """The line below the frame, its ticks and its title."""
    return el(
        "g",
        el("line", x1=frame.left, y1=frame.bottom, x2=frame.right, y2=frame.bottom, class_="axis"),
        [
            el(
                "g",
                el("line", x1=scale(value), y1=frame.bottom, x2=scale(value), y2=frame.bottom + 4, class_="axis"),
                el("text", label, x=scale(value), y=frame.bottom + 18, text_anchor="middle", class_="tick"),
            )
            for value, label in zip(values, labels, strict=True)
        ],
        el("text", title, x=(frame.left + frame.right) / 2, y=frame.bottom + 38, text_anchor="middle", class_="title"),
    )


def y_axis(frame: Frame, scale: Scale, values: list[float], labels: list[str]) -> Markup:
    """Thin lines across the frame with their values on the left."""
    return el(
        "g",
        [
            el(
                "g",
                el("line", x1=frame.left, y1=scale(value), x2=frame.right, y2=scale(value), class_="grid"),
                el("text", label, x=frame.left - 8, y=scale(value) + 4, text_anchor="end", class_="tick"),
            )
            for value, label in zip(values, labels, strict=True)
        ],
    )
