"""What a policy made of a world: promises kept or not, and at what price."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nsn_edge.runtimes.simulation.result import RungSwitch
from nsn_edge.runtimes.simulation.server import Answers, Fate
from nsn_edge.runtimes.simulation.world import World


@dataclass(frozen=True)
class DeviceMoment:
    """One row of the simulation."""

    time_s: float
    """When the row begins, in the trace's time."""
    rank: int | None
    """Of the rung in this row; None once the battery is empty."""
    temperature_c: float
    """When the row begins; also where the recorded sensor was silent."""
    battery_j: float | None
    """When the row ends; None without a simulated battery."""
    on_mains: bool
    """Whether something else than the battery pays."""
    power_w: float
    """What the device draws, on average over the row."""
    waiting: int
    """Requests in the queue when the row ends."""
    above_limit_s: float
    """Of this row, above the temperature limit."""


@dataclass(frozen=True)
class Outcome:
    """A policy's run through a world."""

    world: World
    """In which."""
    policy: Mapping[str, Any]
    """The policy's settings as JSON."""
    timeline: tuple[DeviceMoment, ...]
    """One per row."""
    switches: tuple[RungSwitch, ...]
    """The first decision is none."""
    answers: Answers
    """What became of each request."""
    battery_died_at_s: float | None
    """When the battery was empty; None: it never was."""

    def count(self, *fates: Fate) -> int:
        """How many requests met one of these fates."""
        return int(np.isin(self.answers.fate, fates).sum())

    @property
    def arrived(self) -> int:
        """Requests in all: those answered, given up, refused and waiting."""
        return len(self.answers.fate)

    @property
    def missed(self) -> int:
        """Requests that were not answered by their deadline: late, given up or refused."""
        return self.count(Fate.LATE, Fate.GIVEN_UP, Fate.REFUSED)

    @property
    def miss_fraction(self) -> float:
        """Of the requests; 0 if none came."""
        return self.missed / self.arrived if self.arrived else 0.0

    @cached_property
    def latency_ms(self) -> np.ndarray:
        """float64: from the arrival to the answer, waiting included, of each answered request."""
        finished = np.isin(self.answers.fate, (Fate.IN_TIME, Fate.LATE))
        times: np.ndarray = 1000.0 * (self.answers.finish_s - self.world.arrival_s)[finished]
        return times

    def latency_percentile_ms(self, percent: float) -> float | None:
        """None if nothing was answered."""
        return float(np.percentile(self.latency_ms, percent)) if len(self.latency_ms) else None

    @cached_property
    def quality_per_request(self) -> float | None:
        """Mean over all requests, one that missed its deadline (or waits still) counting 0. None if none came."""
        if not self.arrived:
            return None
        in_time = self.answers.fate == Fate.IN_TIME
        return float(self.world.quality[self.answers.rung[in_time]].sum()) / self.arrived

    @cached_property
    def quality_per_answer(self) -> float | None:
        """Mean over what was answered, in time or late. None if nothing was."""
        answered = np.isin(self.answers.fate, (Fate.IN_TIME, Fate.LATE))
        return float(self.world.quality[self.answers.rung[answered]].mean()) if answered.any() else None

    @property
    def joules_per_answer(self) -> float | None:
        """Of the rungs' work alone. None if nothing was answered."""
        return self.answers.spent_j / len(self.latency_ms) if len(self.latency_ms) else None

    @cached_property
    def seconds_above_limit(self) -> float:
        """Exact for the model: crossings within a row count to the moment."""
        return math.fsum(moment.above_limit_s for moment in self.timeline)

    @property
    def duration_s(self) -> float:
        """Of the world."""
        return self.world.end_s - float(self.world.time_s[0])

    @property
    def switches_per_minute(self) -> float:
        """Over the whole run."""
        return len(self.switches) / (self.duration_s / 60.0)

    @property
    def battery_left_pct(self) -> float | None:
        """At the end; None without a simulated battery."""
        battery, left_j = self.world.scenario.battery, self.timeline[-1].battery_j
        return None if battery is None or left_j is None else 100.0 * left_j / (battery.capacity_wh * 3600.0)

    @property
    def broken(self) -> tuple[str, ...]:
        """Which of the limits were not kept: `temperature`, `deadline`, `battery`."""
        limits = []
        if self.seconds_above_limit > 0.0:
            limits.append("temperature")
        if self.miss_fraction > self.world.scenario.max_miss_fraction:
            limits.append("deadline")
        battery, left_pct = self.world.scenario.battery, self.battery_left_pct
        if battery is not None and left_pct is not None and (self.battery_died_at_s or left_pct < battery.reserve_pct):
            limits.append("battery")
        return tuple(limits)

    @property
    def time_at_rung_s(self) -> dict[int, float]:
        """Seconds by rank, every rung, lowest first. Without the time after the battery's death."""
        seconds = dict.fromkeys(self.world.costs.ranks, 0.0)
        for moment, step_s in zip(self.timeline, self.world.step_s, strict=True):
            if moment.rank is not None:
                seconds[moment.rank] += float(step_s)
        return seconds

    def summary(self) -> dict[str, Any]:
        """The figures, as plain JSON types."""
        return {
            "requests": self.arrived,
            "in_time": self.count(Fate.IN_TIME),
            "late": self.count(Fate.LATE),
            "given_up": self.count(Fate.GIVEN_UP),
            "refused": self.count(Fate.REFUSED),
            "waiting": self.count(Fate.WAITING),
            "miss_fraction": self.miss_fraction,
            "p50_ms": self.latency_percentile_ms(50),
            "p95_ms": self.latency_percentile_ms(95),
            "p99_ms": self.latency_percentile_ms(99),
            "quality_per_request": self.quality_per_request,
            "quality_per_answer": self.quality_per_answer,
            "joules_per_answer": self.joules_per_answer,
            "joules": self.answers.spent_j,
            "switches": len(self.switches),
            "switches_per_minute": self.switches_per_minute,
            "seconds_above_limit": self.seconds_above_limit,
            "max_temperature_c": max(moment.temperature_c for moment in self.timeline),
            "battery_left_pct": self.battery_left_pct,
            "battery_died_at_s": self.battery_died_at_s,
            "time_at_rung_s": {str(rank): seconds for rank, seconds in self.time_at_rung_s.items()},
            "limits_broken": list(self.broken),
        }

    def timeline_json(self) -> list[dict[str, Any]]:
        """The rows as plain JSON types, with the mean and worst latency of what was answered in each."""
        rows = [asdict(moment) for moment in self.timeline]
        finished = np.isin(self.answers.fate, (Fate.IN_TIME, Fate.LATE))
        arrived_in = np.searchsorted(self.world.time_s, self.world.arrival_s[finished], side="right") - 1
        for row in rows:
            row["latency_ms"] = row["worst_latency_ms"] = None
        for at, latency_ms in zip(arrived_in, self.latency_ms, strict=True):
            row = rows[int(at)]
            row["worst_latency_ms"] = max(row["worst_latency_ms"] or 0.0, float(latency_ms))
        for at in np.unique(arrived_in):
            rows[int(at)]["latency_ms"] = float(np.median(self.latency_ms[arrived_in == at]))
        return rows
