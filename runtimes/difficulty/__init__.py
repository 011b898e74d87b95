"""Easy questions at a low rung, hard ones at a high one: a cascade over the rungs of a bundle.

rule = DifficultyRule(thresholds=(0.6,), flops=(0.25, 1.0))
"""

from nsn_edge.runtimes.difficulty.certainty import MEASURES, certainty
from nsn_edge.runtimes.difficulty.rule import DifficultyRule, RuleError

__all__ = ["MEASURES", "DifficultyRule", "RuleError", "certainty"]
