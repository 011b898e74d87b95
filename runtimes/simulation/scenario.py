"""What happens to a device during a simulation, on top of a recorded trace.

    recorded trace    temperature, power, mains of a real device at its other work
      + device        what a rung's work draws, how the device warms, where it throttles, its battery
      + requests      so many per second, each with a deadline
      + events        heat (the surroundings get warmer), unplugged mains, load (more requests, a busier machine)

Everything is valid by construction; `load_scenario` (`scenario_file`) reads one from TOML.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.simulation.thermal import DEFAULT_AMBIENT_C, ThermalModel

SCHEMA_VERSION = 1

_FOR_EVER_S = math.inf


class ScenarioError(UsageError):
    """A setting that makes no sense, and which: so that a loader can add the file and the line."""

    def __init__(self, message: str, hint: str = "", *, key: str = "", table: str = "", index: int = 0) -> None:
        super().__init__(message, hint)
        self.key = key
        self.table = table
        self.index = index


@dataclass(frozen=True)
class Heat:
    """The surroundings are warmer for a while: the sun, a closed lid, another machine's exhaust."""

    from_s: float
    """When it begins, seconds from the trace's first row."""
    rise_c: float
    """How much warmer; the device follows with its time constant."""
    until_s: float = _FOR_EVER_S
    """When it ends."""

    def __post_init__(self) -> None:
        _check_span(self)
        _in_range(self, "rise_c", -100.0, 100.0)


@dataclass(frozen=True)
class Unplugged:
    """The mains are gone for a while. Where a battery is simulated and no trace says otherwise, they are there else."""

    from_s: float
    """When it begins, seconds from the trace's first row."""
    until_s: float = _FOR_EVER_S
    """When it ends."""

    def __post_init__(self) -> None:
        _check_span(self)


@dataclass(frozen=True)
class Load:
    """More or fewer requests for a while, or a machine that is busy with something else."""

    from_s: float
    """When it begins, seconds from the trace's first row."""
    until_s: float = _FOR_EVER_S
    """When it ends."""
    arrivals_per_s: float | None = None
    """In place of the scenario's; None leaves it. Of several loads at once the last one listed counts."""
    slowdown: float = 1.0
    """How many times longer every answer takes. Of several loads at once they multiply."""

    def __post_init__(self) -> None:
        _check_span(self)
        if self.arrivals_per_s is not None:
            _in_range(self, "arrivals_per_s", 0.0, 1e5)
        _in_range(self, "slowdown", 1.0, 1000.0)


@dataclass(frozen=True)
class Battery:
    """What pays while the mains are gone."""

    capacity_wh: float
    """When full."""
    start_pct: float = 100.0
    """Charge at the first row, above 0."""
    reserve_pct: float = 0.0
    """What must be left at the end: with less the battery did not last."""
    charge_w: float = 0.0
    """What goes into it while on mains, until it is full."""

    def __post_init__(self) -> None:
        _in_range(self, "capacity_wh", 1e-3, 1e6)
        _in_range(self, "start_pct", 1e-3, 100.0)
        _in_range(self, "reserve_pct", 0.0, 100.0)
        _in_range(self, "charge_w", 0.0, 1e6)
        if self.reserve_pct >= self.start_pct:
            raise ScenarioError(
                f"reserve_pct {self.reserve_pct:g} is not below start_pct {self.start_pct:g}: no policy could keep it",
                "lower the reserve",
                key="reserve_pct",
            )


@dataclass(frozen=True)
class Scenario:
    """A whole scenario. Times count from the trace's first row."""

    deadline_ms: float
    """Of each request, from its arrival: waiting counts. A request that has not begun by then is given up."""
    arrivals_per_s: float | None = None
    """Requests, at random times (a Poisson process), unless a load says otherwise. None: as the trace has counted."""
    active_w: float | None = None
    """Power that computing adds, whatever the rung; a rung's energy is then this times its latency. None: the profile
    knows the energy of every rung."""
    base_w: float | None = None
    """What the device draws besides, for the battery alone; None: as the trace recorded it."""
    temperature_limit_c: float | None = None
    """What must not be exceeded, and where the device throttles; None: as the trace says."""
    throttle_slowdown: float = 2.0
    """How many times longer an answer takes while the device is above its limit. It costs the same energy."""
    queue_limit: int = 64
    """Requests that may wait; one more is refused."""
    max_miss_fraction: float = 0.01
    """Of the requests, how many may miss their deadline."""
    ambient_c: float = DEFAULT_AMBIENT_C
    """Of the room of the recording, for the calibration of the thermal model."""
    thermal: ThermalModel | None = None
    """None: calibrated from the trace."""
    battery: Battery | None = None
    """None: none is simulated, and policies see what the trace says."""
    heat: tuple[Heat, ...] = ()
    """Rises add up where they overlap."""
    unplugged: tuple[Unplugged, ...] = ()
    """Only with a battery."""
    load: tuple[Load, ...] = ()
    """In any order."""
    name: str = "scenario"
    """For people."""

    def __post_init__(self) -> None:
        _in_range(self, "deadline_ms", 1e-3, 1e8)
        _in_range(self, "throttle_slowdown", 1.0, 1000.0)
        _in_range(self, "max_miss_fraction", 0.0, 1.0)
        _in_range(self, "queue_limit", 1, 1e6)
        _in_range(self, "ambient_c", -60.0, 100.0)
        for name, low, high in (
            ("arrivals_per_s", 0.0, 1e5),
            ("active_w", 1e-6, 1e5),
            ("base_w", 0.0, 1e5),
            ("temperature_limit_c", -60.0, 200.0),
        ):
            if getattr(self, name) is not None:
                _in_range(self, name, low, high)
        if self.unplugged and self.battery is None:
            raise ScenarioError(
                "the mains are unplugged and no battery is there", "add a [battery] table", table="unplugged"
            )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; an event without an end has `until_s` null."""
        data: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        for table in ("heat", "unplugged", "load"):
            data[table] = [
                {key: None if value == math.inf else value for key, value in event.items()} for event in data[table]
            ]
        return data


def holds(event: Heat | Unplugged | Load, seconds: float) -> bool:
    """Whether an event is on, so many seconds after the trace's first row."""
    return event.from_s <= seconds < event.until_s


def _in_range(settings: Any, key: str, low: float, high: float) -> None:
    value = getattr(settings, key)
    if not (math.isfinite(value) and low <= value <= high):
        raise ScenarioError(f"{key} is {value:g}, outside {low:g}..{high:g}", key=key)


def _check_span(event: Heat | Unplugged | Load) -> None:
    _in_range(event, "from_s", 0.0, 1e9)
    if not event.until_s > event.from_s:
        raise ScenarioError(
            f"until_s {event.until_s:g} is not after from_s {event.from_s:g}",
            "leave until_s out for an event that lasts to the end",
            key="until_s",
        )
