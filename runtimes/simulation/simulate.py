"""Replay a trace through a policy, with or without a real session answering meanwhile.

    row --> policy --> rank changed? --> ask for the switch --> queries (old rung until the new one is there) --> settle

A row is seconds of the device's life and milliseconds of ours, so a background load is waited for at the row's end: on
the device it would have been done long before the next row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.ladder import RankLadder
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.policy.base import PolicyState, RankPolicy
from nsn_edge.runtimes.simulation.queries import Queries
from nsn_edge.runtimes.simulation.result import Moment, RungSwitch, SimulationResult
from nsn_edge.runtimes.telemetry.replay import TelemetryTrace


def simulate(
    trace: TelemetryTrace,
    policy: RankPolicy,
    ladder: RankLadder,
    *,
    queries: Queries | None = None,
    queries_per_row: int = 1,
    progress: Progress = silent,
) -> SimulationResult:
    """Run a trace through a policy.

    Args:
        trace: supplies the readings and the time.
        policy: decides; bound to `ladder`.
        ladder: whose rungs are chosen from.
        queries: answers real queries at the current rung; None simulates the policy alone. What fails is counted, and
            the replay goes on.
        queries_per_row: how many at each row of the trace.
        progress: hears of the rows done.

    Raises:
        UsageError: `queries_per_row` is below 1.
    """
    if queries_per_row < 1:
        raise UsageError(f"queries per row of the trace are 1 or more, not {queries_per_row}")
    asking = None if queries is None else _Asking(queries, queries_per_row)
    timeline: list[Moment] = []
    switches: list[RungSwitch] = []
    state = PolicyState()
    for done, reading in enumerate(trace.readings, start=1):
        before = state.rank
        decision = policy.decide(reading, state)
        state = decision.state
        if before is not None and decision.rank != before:
            switches.append(RungSwitch(reading.time_s, before, decision.rank, decision.reason))
        moment = Moment(reading, decision.rank)
        if asking is not None:
            moment = asking.moment(moment, must_switch=decision.rank != before)
        timeline.append(moment)
        progress("simulate", done, len(trace.readings))
    return SimulationResult(
        trace_name=trace.name,
        policy=policy.to_json(),
        ladder=ladder,
        timeline=tuple(timeline),
        switches=tuple(switches),
        queries=asking.asked if asking else 0,
        failed_queries=asking.failed_queries if asking else 0,
        failed_switches=asking.failed_switches if asking else 0,
        first_failure=asking.first_failure if asking else "",
    )


class _Asking:
    """Asks the queries of each moment and counts what fails."""

    def __init__(self, queries: Queries, per_row: int) -> None:
        self._queries = queries
        self._per_row = per_row
        self.asked = 0
        self.failed_queries = 0
        self.failed_switches = 0
        self.first_failure = ""

    def moment(self, moment: Moment, must_switch: bool) -> Moment:
        """The moment with its latency: the median over the rung that answered last."""
        switched = not must_switch or self._succeeds(lambda: self._queries.switch(moment.rank))
        answers: list[tuple[int, float]] = []
        for index in range(self._per_row):
            self.asked += 1
            self.failed_queries += not self._succeeds(partial(self._answer, index, answers))
        if must_switch:
            switched = self._succeeds(self._queries.settle) and switched
            self.failed_switches += not switched
        if not answers:
            return moment
        answered_by = answers[-1][0]
        latency_ms = statistics.median(latency for rank, latency in answers if rank == answered_by)
        return replace(moment, latency_ms=latency_ms, answered_by_rank=answered_by)

    def _answer(self, index: int, answers: list[tuple[int, float]]) -> None:
        answers.append(self._queries.answer(index))

    def _succeeds(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # whatever an engine raises is a failed query, and is counted
            words = error.message if isinstance(error, NsnEdgeError) else f"{type(error).__name__}: {error}"
            self.first_failure = self.first_failure or words
            return False
        return True
