"""Which rung to run at, decided from telemetry.

limits = load_policy("policy.toml")
policy = RungPolicy(limits, ladder)
decision = policy.decide(reading, PolicyState())     # rank, reason, next state
"""

from nsn_edge.runtimes.policy.base import Decision, PolicyState, RankPolicy
from nsn_edge.runtimes.policy.costs import RungCost, RungCosts, rung_costs
from nsn_edge.runtimes.policy.limits import BatteryStep, RungLimits, TemperatureStep, ThrottlingLimit
from nsn_edge.runtimes.policy.loading import load_policy
from nsn_edge.runtimes.policy.rung_limits import RungPolicy

__all__ = [
    "BatteryStep",
    "Decision",
    "PolicyState",
    "RankPolicy",
    "RungCost",
    "RungCosts",
    "RungLimits",
    "RungPolicy",
    "TemperatureStep",
    "ThrottlingLimit",
    "load_policy",
    "rung_costs",
]
