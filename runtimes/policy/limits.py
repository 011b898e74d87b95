"""The settings of a whole policy, and those of its thresholds: steps that cap the FLOPs, each with two of them.

    battery      ... 60 %   55 %   50 %   45 % ...
                         released  |---band--|  held from here on down:  max_flops
                          (leave)           (enter)

A step takes hold at its *enter* threshold and lets go at its *leave* threshold, so noise smaller than the band between
them never moves the rung. Steps nest: a deeper step enters and leaves deeper and never allows more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

from nsn_edge.runtimes.difficulty.rule import DifficultyRule
from nsn_edge.runtimes.policy.checks import LimitError, celsius, fraction, in_range
from nsn_edge.runtimes.policy.deadline import Deadline
from nsn_edge.runtimes.policy.energy import EnergyBudget
from nsn_edge.runtimes.policy.pi import Pi
from nsn_edge.runtimes.policy.step_wise import StepWise

SCHEMA_VERSION = 2
"""Of policy files. Version 1 has the thresholds alone."""

_SINCE_2 = ("step_wise", "pi", "energy", "deadline", "difficulty", "max_age_s")


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
        in_range(self, "enter_pct", 0.0, 100.0)
        in_range(self, "leave_pct", 0.0, 100.0)
        fraction(self, "max_flops")
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
        celsius(self, "enter_c")
        celsius(self, "leave_c")
        fraction(self, "max_flops")
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
        in_range(self, "enter_margin_c", 0.0, 100.0)
        in_range(self, "leave_margin_c", 0.0, 100.0)
        fraction(self, "max_flops")
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
    step_wise: StepWise | None = None
    """One rung at a time by the device's own trip point; None: not."""
    pi: Pi | None = None
    """A controller that keeps a temperature; None: not."""
    energy: EnergyBudget | None = None
    """What the battery has to last for; None: no promise."""
    deadline: Deadline | None = None
    """Until when an answer has to be there; None: no promise."""
    difficulty: DifficultyRule | None = None
    """Easy questions at a low rung. It chooses for each request, so it limits nothing here: see
    `nsn_edge.runtimes.difficulty`."""
    max_age_s: float = 60.0
    """What a reading says of the device is unknown when the reading is older."""
    name: str = "policy"
    """For people."""

    def __post_init__(self) -> None:
        fraction(self, "unknown_max_flops")
        in_range(self, "min_dwell_s", 0.0, 86400.0)
        in_range(self, "max_age_s", 0.1, 86400.0)
        limits = (self.battery, self.temperature, self.throttling, self.step_wise, self.pi, self.energy, self.deadline)
        if not any(limits) and self.difficulty is None:
            raise LimitError(
                "the policy has no limits, so it would never switch",
                "give it a table: [[battery]], [[temperature]], [throttling], [step_wise], [pi], [energy], [deadline]",
            )
        _check_nested("battery", self.battery, -1.0)
        _check_nested("temperature", self.temperature, 1.0)

    @property
    def needs_costs(self) -> tuple[str, ...]:
        """The tables that cannot do without the costs of rungs on this device."""
        return tuple(table for table in ("energy", "deadline") if getattr(self, table) is not None)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, with the keys of a policy file; what version 1 does not have is left out where unset."""
        data = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.difficulty is not None:
            data["difficulty"] = self.difficulty.to_json()
        unset = [key for key in _SINCE_2 if getattr(self, key) == RungLimits.__dataclass_fields__[key].default]
        version = 1 if len(unset) == len(_SINCE_2) else SCHEMA_VERSION
        return {"schema_version": version, **{key: value for key, value in data.items() if key not in unset}}


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
