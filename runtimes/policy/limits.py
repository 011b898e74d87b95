"""The settings of a rung-limits policy: steps that cap the FLOPs, each with two thresholds.

    battery      ... 60 %   55 %   50 %   45 % ...
                         released  |---band--|  held from here on down:  max_flops
                          (leave)           (enter)

A step takes hold at its *enter* threshold and lets go at its *leave* threshold, so noise smaller than the band between
them never moves the rung. Steps nest: a deeper step enters and leaves deeper and never allows more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

from nsn_edge.errors import PolicyError

SCHEMA_VERSION = 1


class LimitError(PolicyError):
    """A setting that makes no sense, and which: so that a loader can add the file and the line."""

    def __init__(self, message: str, hint: str = "", *, key: str = "", table: str = "", index: int = 0) -> None:
        super().__init__(message, hint)
        self.key = key
        self.table = table
        self.index = index


@dataclass(frozen=True)
class BatteryStep:
    """From `enter_pct` down, until the battery is back at `leave_pct`, at most `max_flops`."""

    enter_pct: float
    """Takes hold when the charge is at or below this, 0..100."""
    leave_pct: float
    """Lets go when the charge is at or above this; above `enter_pct`."""
    max_flops: float
    """Fraction of the dense model's linear FLOPs, in (0, 1]."""

    def __post_init__(self) -> None:
        _in_range(self, "enter_pct", 0.0, 100.0)
        _in_range(self, "leave_pct", 0.0, 100.0)
        _fraction(self, "max_flops")
        if self.leave_pct <= self.enter_pct:
            raise LimitError(
                f"the thresholds cross: leave_pct {self.leave_pct:g} is not above enter_pct {self.enter_pct:g}",
                "a battery step lets go at a higher charge than it takes hold",
                key="leave_pct",
            )


@dataclass(frozen=True)
class TemperatureStep:
    """From `enter_c` up, until it is back at `leave_c`, at most `max_flops`."""

    enter_c: float
    """Takes hold when the temperature is at or above this, degrees C."""
    leave_c: float
    """Lets go when the temperature is at or below this; below `enter_c`."""
    max_flops: float
    """Fraction of the dense model's linear FLOPs, in (0, 1]."""

    def __post_init__(self) -> None:
        _in_range(self, "enter_c", -60.0, 200.0)
        _in_range(self, "leave_c", -60.0, 200.0)
        _fraction(self, "max_flops")
        if self.leave_c >= self.enter_c:
            raise LimitError(
                f"the thresholds cross: leave_c {self.leave_c:g} is not below enter_c {self.enter_c:g}",
                "a temperature step lets go at a lower temperature than it takes hold",
                key="leave_c",
            )


@dataclass(frozen=True)
class ThrottlingLimit:
    """While the device throttles, or nears the trip point at which it says it will, at most `max_flops`."""

    max_flops: float
    """Fraction of the dense model's linear FLOPs, in (0, 1]."""
    enter_margin_c: float = 5.0
    """Takes hold when the temperature is at most this far below the device's own limit."""
    leave_margin_c: float = 10.0
    """Lets go when it is at least this far below; above `enter_margin_c`."""

    def __post_init__(self) -> None:
        _in_range(self, "enter_margin_c", 0.0, 100.0)
        _in_range(self, "leave_margin_c", 0.0, 100.0)
        _fraction(self, "max_flops")
        if self.leave_margin_c <= self.enter_margin_c:
            raise LimitError(
                f"the thresholds cross: leave_margin_c {self.leave_margin_c:g} is not above "
                f"enter_margin_c {self.enter_margin_c:g}",
                "the limit lets go farther below the trip point than it takes hold",
                key="leave_margin_c",
            )


@dataclass(frozen=True)
class RungLimits:
    """A whole policy, valid by construction. `RungPolicy(limits, ladder)` decides with it."""

    unknown_max_flops: float
    """What is allowed while nothing is known, or a sensor that was known has gone silent; in (0, 1]."""
    min_dwell_s: float
    """How long a higher rung must be allowed, without interruption, before the rank rises by one rung."""
    battery: tuple[BatteryStep, ...] = ()
    """From the highest charge down."""
    temperature: tuple[TemperatureStep, ...] = ()
    """From the lowest temperature up."""
    throttling: ThrottlingLimit | None = None
    """None: the device's own throttling is not looked at."""
    name: str = "policy"
    """For people."""

    def __post_init__(self) -> None:
        _fraction(self, "unknown_max_flops")
        _in_range(self, "min_dwell_s", 0.0, 86400.0)
        if not (self.battery or self.temperature or self.throttling):
            raise LimitError(
                "the policy has no limits, so it would never switch",
                "give it a [[battery]], a [[temperature]] or a [throttling] table",
            )
        _check_nested("battery", self.battery, -1.0)
        _check_nested("temperature", self.temperature, 1.0)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, with the keys of a policy file."""
        data = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"schema_version": SCHEMA_VERSION, **data}


def _in_range(settings: Any, key: str, low: float, high: float) -> None:
    value = getattr(settings, key)
    if not (math.isfinite(value) and low <= value <= high):
        raise LimitError(f"{key} is {value:g}, outside {low:g}..{high:g}", key=key)


def _fraction(settings: Any, key: str) -> None:
    value = getattr(settings, key)
    if not 0.0 < value <= 1.0:
        raise LimitError(
            f"{key} is {value:g}, not a fraction above 0 and up to 1", "0.5 means half of the dense FLOPs", key=key
        )


def _check_nested(table: str, steps: Sequence[BatteryStep] | Sequence[TemperatureStep], deeper: float) -> None:
    """Each step must lie deeper than the one before it and allow no more. `deeper` is that direction's sign."""
    for index, (mild, deep) in enumerate(itertools.pairwise(map(astuple, steps)), start=1):
        enter, leave, _ = (item.name for item in fields(steps[index]))

        def refuse(key: str, message: str, hint: str, index: int = index) -> LimitError:
            return LimitError(message, hint, key=key, table=table, index=index)

        if (deep[0] - mild[0]) * deeper <= 0:
            order = "rise" if deeper > 0 else "fall"
            raise refuse(
                enter,
                f"{enter} {deep[0]:g} follows {mild[0]:g}, and it must {order} from step to step",
                "list the mildest step first",
            )
        if (deep[1] - mild[1]) * deeper < 0:
            raise refuse(
                leave,
                f"the thresholds cross: {leave} {deep[1]:g} would let go later than the milder step's {mild[1]:g}",
                "a deeper step lets go first",
            )
        if deep[2] > mild[2]:
            condition = "more heat" if deeper > 0 else "a lower battery"
            raise refuse(
                "max_flops",
                f"max_flops {deep[2]:g} follows {mild[2]:g}, and {condition} must never allow more",
                "lower it, or raise the one before",
            )
