"""Down at once, up slowly: how a policy moves from one rung to another, whatever asked for it.

    allowed rungs --> at once, if the best of them is lower --> rank
                 `--> after `min_dwell_s` of room, one rung up

Applied once, after all limiters were asked, so that no composition of them can flap. In any T seconds there are at most
T / min_dwell_s rises, each by one of the allowed rungs; and what falls must have risen. So where costs rise with the
rank there are at most 2 T / min_dwell_s switches, and one more for each rung but one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nsn_edge.runtimes.policy.base import Decision, PolicyState
from nsn_edge.runtimes.policy.limiter import Limit, Memory, Rungs, g


@dataclass(frozen=True)
class Ramp:
    """Moves between the rungs of one ladder."""

    rungs: Rungs
    min_dwell_s: float
    """How long a better rung above must be allowed, without interruption, before the rank rises to it."""

    def move(self, allowed: Limit, limiter: str, time_s: float, state: PolicyState, remembered: Memory) -> Decision:
        """The next rung.

        Args:
            allowed: what may run, and why no more.
            limiter: for the decision.
            time_s: of the reading; may stand still or jump: then a rise waits, at the longest one dwell more.
            state: with the rank that runs.
            remembered: by the limiters, for the next state.
        """
        target, rank = self._best(allowed.ranks), state.rank
        if rank is None or rank not in self.rungs.ranks or target <= rank:  # a state of another ladder starts afresh
            return _to(target, allowed.why(), limiter, state, remembered)
        below = [rung for rung in allowed.ranks if rung < rank]
        if rank not in allowed.ranks and below:
            best = self._best(below)
            return _to(best, f"{allowed.why()}; on the way to rank {target}", limiter, state, remembered)
        calm_since_s = state.calm_since_s
        if calm_since_s is None or time_s < calm_since_s:
            calm_since_s = time_s
        calm_s = time_s - calm_since_s
        if calm_s < self.min_dwell_s:
            waiting = f"{allowed.why()}; a rise needs room for {g(self.min_dwell_s)} s"
            return Decision(rank, waiting, replace(state, **{**remembered, "calm_since_s": calm_since_s}), limiter)
        higher = min(rung for rung in allowed.ranks if rank < rung <= target)
        return Decision(
            higher,
            f"{allowed.why()}; room to rise for {g(calm_s)} s: one rung up",
            replace(state, **{**remembered, "rank": higher, "calm_since_s": time_s if higher < target else None}),
            limiter,
        )

    def _best(self, ranks: list[int] | tuple[int, ...]) -> int:
        return min(ranks, key=self.rungs.place.__getitem__)


def _to(rank: int, why: str, limiter: str, state: PolicyState, remembered: Memory) -> Decision:
    return Decision(rank, why, replace(state, **{**remembered, "rank": rank, "calm_since_s": None}), limiter)
