"""Energy of a call: what the device drew while a rung ran back to back, less what it draws idle.

    idle     nothing loaded, the process asleep for a while             -> idle power, mW
    turn     one rung, back to back, for a second or more               -> energy, time, calls
    energy of a call = sum over its turns of (energy - idle power x time) / calls

Rungs take turns in a shuffled order here, too, several rounds of them, each long enough for a sensor to follow. A
hardware counter of energy (RAPL, NVML) is taken where there is one; it moves in steps, of up to 100 ms, so a turn lasts
from one step to another and never pays for a part of one. Otherwise power is read every tenth of a second and its mean
taken times the time; sensors of power average over as much as a second, so the first second of a turn is left out.

What it is not: the power of a GPU is that of its board alone, RAPL's that of the processor's package, and a battery's
that of everything, screen included. The source stands in the profile. Without a sensor energy is unknown, never zero.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.profiling.measure import Clock
from nsn_edge.runtimes.telemetry import Reading, TelemetrySource

COUNTER = "counter"
POWER = "power"

_POLL_S = {COUNTER: 0.005, POWER: 0.1}
_LEAD_S = 1.0
_LONGEST_STEP_S = 1.0
"""A counter that stands still for so long while the device works does not count."""

_METHODS = {
    COUNTER: "energy counter from one of its steps to another, rungs in turn, back to back; idle power times time "
    "subtracted",
    POWER: "mean of the power read every 0.1 s, without each turn's first second, times time; rungs in turn, back to "
    "back; idle power times time subtracted",
}


@dataclass(frozen=True)
class EnergySettings:
    """How long to measure energy, where it can be."""

    turn_s: float = 1.0
    """Seconds of each turn; 0 leaves energy out."""
    rounds: int = 2
    """Turns of each rung."""
    idle_s: float = 2.0
    """Seconds of doing nothing before each configuration."""

    def __post_init__(self) -> None:
        if not (0 <= self.turn_s < float("inf") and self.rounds >= 1 and 0 < self.idle_s < float("inf")):
            raise UsageError(
                f"cannot measure energy in {self.rounds} turns of {self.turn_s} s after {self.idle_s} s of idling",
                "turns are 1 or more, and their seconds 0 (not at all) or more",
            )


@dataclass(frozen=True)
class EnergyMethod:
    """How a configuration's energy was measured."""

    kind: str | None
    """`counter` or `power`; None where there is no sensor, or it did not hold."""
    method: str
    """In words."""
    idle_mw: float | None
    """What the device drew before, doing nothing; subtracted."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> EnergyMethod:
        """The reverse of `to_json`."""
        try:
            return cls(data["kind"], data["method"], data["idle_mw"])
        except (KeyError, TypeError) as error:
            raise NsnEdgeError(
                f"the profile's energy is not readable: {error!r}", "profile the bundle again"
            ) from error


@dataclass(frozen=True)
class _Turn:
    energy_mj: float
    time_s: float
    calls: int


class EnergyMeter:
    """Measures energy around calls, by the best that a source of telemetry has."""

    def __init__(
        self, source: TelemetrySource, clock: Clock = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._source, self._clock, self._sleep = source, clock, sleep
        reading = self._read()
        self.kind = COUNTER if reading.energy_j is not None else POWER if reading.power_mw is not None else None
        self.idle_mw: float | None = None

    def measure_idle(self, seconds: float) -> None:
        """Sleep, and note what the device draws meanwhile. A counter that does not move is none: power is taken."""
        if self.kind == COUNTER:
            turn = self._counted(lambda: self._sleep(_POLL_S[COUNTER]), seconds)
            if turn is not None:
                self.idle_mw = turn.energy_mj / turn.time_s
                return
            self.kind = POWER
        if self.kind == POWER:
            turn = self._integrated(lambda: self._sleep(_POLL_S[POWER]), seconds, lead_s=0.0)
            self.idle_mw = None if turn is None else turn.energy_mj / turn.time_s
            self.kind = None if turn is None else POWER

    def per_call(
        self,
        calls: Mapping[int, Callable[[], object]],
        settings: EnergySettings,
        *,
        seed: int = 0,
        progress: Progress = silent,
    ) -> dict[int, tuple[float, ...]]:
        """Millijoules of a call by rank, one for each round, idle subtracted; a rank for which the sensor did not hold,
        or gave no more than the idle device's, is left out."""
        turns: dict[int, list[_Turn | None]] = {rank: [] for rank in calls}
        order = list(calls)
        shuffle = random.Random(seed).shuffle
        for done in range(settings.rounds if self.kind is not None and self.idle_mw is not None else 0):
            shuffle(order)
            for index, rank in enumerate(order):
                turns[rank].append(self._turn(calls[rank], settings.turn_s))
                progress("energy", done * len(order) + index + 1, settings.rounds * len(order))
        found = {}
        for rank, taken in turns.items():
            mine = [(t.energy_mj - (self.idle_mw or 0.0) * t.time_s) / t.calls for t in taken if t is not None]
            if mine and len(mine) == len(taken) and statistics.fmean(mine) > 0:
                found[rank] = tuple(mine)
        return found

    def method(self) -> EnergyMethod:
        """How it was measured."""
        if self.kind is None:
            return EnergyMethod(None, "no sensor of energy or power answers here", None)
        return EnergyMethod(self.kind, _METHODS[self.kind], self.idle_mw)

    def _turn(self, call: Callable[[], object], seconds: float) -> _Turn | None:
        if self.kind == COUNTER:
            return self._counted(call, seconds)
        return self._integrated(call, seconds, lead_s=_LEAD_S)

    def _counted(self, call: Callable[[], object], seconds: float) -> _Turn | None:
        """From one step of the counter to the first one after `seconds`. None if it stands still or runs backwards."""
        begin = self._next_step(call)
        if begin is None:
            return None
        start_s, start_j, _ = begin
        calls = 0
        while self._clock() - start_s < seconds:
            polled = self._clock()
            while self._clock() - polled < _POLL_S[COUNTER]:
                call()
                calls += 1
        end = self._next_step(call)
        if end is None or end[1] <= start_j:
            return None
        return _Turn((end[1] - start_j) * 1e3, end[0] - start_s, calls + end[2])

    def _next_step(self, call: Callable[[], object]) -> tuple[float, float, int] | None:
        """Call until the counter moves: when, where to, and after how many calls."""
        start, calls = self._clock(), 0
        first = self._read().energy_j
        while first is not None and (now := self._clock()) - start < _LONGEST_STEP_S:
            call()
            calls += 1
            if self._clock() - now < _POLL_S[COUNTER] and calls % 8:
                continue
            energy_j = self._read().energy_j
            if energy_j is None:
                return None
            if energy_j != first:
                return self._clock(), energy_j, calls
        return None

    def _integrated(self, call: Callable[[], object], seconds: float, lead_s: float) -> _Turn | None:
        """Mean power times time; power is read between calls."""
        lead = self._clock()
        while self._clock() - lead < lead_s:
            call()
        start_s, calls = self._clock(), 0
        powers: list[float | None] = []
        polled = start_s
        while (now := self._clock()) - start_s < seconds or not calls:
            call()
            calls += 1
            if now - polled >= _POLL_S[POWER] or not powers:
                polled = now
                powers.append(self._read().power_mw)
        known = [power for power in powers if power is not None]
        time_s = self._clock() - start_s
        if not known or len(known) < len(powers) / 2:
            return None
        return _Turn(statistics.fmean(known) * time_s, time_s, calls)

    def _read(self) -> Reading:
        try:
            return self._source.read()
        except Exception:  # a sensor may raise anything
            return Reading(self._clock())


def mean_energy_mj(rounds_mj: Sequence[float]) -> float | None:
    """Of a call, over the rounds; None without any."""
    return statistics.fmean(rounds_mj) if rounds_mj else None
