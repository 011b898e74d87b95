"""A telemetry trace replayed through a policy, in the trace's own time: what would this device have done?

result = simulate(load_trace(csv), RungPolicy(limits, ladder), ladder)                      # the policy alone
result = simulate(..., queries=SessionQueries.for_bundle(session, texts))                   # and a real session
report = compare(lay_out(load_trace(csv), load_scenario(toml), costs), policy)              # and a simulated device
"""

from nsn_edge.runtimes.simulation.closed_loop import run_closed_loop
from nsn_edge.runtimes.simulation.compare import Report, Yardsticks, compare, yardsticks
from nsn_edge.runtimes.simulation.fixed import FixedRung
from nsn_edge.runtimes.simulation.oracle import Bound, oracle_bound
from nsn_edge.runtimes.simulation.outcome import DeviceMoment, Outcome
from nsn_edge.runtimes.simulation.queries import Queries, SessionQueries
from nsn_edge.runtimes.simulation.result import Moment, RungSwitch, SimulationResult
from nsn_edge.runtimes.simulation.scenario import Battery, Heat, Load, Scenario, Unplugged
from nsn_edge.runtimes.simulation.scenario_file import load_scenario
from nsn_edge.runtimes.simulation.server import Answers, Fate
from nsn_edge.runtimes.simulation.simulate import simulate
from nsn_edge.runtimes.simulation.thermal import ThermalFit, ThermalModel, calibrate_thermal
from nsn_edge.runtimes.simulation.world import World, lay_out

__all__ = [
    "Answers",
    "Battery",
    "Bound",
    "DeviceMoment",
    "Fate",
    "FixedRung",
    "Heat",
    "Load",
    "Moment",
    "Outcome",
    "Queries",
    "Report",
    "RungSwitch",
    "Scenario",
    "SessionQueries",
    "SimulationResult",
    "ThermalFit",
    "ThermalModel",
    "Unplugged",
    "World",
    "Yardsticks",
    "calibrate_thermal",
    "compare",
    "lay_out",
    "load_scenario",
    "oracle_bound",
    "run_closed_loop",
    "simulate",
    "yardsticks",
]
