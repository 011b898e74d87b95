"""What every limiter is: one reason not to run at some rungs.

    reading, state --> limiter --> the rungs that it allows, why, and what it remembers

A limiter knows nothing of the others. `RungPolicy` asks them all, and the strictest wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from nsn_edge.errors import RankError
from nsn_edge.ladder import RankLadder
from nsn_edge.runtimes.policy.base import PolicyState
from nsn_edge.runtimes.policy.costs import RungCosts
from nsn_edge.runtimes.telemetry.base import Reading


@dataclass(frozen=True)
class Limit:
    """What a limiter allows now."""

    ranks: tuple[int, ...]
    """Rungs, lowest first; never empty."""
    why: Callable[[], str]
    """For people, with the numbers that decided. Called for the strictest limit alone: of five limiters four reasons
    would be written for nobody, and that costs more than deciding."""


Memory = Mapping[str, Any]
"""Fields of `PolicyState` with their next values. They are put into the state once, after all limiters were asked: a
decision costs microseconds, and copying a state is a good part of them."""


class Limiter(Protocol):
    """One reason not to run at some rungs."""

    @property
    def name(self) -> str:
        """The table of the policy file that it comes from."""
        ...

    def limit(self, reading: Reading, state: PolicyState) -> tuple[Limit | None, Memory]:
        """What is allowed (None: everything), and what to remember. Pure; never raises."""
        ...


@dataclass(frozen=True)
class Rungs:
    """The rungs that limiters choose from."""

    ladder: RankLadder
    """With one rung or more."""
    costs: RungCosts | None = None
    """Of exactly these rungs; None where the device has no profile."""
    unknown_max_flops: float = 1.0
    """What is allowed while a limiter does not know what it has to."""

    def __post_init__(self) -> None:
        if not self.ladder.rungs:
            raise RankError("the ladder has no rungs to choose from", "export a bundle with rungs first")
        if self.costs is not None and self.costs.ranks != self.ladder.ranks:
            raise RankError(
                f"the costs are of the rungs {list(self.costs.ranks)}, and the ladder has {list(self.ladder.ranks)}",
                "profile the bundle that is to run",
            )

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Lowest first."""
        return self.ladder.ranks

    @cached_property
    def best_first(self) -> tuple[int, ...]:
        """By measured quality where every rung has one, else by FLOPs."""
        return tuple(reversed(self.ranks)) if self.costs is None else self.costs.best_first

    @cached_property
    def place(self) -> Mapping[int, int]:
        """Of each rank among `best_first`."""
        return {rank: place for place, rank in enumerate(self.best_first)}

    def up_to(self, rank: int) -> tuple[int, ...]:
        """The rungs up to a rank; the lowest rung at least."""
        return tuple(rung for rung in self.ranks if rung <= rank) or self.ranks[:1]

    def within(self, max_flops: float) -> tuple[int, ...]:
        """The rungs within a fraction of the dense linear FLOPs; the lowest rung at least."""
        return self.up_to(self.ladder.rung_within(max_flops).rank)

    def below(self, rank: int) -> int:
        """The next rung down; the lowest stays."""
        return max((rung for rung in self.ranks if rung < rank), default=self.ranks[0])

    def above(self, rank: int) -> int:
        """The next rung up; the top one stays."""
        return min((rung for rung in self.ranks if rung > rank), default=self.ranks[-1])

    def safe(self, why: str) -> Limit:
        """The limit of one who does not know enough."""
        return Limit(self.within(self.unknown_max_flops), lambda: f"{why}: {at_most(self.unknown_max_flops)}")


def g(value: float) -> str:
    """A number for people, to a tenth."""
    return f"{round(value, 1):g}"


def at_most(max_flops: float) -> str:
    """A cap for people."""
    return f"at most {g(100 * max_flops)} % of FLOPs"
