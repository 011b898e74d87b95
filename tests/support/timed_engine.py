"""An engine on a clock of its own, whose calls take exact times and exact energy, and the sensors of its device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsn_edge.bundle import TensorSpec
from nsn_edge.runtimes.telemetry import Reading

RUN_MS = {2: 3.0, 5: 5.0, 8: 7.0, 16: 10.0}
"""By rank of the tiny bundle."""
CALL_MJ = {2: 12.0, 5: 25.0, 8: 42.0, 16: 80.0}
"""What a call draws beyond what the device does idle."""


@dataclass
class FakeEngine:
    """Takes an exact time for each rank on a clock of its own."""

    run_ms: Mapping[int, float] = field(default_factory=lambda: dict(RUN_MS))
    jitter: float = 0.0
    slowdown: Callable[[float], float] = lambda now_s: 1.0
    """By what calls take longer at a time."""
    now_s: float = 0.0
    loads: int = 0
    open_graphs: int = 0
    spent_mj: float = 0.0
    power_mw: float = 0.0
    """Of the last call, beyond idling; 0 once the device slept."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    before_run: Callable[[int, Mapping[str, Any]], None] = lambda rank, inputs: None
    name: str = "fake"

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.power_mw = 0.0

    def load(self, graph_path: Path) -> FakeGraph:
        # The very first load is slow, as an engine that starts is.
        self.now_s += 5.0 if self.loads == 0 else 0.02
        self.loads += 1
        self.open_graphs += 1
        stem = graph_path.stem
        return FakeGraph(self, int(stem.removeprefix("rank-")) if stem.startswith("rank-") else None)

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name, "threads": 1}


@dataclass
class FakeGraph:
    engine: FakeEngine
    rank: int | None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        engine = self.engine
        rank = self.rank if self.rank is not None else int(inputs["rank"])
        engine.before_run(rank, inputs)
        engine.seen.append(dict(inputs))
        wave = 1 + engine.jitter * (-1) ** len(engine.seen)
        took_s = engine.run_ms[rank] / 1e3 * wave * engine.slowdown(engine.now_s)
        engine.now_s += took_s
        engine.spent_mj += CALL_MJ[rank]
        engine.power_mw = CALL_MJ[rank] / took_s
        return {}

    def close(self) -> None:
        self.engine.open_graphs -= 1


@dataclass
class FakeSensors:
    """The sensors of the device on which a `FakeEngine` runs."""

    engine: FakeEngine
    idle_w: float = 6.0
    counter: bool = True
    step_s: float = 0.0
    """How often the counter of energy moves; 0 is always."""
    meter: bool = True
    """Whether there is one of power."""
    others: Callable[[float], Mapping[str, Any]] = lambda now_s: {}
    """More fields of the reading, by time."""
    _tick: float = -1.0
    _held_j: float = 0.0

    def read(self) -> Reading:
        now_s = self.engine.now_s
        tick = now_s // self.step_s if self.step_s else now_s
        if tick != self._tick:
            self._tick, self._held_j = tick, self.idle_w * now_s + self.engine.spent_mj / 1e3
        return Reading(
            time_s=now_s,
            energy_j=self._held_j if self.counter else None,
            power_mw=self.idle_w * 1e3 + self.engine.power_mw if self.meter else None,
            **self.others(now_s),
        )
