"""jetson-stats' module `jtop`, as far as telemetry uses it, with the failures that the real one is known for.

Written against its documentation and the public code of its users; the real package was not installed (AGPL-3.0).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

ORIN_NANO: Mapping[str, Any] = {
    "temperature": {
        "cpu": {"temp": 65.562, "online": True},
        "tj": {"temp": 65.75, "online": True, "max": 99, "crit": 104.5},
        "cv0": {"temp": -256, "online": False},
        "gpu": {"temp": -256, "online": True},
    },
    "power": {
        "rail": {
            "VDD_CPU_GPU_CV": {"volt": 5000, "curr": 1779, "power": 8896, "avg": 7585, "online": True},
            "VDD_SOC": {"volt": 5000, "curr": 784, "power": 3923, "avg": 3515, "online": True},
            "NC": {"power": 5},
        },
        "tot": {"name": "VDD_IN", "volt": 5000, "curr": 3589, "power": 17946, "avg": 15710},
    },
    "gpu": {
        "ga10b": {
            "type": "integrated",
            "status": {"railgate": False, "3d_scaling": True, "load": 84.3},
            "freq": {"governor": "nvhost_podgov", "cur": 713000, "max": 1020000, "min": 306000, "GPC": [713000]},
        }
    },
    "cpu": {
        "total": {"user": 90.0},
        "cpu": [
            {"online": True, "freq": {"cur": 1984000}},
            {"online": True, "freq": {"cur": 729600}},
            {"online": False, "freq": {"cur": 2201600}},
            {"online": False},
        ],
    },
    "nvpmodel": SimpleNamespace(name="MAXN_SUPER", id=2),
}
"""What a connected client says, by property."""

AGX_ORIN: Mapping[str, Any] = {
    **ORIN_NANO,
    "power": {
        "rail": {"VDD_GPU_SOC": {"power": 3205}, "VDD_CPU_CV": {"power": -20}, "VIN_SYS_5V0": {"power": 4767}},
        "tot": {"name": "ALL", "volt": 0, "curr": 0, "power": 7972, "avg": 7972},
    },
}
"""A board without a rail at its input, of which jtop gives a sum."""


class JtopException(Exception):  # noqa: N818  its own name
    """As jetson-stats raises it."""


class FakeJtop:
    """Stands where `import jtop` looks; `jtop()` makes clients, one script after another.

    A script is what happens to one client: an exception (raised by `start`), or a list of what each `ok()` does: a
    mapping of properties, an exception to raise, False to end, or an Event to hang on.
    """

    JtopException = JtopException

    def __init__(self, *scripts: Any) -> None:
        self._scripts = list(scripts)
        self.clients: list[FakeClient] = []

    def jtop(self) -> FakeClient:
        script = self._scripts[min(len(self.clients), len(self._scripts) - 1)]
        client = FakeClient(script)
        self.clients.append(client)
        return client


class FakeClient:
    """One connection."""

    def __init__(self, script: Any) -> None:
        self._script = script
        self._steps = iter(script if isinstance(script, list) else [])
        self._says: Mapping[str, Any] = {}
        self.closed = 0

    def start(self) -> None:
        if isinstance(self._script, BaseException):
            raise self._script

    def ok(self) -> bool:
        step = next(self._steps, False)
        if isinstance(step, threading.Event):
            step.wait(60.0)
            return True
        if isinstance(step, BaseException):
            raise step
        if step is False:
            return False
        self._says = step
        return True

    def close(self) -> None:
        self.closed += 1

    def __getattr__(self, name: str) -> Any:
        try:
            value = self._says[name]
        except KeyError:
            raise AttributeError(name) from None
        if isinstance(value, BaseException):
            raise value
        return value
