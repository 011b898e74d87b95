"""Which rung still answers in time: the best one whose predicted latency fits what is left of a deadline."""

from __future__ import annotations

from collections.abc import Collection

from nsn_edge.runtimes.policy.costs import RungCosts


def rung_in_time(costs: RungCosts, left_ms: float, *, ceiling: int, resident: Collection[int]) -> int | None:
    """The best rung in memory, up to the current one, whose predicted 99th percentile fits the time left; the fastest
    if none does, since 99 of 100 of its answers come sooner.

    Args:
        costs: measured on this device.
        left_ms: until the deadline.
        ceiling: the current rank: what a policy allows now.
        resident: ranks that answer without loading.

    Returns:
        None where no rung in memory has known costs: then the current one answers.
    """
    choices = [rank for rank in costs.best_first if rank <= ceiling and rank in resident]
    for rank in choices:
        if costs.at(rank).p99_ms <= left_ms:
            return rank
    return min(choices, key=lambda rank: costs.at(rank).p99_ms, default=None)
