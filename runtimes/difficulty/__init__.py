"""Easy questions at a low rung, hard ones at a high one: a cascade over the rungs of a bundle.

rule = DifficultyRule(thresholds=(0.6,), flops=(0.25, 1.0))       # or load_rule("difficulty.toml")
cascade = Cascade(session, rule)
answer = cascade.run(inputs)                                      # outputs, and per row: rank, certainty, why
"""

from nsn_edge.runtimes.difficulty.cascade import Asked, Cascade, CascadeAnswer, CascadeCounts
from nsn_edge.runtimes.difficulty.certainty import MEASURES, certainty
from nsn_edge.runtimes.difficulty.files import load_rule, save_rule
from nsn_edge.runtimes.difficulty.rule import DifficultyRule, RuleError

__all__ = [
    "MEASURES",
    "Asked",
    "Cascade",
    "CascadeAnswer",
    "CascadeCounts",
    "DifficultyRule",
    "RuleError",
    "certainty",
    "load_rule",
    "save_rule",
]
