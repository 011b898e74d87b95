"""Ask everything, and survive whatever the asking does: a probe that fails is a finding too."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nsn_edge.runtimes.doctor import engines, nvidia, sensors, surroundings
from nsn_edge.runtimes.doctor.device import Device, one_line
from nsn_edge.runtimes.doctor.findings import Diagnosis, Finding, Status
from nsn_edge.runtimes.profiling.host import Host, describe_host

_Probe = Callable[[Device], Iterable[Finding]]

_PROBES: tuple[tuple[str, str, _Probe], ...] = (
    ("engines", "onnxruntime", engines.onnxruntime),
    ("engines", "tokenizers", engines.tokenizers),
    ("engines", "tensorrt", nvidia.tensorrt),
    ("gpus", "NVIDIA GPU", engines.gpus),
    ("gpus", "CUDA libraries", nvidia.cuda_libraries),
    ("gpus", "NVML", nvidia.nvml),
    ("gpus", "Jetson", nvidia.jetson),
    ("sensors", "battery", sensors.battery),
    ("sensors", "temperature", sensors.thermal),
    ("sensors", "power rails", sensors.board),
    ("sensors", "processor energy", sensors.processor),
    ("sensors", "GPU", sensors.gpu),
    ("tools", "packages", surroundings.tools),
    ("machine", "machine", surroundings.machine),
)


def examine(device: Device | None = None) -> Diagnosis:
    """Look at everything. Never raises for what the device does.

    Args:
        device: what to ask; this one by default.
    """
    device = device or Device()
    findings = [finding for area, name, probe in _PROBES for finding in _guarded(area, name, probe, device)]
    cpu = next((finding for finding in findings if finding.name == engines.CPU_PROVIDER), None)
    return Diagnosis(
        findings=tuple(findings),
        can_run=cpu is not None and cpu.status is Status.PRESENT,
        host=_host(device).to_json(),
    )


def _guarded(area: str, name: str, probe: _Probe, device: Device) -> list[Finding]:
    findings: list[Finding] = []
    try:
        # One by one: what a probe found before it failed is kept.
        for finding in probe(device):
            findings.append(finding)
    except Exception as error:  # a broken driver or package may raise anything, and the others must still be asked
        findings.append(Finding(area, name, Status.FAULTY, one_line(error)))
    return findings


def _host(device: Device) -> Host:
    try:
        return describe_host(device.root, version_of=device.version_of)
    except Exception:  # as above
        return Host()
