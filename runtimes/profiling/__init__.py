"""What each rung costs on this machine: `profile_bundle` -> `Profile`.

stats      a summary of latencies          host      what it was measured on
measure    interleaved timing              memory    what the process took
inputs     made-up inputs                  result    the profile and its JSON
profiler   all of them together
"""

from nsn_edge.runtimes.profiling.host import Host, describe_host
from nsn_edge.runtimes.profiling.inputs import synthesise_inputs
from nsn_edge.runtimes.profiling.measure import MeasureSettings, measure
from nsn_edge.runtimes.profiling.memory import peak_memory_mb
from nsn_edge.runtimes.profiling.profiler import ProfileSettings, profile_bundle
from nsn_edge.runtimes.profiling.result import Profile, RungProfile, host_summary
from nsn_edge.runtimes.profiling.stats import LatencyStats

__all__ = [
    "Host",
    "LatencyStats",
    "MeasureSettings",
    "Profile",
    "ProfileSettings",
    "RungProfile",
    "describe_host",
    "host_summary",
    "measure",
    "peak_memory_mb",
    "profile_bundle",
    "synthesise_inputs",
]
