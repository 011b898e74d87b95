"""One queue and one server in simulated time: who is answered, when, at which rung, and what it cost.

arrives --> queue full?  refused
            waits        deadline passed before its turn?  given up
            begins       at the rung of that moment, and is not interrupted
            ends         in time, or late
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from nsn_edge.runtimes.simulation.world import World
from nsn_edge.runtimes.telemetry.base import Work
from nsn_edge.runtimes.workload import WorkMeter


class Fate(IntEnum):
    """What became of a request."""

    WAITING = 0
    """In the queue, or being answered, when the simulation ended."""
    IN_TIME = 1
    """Answered by its deadline."""
    LATE = 2
    """Answered after it."""
    GIVEN_UP = 3
    """Its deadline passed before its turn."""
    REFUSED = 4
    """The queue was full."""


@dataclass(frozen=True)
class Answers:
    """What became of every request; arrays with one entry each, in the order of arrival."""

    fate: np.ndarray
    """int8, a `Fate`."""
    rung: np.ndarray
    """int64, which of the rungs answered, 0 for the lowest; -1 where none did."""
    begin_s: np.ndarray
    """float64, NaN where it never began."""
    finish_s: np.ndarray
    """float64, NaN where it never began."""
    spent_j: float
    """By all answers, as far as the simulation went."""


class RequestServer:
    """Serves the requests of a world, row by row."""

    def __init__(self, world: World) -> None:
        count = len(world.arrival_s)
        self._world = world
        self._deadline_s = world.arrival_s + world.scenario.deadline_ms / 1000.0
        self._index = {rank: at for at, rank in enumerate(world.costs.ranks)}
        self._fate = np.full(count, Fate.WAITING, dtype=np.int8)
        self._rung = np.full(count, -1, dtype=np.int64)
        self._begin_s = np.full(count, math.nan)
        self._finish_s = np.full(count, math.nan)
        self._spent_j = 0.0
        self._queue: deque[int] = deque()
        self._next = 0
        self._serving: int | None = None
        self._free_s = -math.inf
        self._power_w = 0.0
        self._now_s = float(world.time_s[0])
        self._meter = WorkMeter(clock=lambda: self._now_s)

    @property
    def waiting(self) -> int:
        """Requests in the queue now, without the one being answered."""
        return len(self._queue)

    def work(self, now_s: float) -> Work:
        """What a session would tell its policy now."""
        self._now_s = now_s
        return self._meter.take(self.waiting)

    def serve(self, row: int, rank: int | None, slowdown: float) -> float:
        """Everything that arrives, begins and ends within a row.

        Args:
            row: the next one of the world.
            rank: of the rung at which to begin answers; None: the device is dead.
            slowdown: how many times longer an answer that begins now takes; it costs the same energy.

        Returns:
            Joules spent within the row.
        """
        now_s = float(self._world.time_s[row])
        end_s = now_s + float(self._world.step_s[row])
        arrival_s = self._world.arrival_s
        if rank is None:
            self._serving, self._free_s, self._power_w = None, -math.inf, 0.0  # what was under way is lost
        spent_j = self._spend(now_s, end_s)
        while True:
            next_s = float(arrival_s[self._next]) if self._next < len(arrival_s) else math.inf
            begin_s = max(self._free_s, float(arrival_s[self._queue[0]])) if self._queue else math.inf
            if rank is not None and begin_s < end_s and begin_s <= next_s:
                self._finish(begin_s)
                spent_j += self._begin(self._queue.popleft(), begin_s, rank, slowdown, end_s)
            elif next_s < end_s:
                self._arrive(next_s)
            else:
                break
        self._finish(end_s)
        self._give_up(end_s)
        self._spent_j += spent_j
        return spent_j

    def answers(self) -> Answers:
        """What became of every request so far."""
        return Answers(self._fate, self._rung, self._begin_s, self._finish_s, self._spent_j)

    def _arrive(self, now_s: float) -> None:
        self._finish(now_s)
        self._give_up(now_s)
        self._meter.arrived()
        if len(self._queue) >= self._world.scenario.queue_limit:
            self._fate[self._next] = Fate.REFUSED
        else:
            self._queue.append(self._next)
        self._next += 1

    def _give_up(self, now_s: float) -> None:
        """Requests whose deadline has passed leave the queue. All have the same patience, so the oldest go first."""
        while self._queue and self._deadline_s[self._queue[0]] <= now_s:
            self._fate[self._queue.popleft()] = Fate.GIVEN_UP

    def _begin(self, request: int, begin_s: float, rank: int, slowdown: float, end_s: float) -> float:
        """Joules that the answer costs before `end_s`; 0 for a request that is given up instead."""
        if begin_s >= self._deadline_s[request]:
            self._fate[request] = Fate.GIVEN_UP
            return 0.0
        rung = self._index[rank]
        service_s = float(self._world.service_s[request, rung]) * slowdown
        self._rung[request] = rung
        self._begin_s[request] = begin_s
        self._serving, self._free_s = request, begin_s + service_s
        self._power_w = float(self._world.energy_j[request, rung]) / service_s
        return self._spend(begin_s, end_s)

    def _spend(self, begin_s: float, end_s: float) -> float:
        """Joules of the answer under way between two moments."""
        return self._power_w * max(min(self._free_s, end_s) - begin_s, 0.0)

    def _finish(self, now_s: float) -> None:
        """The answer under way, if it has ended by now."""
        request = self._serving
        if request is None or self._free_s > now_s:
            return
        self._serving, self._power_w = None, 0.0
        self._finish_s[request] = self._free_s
        self._fate[request] = Fate.IN_TIME if self._free_s <= self._deadline_s[request] else Fate.LATE
        latency_ms = 1000.0 * (self._free_s - float(self._begin_s[request]))
        self._meter.answered(self._world.costs.ranks[self._rung[request]], latency_ms)
