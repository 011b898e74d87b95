"""What a Jetson's power rails mean: which of them is the whole board, and which figures are none.

A board's power is known only where a rail measures its input. Where none does, adding the others up would say too
little, so the board's power stays unknown and the rails are given by their names:

    TX1, TX2, Xavier NX, Orin Nano, Orin NX    VDD_IN, the module's input
    Nano                                       POM_5V_IN, the same by its old name
    AGX Xavier                                 none: GPU CPU SOC CV VDDRQ SYS5V
    AGX Orin                                   none: VDD_GPU_SOC VDD_CPU_CV VIN_SYS_5V0 VDDQ_VDD2_1V8AO
    AGX Thor                                   none: VDD_GPU VDD_CPU_SOC_MSS VIN_SYS_5V0

SYS5V (AGX Xavier; VIN_SYS_5V0 is its later name) looks like an input and is none: it feeds everything but memory, CPU,
GPU and CV (https://forums.developer.nvidia.com/t/what-does-sys5v-power-mean-in-tegrastats/75574), and recorded lines
show it below the sum of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

BOARD_INPUTS = ("VDD_IN", "POM_5V_IN")
"""Rails that measure what the module draws. Never what its carrier board and what is plugged into that draw besides."""

NOT_CONNECTED = "NC"
"""The label of a channel to which nothing is wired."""

LARGEST_MW = 1e6
"""A kilowatt: no rail of a Jetson carries a tenth of it, so a figure beyond it is no measurement."""


def rail_power_mw(measured_mw: float | None) -> float | None:
    """A rail's power. A rail at rest reads a little below zero (`VDD_GPU -392mW`), which is no load: 0."""
    if measured_mw is None or not math.isfinite(measured_mw) or abs(measured_mw) > LARGEST_MW:
        return None
    return max(measured_mw, 0.0)


def board_power_mw(rails_mw: Mapping[str, float]) -> float | None:
    """What the rail at the board's input says; None where the board has none, or it does not answer."""
    return next((rails_mw[name] for name in BOARD_INPUTS if name in rails_mw), None)
