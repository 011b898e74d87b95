"""The bundle: what is shipped to a device.

bundle/
  manifest.json       this package reads and writes it
  weights.bin         every weight once, factors rank-major
  rank-096.onnx ...   one small graph per rung (external data -> weights.bin)
  sliced.onnx ...     the graphs with `rank` as an input
  tokenizer.json ...  so that no hub is needed on the device
"""

from nsn_edge.bundle.manifest import SCHEMA_VERSION, Artifact, BoundTensor, Manifest, TaskSpec, TensorSpec
from nsn_edge.bundle.mapped import MappedFactors
from nsn_edge.bundle.store import MANIFEST_NAME, Bundle, is_bundle_folder

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Artifact",
    "BoundTensor",
    "Bundle",
    "Manifest",
    "MappedFactors",
    "TaskSpec",
    "TensorSpec",
    "is_bundle_folder",
]
