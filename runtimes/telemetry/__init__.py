"""How the device is: battery, mains, heat.

linux_telemetry()      batteries, mains and thermal zones of a Linux device
load_trace(csv)        a recorded or scripted trace; ReplaySource(trace) plays it on a clock
NvmlTelemetry()        an NVIDIA GPU's heat; NvmlGpu besides its power and energy
NoTelemetry()          a device without sensors
Aged, Combined, Guarded    sources made of sources
Sampler(source)        reads it in the background, so that nobody waits for a sensor
FaultyTelemetry(source)    fails as real sensors do
"""

from nsn_edge.runtimes.telemetry.base import Answered, Clock, NoTelemetry, Reading, TelemetrySource, Work
from nsn_edge.runtimes.telemetry.battery import LinuxBattery
from nsn_edge.runtimes.telemetry.combine import Aged, Combined, Guarded
from nsn_edge.runtimes.telemetry.faulty import Fault, FaultyTelemetry, chances
from nsn_edge.runtimes.telemetry.linux import linux_telemetry
from nsn_edge.runtimes.telemetry.nvml import NvmlGpu, NvmlTelemetry
from nsn_edge.runtimes.telemetry.replay import ReplaySource, TelemetryTrace, load_trace
from nsn_edge.runtimes.telemetry.sampler import Sampler
from nsn_edge.runtimes.telemetry.thermal import LinuxThermal

__all__ = [
    "Aged",
    "Answered",
    "Clock",
    "Combined",
    "Fault",
    "FaultyTelemetry",
    "Guarded",
    "LinuxBattery",
    "LinuxThermal",
    "NoTelemetry",
    "NvmlGpu",
    "NvmlTelemetry",
    "Reading",
    "ReplaySource",
    "Sampler",
    "TelemetrySource",
    "TelemetryTrace",
    "Work",
    "chances",
    "linux_telemetry",
    "load_trace",
]
