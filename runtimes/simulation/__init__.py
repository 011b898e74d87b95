"""A telemetry trace replayed through a policy, in the trace's own time: what would this device have done?

result = simulate(load_trace(csv), RungPolicy(limits, ladder), ladder)                      # the policy alone
result = simulate(..., queries=SessionQueries.for_bundle(session, texts))                   # and a real session
"""

from nsn_edge.runtimes.simulation.queries import Queries, SessionQueries
from nsn_edge.runtimes.simulation.result import Moment, RungSwitch, SimulationResult
from nsn_edge.runtimes.simulation.simulate import simulate

__all__ = ["Moment", "Queries", "RungSwitch", "SessionQueries", "SimulationResult", "simulate"]
