"""The rule of a cascade: which rungs are asked one after another, and how certain is certain enough.

    text --> rank 88 --certain--> answer
                |
             uncertain: certainty below the threshold
                v
            rank 384 -----------> answer

Rungs are named by rank, which fits one bundle, or by their share of the dense linear FLOPs, which fits any bundle of
the model. A threshold belongs to the model that it was calibrated on: `bundle_sha256` says which.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nsn_edge.errors import PolicyError
from nsn_edge.ladder import RankLadder
from nsn_edge.runtimes.difficulty.certainty import MEASURES


class RuleError(PolicyError):
    """A setting of a rule that makes no sense, and which: so that a loader can add the file and the line."""

    def __init__(self, message: str, hint: str = "", *, key: str = "") -> None:
        super().__init__(message, hint)
        self.key = key


@dataclass(frozen=True)
class DifficultyRule:
    """Easy questions are answered at a low rung, uncertain ones are asked again at a higher one."""

    thresholds: tuple[float, ...]
    """For every rung but the last: an answer whose certainty is below this is asked again at the next rung. In
    `[0, 1]`; at 0 nothing is asked again."""
    ranks: tuple[int, ...] = ()
    """The rungs to ask, lowest first, two or more; empty where `flops` names them."""
    flops: tuple[float, ...] = ()
    """The same by their fraction of the dense linear FLOPs, in `(0, 1]`: each the best rung within it."""
    measure: str = "margin"
    """What certainty is measured by, one of `MEASURES`."""
    bundle_sha256: str | None = None
    """Of the weights that it was calibrated on, in hexadecimal; None where it is not known. Other weights are
    refused."""

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise RuleError(f"unknown measure {self.measure!r}", f"choose one of {', '.join(MEASURES)}", key="measure")
        if bool(self.ranks) == bool(self.flops):
            raise RuleError(
                "the rungs are named twice" if self.ranks else "the rule names no rungs",
                "give ranks = [88, 384] or flops = [0.25, 1.0], lowest first",
                key="ranks",
            )
        self._check_rungs()
        for value in self.thresholds:
            if not (_is_number(value) and 0.0 <= value <= 1.0):
                raise RuleError(f"the threshold {value!r} is outside 0..1", "certainty is 0 to 1", key="thresholds")
        count = len(self.ranks or self.flops)
        if len(self.thresholds) != count - 1:
            raise RuleError(
                f"{count} rungs and {len(self.thresholds)} thresholds",
                "every rung but the last has one",
                key="thresholds",
            )
        sha = self.bundle_sha256
        if sha is not None and not (isinstance(sha, str) and len(sha) == 64 and set(sha) <= set("0123456789abcdef")):
            raise RuleError(f"{sha!r} is not a SHA-256 in hexadecimal", key="bundle_sha256")

    def _check_rungs(self) -> None:
        for rank in self.ranks:
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise RuleError(f"a rank is a whole number of 1 or more, not {rank!r}", key="ranks")
        for share in self.flops:
            if not (_is_number(share) and 0.0 < share <= 1.0):
                raise RuleError(
                    f"{share!r} is no fraction above 0 and up to 1", "0.5 means half of the dense FLOPs", key="flops"
                )
        key, rungs = ("ranks", self.ranks) if self.ranks else ("flops", self.flops)
        if len(rungs) < 2:
            raise RuleError("one rung cannot pass a question on", "name two or more, lowest first", key=key)
        if any(b <= a for a, b in itertools.pairwise(rungs)):
            raise RuleError(f"the rungs must rise: {list(rungs)}", "name the cheapest first", key=key)

    def rungs(self, ladder: RankLadder) -> tuple[int, ...]:
        """The ranks to ask, lowest first.

        Raises:
            RankError: the ladder has no rung at one of `ranks`, or no rungs.
            RuleError: two of `flops` are the same rung of the ladder.
        """
        if self.ranks:
            return tuple(ladder.rung(rank).rank for rank in self.ranks)
        found = tuple(ladder.rung_within(share).rank for share in self.flops)
        for (low, a), (high, b) in itertools.pairwise(zip(self.flops, found, strict=True)):
            if a == b:
                raise RuleError(
                    f"flops {low:g} and {high:g} are both rung {a} of this bundle",
                    "its rungs are at " + ", ".join(f"{ladder.flops_fraction(rank):.3g}" for rank in ladder.ranks),
                    key="flops",
                )
        return found

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, with the keys of a `[difficulty]` table; what is not set is left out."""
        set_ones = {
            "measure": self.measure,
            "ranks": list(self.ranks),
            "flops": list(self.flops),
            "thresholds": list(self.thresholds),
            "bundle_sha256": self.bundle_sha256,
        }
        return {key: value for key, value in set_ones.items() if value not in (None, [])}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> DifficultyRule:
        """A rule from a parsed `[difficulty]` table of TOML, or from `to_json`.

        Raises:
            RuleError: an unknown key, a missing one, a wrong type, or values that make no sense; `key` says which.
        """
        known = [item.name for item in fields(cls)]
        for key in table:
            if key not in known:
                raise RuleError(f"unknown key {key!r}", f"the keys are {', '.join(known)}", key=key)
        if "thresholds" not in table:
            raise RuleError("the key thresholds is missing", "nsn-edge calibrate finds them")
        settings = dict(table)
        for key in ("thresholds", "ranks", "flops"):
            if key in settings:
                if not isinstance(settings[key], (list, tuple)):
                    raise RuleError(f"{key} is {settings[key]!r}, not a list", f"write {key} = [...]", key=key)
                settings[key] = tuple(settings[key])
        return cls(**settings)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
