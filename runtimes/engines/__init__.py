"""What executes graphs. An engine loads a graph file; a loaded graph runs it.

`OnnxRuntimeEngine` runs the bundle's graphs, `TensorRtEngine` what `nsn-edge build` made of them on a device;
`FaultyEngine` wraps any other to rehearse slow and failing devices.
Outsiders plug in through the two protocols of `base`.
"""

from nsn_edge.runtimes.engines.base import Array, Engine, LoadedGraph, check_inputs
from nsn_edge.runtimes.engines.faulty import FaultyEngine
from nsn_edge.runtimes.engines.fixing import FixesInputs, WithFixedInputs, fix_inputs
from nsn_edge.runtimes.engines.holding import Held, HeldArray, HoldsTensors, run_holding
from nsn_edge.runtimes.engines.onnxruntime import OnnxRuntimeEngine
from nsn_edge.runtimes.engines.tensorrt import TensorRtEngine

__all__ = [
    "Array",
    "Engine",
    "FaultyEngine",
    "FixesInputs",
    "Held",
    "HeldArray",
    "HoldsTensors",
    "LoadedGraph",
    "OnnxRuntimeEngine",
    "TensorRtEngine",
    "WithFixedInputs",
    "check_inputs",
    "fix_inputs",
    "run_holding",
]
