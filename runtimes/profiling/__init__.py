"""What each rung costs on this machine: `profile_device` -> `DeviceProfile`, a grid; `profile_bundle` -> `Profile`, one
configuration of it.

stats      a summary of latencies          host        what it was measured on
measure    interleaved timing              device      its key, and what differs from another
inputs     made-up inputs                  conditions  warm, throttled, steady
memory     what the process took           energy      what a call draws beyond idling
result     a configuration and its JSON    document    all of them, in one file
profiler   measures a configuration        device_profiler   all of them, from where it was interrupted (keeping)
compare    two profiles, with noise        trtexec     times that trtexec took
"""

from nsn_edge.runtimes.profiling.compare import Comparison, compare
from nsn_edge.runtimes.profiling.conditions import Conditions
from nsn_edge.runtimes.profiling.device import (
    PROFILES_FOLDER,
    default_profile_path,
    device_key,
    same_device,
    same_engine,
)
from nsn_edge.runtimes.profiling.device_profiler import grid, profile_device
from nsn_edge.runtimes.profiling.document import DeviceProfile
from nsn_edge.runtimes.profiling.energy import EnergyMethod, EnergySettings
from nsn_edge.runtimes.profiling.host import Host, describe_host
from nsn_edge.runtimes.profiling.inputs import synthesise_inputs
from nsn_edge.runtimes.profiling.keeping import Keeper, stored_profile
from nsn_edge.runtimes.profiling.measure import MeasureSettings, measure
from nsn_edge.runtimes.profiling.memory import MemoryUse, peak_memory_mb
from nsn_edge.runtimes.profiling.profiler import ProfileSettings, profile_bundle
from nsn_edge.runtimes.profiling.result import Profile, RungProfile, host_summary
from nsn_edge.runtimes.profiling.stats import LatencyStats
from nsn_edge.runtimes.profiling.trtexec import profile_from_times, read_times

__all__ = [
    "PROFILES_FOLDER",
    "Comparison",
    "Conditions",
    "DeviceProfile",
    "EnergyMethod",
    "EnergySettings",
    "Host",
    "Keeper",
    "LatencyStats",
    "MeasureSettings",
    "MemoryUse",
    "Profile",
    "ProfileSettings",
    "RungProfile",
    "compare",
    "default_profile_path",
    "describe_host",
    "device_key",
    "grid",
    "host_summary",
    "measure",
    "peak_memory_mb",
    "profile_bundle",
    "profile_device",
    "profile_from_times",
    "read_times",
    "same_device",
    "same_engine",
    "stored_profile",
    "synthesise_inputs",
]
