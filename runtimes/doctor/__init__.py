"""What this device has for running, exporting and watching bundles, and what to install for what it lacks.

diagnosis = examine()          reads files and package metadata; imports onnxruntime, and NVML's bindings for a GPU
diagnosis.can_run              whether any engine here can run a bundle

device    what is asked, replaceable       engines        onnxruntime, GPUs
findings  what is answered                 nvidia         JetPack, CUDA, TensorRT, NVML
                                           sensors        what each sensor answers, or why not
                                           surroundings   tools, the machine
"""

from nsn_edge.runtimes.doctor.device import Device
from nsn_edge.runtimes.doctor.examine import examine
from nsn_edge.runtimes.doctor.findings import Diagnosis, Finding, Status

__all__ = ["Device", "Diagnosis", "Finding", "Status", "examine"]
