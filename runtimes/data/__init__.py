"""Files that ship with the runtime.

default_policy.toml   the policy that is used where none is named
field_shift.csv       a telemetry trace, scripted and not recorded: twenty minutes of a hand-held device at work
"""

from __future__ import annotations

from pathlib import Path

DEFAULT_POLICY = Path(__file__).with_name("default_policy.toml")
"""A policy file, see `nsn_edge.runtimes.policy.loading`."""

FIELD_SHIFT_TRACE = Path(__file__).with_name("field_shift.csv")
"""A trace, see `nsn_edge.runtimes.telemetry.replay`."""
