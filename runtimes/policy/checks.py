"""How a policy's settings are checked. Each refusal says which key it is about, so that a loader can add the line."""

from __future__ import annotations

import math
from typing import Any

from nsn_edge.errors import PolicyError


class LimitError(PolicyError):
    """A setting that makes no sense, and which: so that a loader can add the file and the line."""

    def __init__(self, message: str, hint: str = "", *, key: str = "", table: str = "", index: int = 0) -> None:
        super().__init__(message, hint)
        self.key = key
        self.table = table
        self.index = index


def in_range(settings: Any, key: str, low: float, high: float, hint: str = "") -> None:
    """Refuse a number outside `low..high`. `hint` is said then: most often another unit was meant."""
    value = getattr(settings, key)
    if not (math.isfinite(value) and low <= value <= high):
        raise LimitError(f"{key} is {value:g}, outside {low:g}..{high:g}", hint, key=key)


def celsius(settings: Any, key: str) -> None:
    """Refuse what is no temperature in degrees C: Linux's own files have thousandths of them."""
    value = getattr(settings, key)
    thousandths = 1000.0 < abs(value) < 1e6
    in_range(settings, key, -60.0, 200.0, f"millidegrees? write {value / 1000:g}" if thousandths else "")


def fraction(settings: Any, key: str) -> None:
    """Refuse what is no fraction of the dense FLOPs."""
    value = getattr(settings, key)
    if not 0.0 < value <= 1.0:
        raise LimitError(
            f"{key} is {value:g}, not a fraction above 0 and up to 1", "0.5 means half of the dense FLOPs", key=key
        )


def share(settings: Any, key: str, low: float, high: float) -> None:
    """Refuse a share outside `low..high`, where a percentage is the likely mistake."""
    value = getattr(settings, key)
    in_range(settings, key, low, high, f"per cent? write {value / 100:g}" if low <= value / 100 <= high else "")
