"""What a simulation found."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nsn_edge.ladder import RankLadder
from nsn_edge.runtimes.telemetry.base import Reading


@dataclass(frozen=True)
class Moment:
    """One row of the trace and what was done with it."""

    reading: Reading
    """The row; its time is the trace's."""
    rank: int
    """What the policy decided."""
    latency_ms: float | None = None
    """Median of the real queries that `answered_by_rank` answered; None without queries, or when all failed."""
    answered_by_rank: int | None = None
    """The rung that answered the last of them. It lags behind `rank` while a cold rung loads."""


@dataclass(frozen=True)
class RungSwitch:
    """One change of the policy's decision."""

    time_s: float
    """In the trace's time."""
    from_rank: int
    """Before."""
    to_rank: int
    """After."""
    reason: str
    """The policy's sentence."""


@dataclass(frozen=True)
class SimulationResult:
    """A replayed trace. Each rung holds from its row's time to the next row's."""

    trace_name: str
    """For people."""
    policy: Mapping[str, Any]
    """The policy's settings as JSON."""
    ladder: RankLadder
    """Whose rungs were chosen from."""
    timeline: tuple[Moment, ...]
    """One per row of the trace."""
    switches: tuple[RungSwitch, ...]
    """The first decision is none."""
    queries: int = 0
    """Real queries asked."""
    failed_queries: int = 0
    """Those that raised."""
    failed_switches: int = 0
    """Rungs that could not be loaded; the session went on at the old one."""
    first_failure: str = ""
    """What the first failed query or switch said."""

    @property
    def duration_s(self) -> float:
        """From the first row to the last."""
        return self.timeline[-1].reading.time_s - self.timeline[0].reading.time_s

    @property
    def time_at_rung_s(self) -> dict[int, float]:
        """Seconds by rank, every rung of the ladder, lowest first; they add up to `duration_s`."""
        seconds = dict.fromkeys(self.ladder.ranks, 0.0)
        for moment, following in itertools.pairwise(self.timeline):
            seconds[moment.rank] += following.reading.time_s - moment.reading.time_s
        return seconds

    @property
    def switches_per_minute(self) -> float:
        """0 for a trace without duration."""
        return len(self.switches) / (self.duration_s / 60.0) if self.duration_s else 0.0

    def median_latency_ms(self, rank: int) -> float | None:
        """Median over the moments that this rung answered; None if it answered none."""
        latencies = [
            moment.latency_ms
            for moment in self.timeline
            if moment.latency_ms is not None and moment.answered_by_rank == rank
        ]
        return statistics.median(latencies) if latencies else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, kind `simulation`."""
        return {
            "schema_version": 1,
            "kind": "simulation",
            "trace": {"name": self.trace_name, "rows": len(self.timeline), "duration_s": self.duration_s},
            "policy": dict(self.policy),
            "ladder": [
                {"rank": rung.rank, "dense": rung.dense, "flops_fraction": self.ladder.flops_fraction(rung.rank)}
                for rung in self.ladder.rungs
            ],
            "timeline": [
                {
                    "time_s": moment.reading.time_s,
                    "battery_pct": moment.reading.battery_pct,
                    "on_mains": moment.reading.on_mains,
                    "temperature_c": moment.reading.temperature_c,
                    "rank": moment.rank,
                    "latency_ms": moment.latency_ms,
                    "answered_by_rank": moment.answered_by_rank,
                }
                for moment in self.timeline
            ],
            "switches": [asdict(switch) for switch in self.switches],
            "summary": {
                "time_at_rung_s": {str(rank): seconds for rank, seconds in self.time_at_rung_s.items()},
                "switches": len(self.switches),
                "switches_per_minute": self.switches_per_minute,
                "queries": self.queries,
                "failed_queries": self.failed_queries,
                "failed_switches": self.failed_switches,
                "first_failure": self.first_failure or None,
            },
        }
