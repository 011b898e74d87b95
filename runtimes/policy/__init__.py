"""Which rung to run at, decided from telemetry, from what each rung costs here, and from what was asked lately.

costs = load_costs(Path("profile.json"), ladder)            # what deadlines and energy budgets plan with
policy = build_policy("policy.toml", ladder, costs)
decision = policy.decide(reading, PolicyState())            # rank, reason, next state
"""

from nsn_edge.runtimes.policy.base import Decision, PolicyState, RankPolicy
from nsn_edge.runtimes.policy.costs import RungCost, RungCosts, load_costs, rung_costs
from nsn_edge.runtimes.policy.deadline import Deadline
from nsn_edge.runtimes.policy.energy import EnergyBudget
from nsn_edge.runtimes.policy.limits import BatteryStep, RungLimits, TemperatureStep, ThrottlingLimit
from nsn_edge.runtimes.policy.loading import build_policy, load_policy
from nsn_edge.runtimes.policy.pi import Pi
from nsn_edge.runtimes.policy.rung_limits import RungPolicy
from nsn_edge.runtimes.policy.step_wise import StepWise

__all__ = [
    "BatteryStep",
    "Deadline",
    "Decision",
    "EnergyBudget",
    "Pi",
    "PolicyState",
    "RankPolicy",
    "RungCost",
    "RungCosts",
    "RungLimits",
    "RungPolicy",
    "StepWise",
    "TemperatureStep",
    "ThrottlingLimit",
    "build_policy",
    "load_costs",
    "load_policy",
    "rung_costs",
]
