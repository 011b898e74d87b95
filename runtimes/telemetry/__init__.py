"""How the device is: battery, mains, heat, power, energy, clocks.

device_telemetry()     all sensors of this device, whatever it is
linux_telemetry()      batteries, mains and thermal zones alone
load_trace(csv)        a recorded or scripted trace; ReplaySource(trace) plays it on a clock
TraceWriter(csv)       records one
NvmlTelemetry()        an NVIDIA GPU; NvmlGpu is the GPU itself
NoTelemetry()          a device without sensors
Aged, Combined, Guarded    sources made of sources
Sampler(source)        reads it in the background, so that nobody waits for a sensor
FaultyTelemetry(source)    fails as real sensors do
"""

from nsn_edge.runtimes.telemetry.base import Answered, Clock, NoTelemetry, Reading, TelemetrySource, Work
from nsn_edge.runtimes.telemetry.battery import LinuxBattery
from nsn_edge.runtimes.telemetry.combine import Aged, Combined, Guarded
from nsn_edge.runtimes.telemetry.cpufreq import LinuxCpuClock
from nsn_edge.runtimes.telemetry.device import DeviceTelemetry, WallClock, device_telemetry
from nsn_edge.runtimes.telemetry.document import reading_to_json
from nsn_edge.runtimes.telemetry.faulty import Fault, FaultyTelemetry, chances
from nsn_edge.runtimes.telemetry.linux import linux_telemetry
from nsn_edge.runtimes.telemetry.nvml import NvmlGpu
from nsn_edge.runtimes.telemetry.nvml_telemetry import NvmlTelemetry
from nsn_edge.runtimes.telemetry.rapl import LinuxRapl
from nsn_edge.runtimes.telemetry.recording import TraceWriter
from nsn_edge.runtimes.telemetry.replay import ReplaySource, TelemetryTrace, load_trace
from nsn_edge.runtimes.telemetry.sampler import Sampler
from nsn_edge.runtimes.telemetry.thermal import LinuxThermal

__all__ = [
    "Aged",
    "Answered",
    "Clock",
    "Combined",
    "DeviceTelemetry",
    "Fault",
    "FaultyTelemetry",
    "Guarded",
    "LinuxBattery",
    "LinuxCpuClock",
    "LinuxRapl",
    "LinuxThermal",
    "NoTelemetry",
    "NvmlGpu",
    "NvmlTelemetry",
    "Reading",
    "ReplaySource",
    "Sampler",
    "TelemetrySource",
    "TelemetryTrace",
    "TraceWriter",
    "WallClock",
    "Work",
    "chances",
    "device_telemetry",
    "linux_telemetry",
    "load_trace",
    "reading_to_json",
]
