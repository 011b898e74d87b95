"""jtop as a source, where jetson-stats is already installed and its service runs.

jetson-stats is AGPL-3.0 software: it is no dependency of this project, is never installed by it, and is used through
its public API alone: `jtop()` with `start ok close temperature power gpu cpu nvpmodel`.

    temperature  {"tj": {"temp": 50.25, "online": True}, "cv0": {"temp": -256, "online": False}, ...}
    power        {"rail": {"VDD_SOC": {"power": 1424, ...}, ...}, "tot": {"name": "VDD_IN", "power": 5299, ...}}     mW
    gpu          {"ga10b": {"status": {"load": 62.2, ...}, "freq": {"cur": 611000, ...}}}                            kHz
    cpu          {"cpu": [{"online": True, "freq": {"cur": 729600, ...}}, ...]}                                      kHz

Whatever of it has another shape is unknown. `tot` is a sum on boards without a rail at their input, so it counts only
under such a rail's name.
"""

from __future__ import annotations

import contextlib
import math
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nsn_edge.runtimes.telemetry.base import Clock, Reading
from nsn_edge.runtimes.telemetry.jetson.listener import PAUSES_S, Listener
from nsn_edge.runtimes.telemetry.jetson.rails import BOARD_INPUTS, NOT_CONNECTED, board_power_mw, rail_power_mw
from nsn_edge.runtimes.telemetry.zones import hottest_of_best

SOCKET = "run/jtop.sock"
"""Where the service listens, below the filesystem root."""

_COLDEST_C, _HOTTEST_C = -60.0, 200.0  # a zone that is off says -256
_FASTEST_MHZ = 10_000.0


def has_jtop(root: Path = Path("/")) -> bool:
    """Whether jetson-stats is installed for this Python and its service runs. Imports nothing.

    Args:
        root: where `run/jtop.sock` is.
    """
    try:
        return stat.S_ISSOCK((root / SOCKET).stat().st_mode) and find_spec("jtop") is not None
    except (OSError, ImportError, ValueError):
        return False


class JtopSource(Listener):
    """Temperature, rails, GPU load and clock, CPU clock, power mode, from a running jtop service."""

    def __init__(
        self,
        module: Any = None,
        clock: Clock = time.monotonic,
        max_age_s: float = 5.0,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        """
        Args:
            module: `jtop`; imported by default, in the thread that listens.
            clock: monotonic seconds.
            max_age_s: how long what it said is given as known.
            pauses_s: before it is connected again, after it raised (JtopException, FileNotFoundError,
                ConnectionRefusedError, PermissionError, ...) or ended.
        """
        super().__init__(clock, max_age_s, pauses_s)
        self._module = module

    def _listen(self) -> None:
        module = self._module or import_module("jtop")
        client = module.jtop()  # a new one each time: one that lost its service never finds it again
        try:
            client.start()
            while not self._closing.is_set() and client.ok():
                self._hear(read_client(client, self._clock()))
        finally:
            with contextlib.suppress(Exception):  # what ended it is what counts
                client.close()


def read_client(client: Any, time_s: float) -> Reading:
    """What a connected `jtop` object says, as telemetry. Raises what its connection raises, and never for the shape of
    what it says.

    Args:
        client: of jetson-stats.
        time_s: monotonic seconds.
    """
    power = _mapping(client, "power")
    rails_mw = _rails_mw(power)
    return Reading(
        time_s=time_s,
        temperature_c=hottest_of_best(_temperatures_c(_mapping(client, "temperature"))),
        power_mw=board_power_mw(rails_mw),
        rails_mw=rails_mw,
        gpu_load_pct=_gpu_load_pct(_mapping(client, "gpu")),
        gpu_mhz=_fastest_mhz(_entries(_mapping(client, "gpu").values())),
        cpu_mhz=_fastest_mhz(
            core for core in _entries(_mapping(client, "cpu").get("cpu")) if core.get("online") is not False
        ),
        power_mode=_power_mode(client),
    )


def _temperatures_c(temperature: Mapping[Any, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for zone, entry in temperature.items():
        is_on = not isinstance(entry, Mapping) or entry.get("online") is not False
        value = _number(entry.get("temp") if isinstance(entry, Mapping) else entry)
        if is_on and value is not None and _COLDEST_C <= value <= _HOTTEST_C:
            found[str(zone)] = value
    return found


def _rails_mw(power: Mapping[Any, Any]) -> dict[str, float]:
    rails = power.get("rail")
    total = power.get("tot")
    entries = dict(rails) if isinstance(rails, Mapping) else {}
    if isinstance(total, Mapping) and total.get("name") in BOARD_INPUTS:
        entries[total["name"]] = total
    found: dict[str, float] = {}
    for name, entry in entries.items():
        power_mw = rail_power_mw(_number(entry.get("power"))) if isinstance(entry, Mapping) else None
        if power_mw is not None and name != NOT_CONNECTED:
            found[str(name)] = power_mw
    return found


def _gpu_load_pct(gpu: Mapping[Any, Any]) -> float | None:
    states = _entries(entry.get("status") for entry in _entries(gpu.values()))
    loads = [_number(state.get("load")) for state in states]
    return max((load for load in loads if load is not None and 0.0 <= load <= 100.0), default=None)


def _fastest_mhz(devices: Iterable[Mapping[Any, Any]]) -> float | None:
    clocks = [_number(clock.get("cur")) for clock in _entries(device.get("freq") for device in devices)]
    return max((khz / 1e3 for khz in clocks if khz is not None and 0.0 < khz / 1e3 <= _FASTEST_MHZ), default=None)


def _power_mode(client: Any) -> str | None:
    name = getattr(_property(client, "nvpmodel"), "name", None)
    return name if isinstance(name, str) and 0 < len(name) <= 64 else None


def _property(client: Any, name: str) -> Any:
    """A property's value, None where it stumbles over a board that it does not know. A lost connection is raised on."""
    try:
        return getattr(client, name, None)
    except (LookupError, TypeError, ValueError):
        return None


def _mapping(client: Any, name: str) -> Mapping[Any, Any]:
    value = _property(client, name)
    return value if isinstance(value, Mapping) else {}


def _entries(values: Any) -> list[Mapping[Any, Any]]:
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, Iterable) else []


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
