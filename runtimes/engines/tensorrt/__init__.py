"""Engines built by TensorRT or TensorRT-RTX.

engine      finds an engine by its record, refuses what is not for this device, bundle or version
graph       runs one
lanes       its execution contexts and CUDA graphs
workspace   what all loaded graphs share: GPU, scratch memory, buffers (memory), the right to run
library     the two libraries and their ages          messages   their reasons, as one line
cuda        the CUDA runtime
"""

from nsn_edge.runtimes.engines.tensorrt.engine import TensorRtEngine
from nsn_edge.runtimes.engines.tensorrt.graph import TensorRtGraph
from nsn_edge.runtimes.engines.tensorrt.memory import DeviceTensor

__all__ = ["DeviceTensor", "TensorRtEngine", "TensorRtGraph"]
