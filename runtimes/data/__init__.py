"""Files that ship with the runtime.

default_policy.toml   the policy that is used where none is named
field_policy.toml     a policy that keeps heat, battery and deadline at once; needs a profile
field_scenario.toml   a scenario to lay on a recorded trace: heat, an unplugged battery, a load step
field_shift.csv       a telemetry trace, scripted and not recorded: twenty minutes of a hand-held device at work
"""

from __future__ import annotations

from pathlib import Path

DEFAULT_POLICY = Path(__file__).with_name("default_policy.toml")
"""A policy file, see `nsn_edge.runtimes.policy.loading`."""

FIELD_SHIFT_TRACE = Path(__file__).with_name("field_shift.csv")
"""A trace, see `nsn_edge.runtimes.telemetry.replay`."""

FIELD_POLICY = Path(__file__).with_name("field_policy.toml")
"""A policy file whose limiters need the costs of rungs."""

FIELD_SCENARIO = Path(__file__).with_name("field_scenario.toml")
"""A scenario, see `nsn_edge.runtimes.simulation.scenario_file`."""
