"""Which of onnxruntime's providers run a graph, and whether the one that was asked for really does.

A provider that cannot start is dropped with a console message, and a node that it has no kernel for goes to the
processor without one. Both are looked for, and are errors:

    asked cuda      get_providers() without it                    -> ProviderError, it did not start
    asked cuda      a matrix product assigned to the CPU          -> ProviderError, the work is done elsewhere

A few nodes on the CPU are right: onnxruntime keeps the arithmetic of shapes there on purpose. For that reason its own
`session.disable_cpu_ep_fallback`, which allows none, cannot be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nsn_edge.errors import ProviderError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""onnxruntime's names of the providers this engine can ask for."""

RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
"""The setting that makes a session say which provider got which node (onnxruntime 1.24 and newer; others ignore it)."""

_PRODUCTS = frozenset(
    {
        *("Attention", "GroupQueryAttention", "MultiHeadAttention", "Conv"),
        *("MatMul", "FusedMatMul", "Gemm", "MatMulNBits"),
        *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QLinearMatMul"),
    }
)


def wanted_provider(asked: str, available: Sequence[str]) -> str:
    """onnxruntime's name of what was asked; of CUDA, where it is built in, for `auto`.

    Raises:
        ProviderError: this build of onnxruntime has no such provider.
    """
    if asked == "auto":
        return PROVIDERS["cuda"] if PROVIDERS["cuda"] in available else PROVIDERS["cpu"]
    wanted = PROVIDERS[asked]
    if wanted not in available:
        known = [name for name, full_name in PROVIDERS.items() if full_name in available]
        raise ProviderError(
            f"this onnxruntime has no {asked} provider; it has {', '.join(known)}",
            "pip uninstall onnxruntime, then pip install 'nsn-edge[ort-gpu]' for NVIDIA GPUs",
        )
    return wanted


def provider_chain(wanted: str, options: Mapping[str, Any]) -> list[Any]:
    """What a session is given: the wanted provider with its options, and who takes what it leaves."""
    chain: list[Any] = [(wanted, dict(options))]
    if wanted == PROVIDERS["tensorrt"]:  # what TensorRT cannot take should stay on the GPU
        chain.append((PROVIDERS["cuda"], {"device_id": options["device_id"]} if "device_id" in options else {}))
    if wanted != PROVIDERS["cpu"]:
        chain.append(PROVIDERS["cpu"])
    return chain


def check_started(asked: str, session: Any) -> None:
    """Refuse a session from which the provider was dropped.

    Raises:
        ProviderError: it was.
    """
    if PROVIDERS[asked] not in session.get_providers():
        raise ProviderError(
            f"onnxruntime has the {asked} provider but could not start it, and would use "
            f"{', '.join(session.get_providers())}",
            START_HINTS[asked],
        )


START_HINTS = {
    "cpu": "install onnxruntime again",
    "cuda": "install the CUDA libraries it was built for (pip install 'onnxruntime-gpu[cuda,cudnn]'), "
    "or ask for --provider cpu",
    "tensorrt": "install the TensorRT that it was built for and put its folder into LD_LIBRARY_PATH, "
    "or ask for --provider cuda",
}
"""How to mend a provider that does not start."""


def blames_libraries(error: Exception) -> bool:
    """Whether a provider's own libraries or its GPU, rather than the graph, kept something from starting."""
    return any(
        word in str(error) for word in ("libraries", "CUDA failure", "CUDA error", ".so", "Provider not available")
    )


def placement(session: Any) -> dict[str, Counter[str]] | None:
    """How many nodes of each operator every provider got, as assigned before fusion; None where onnxruntime is too old
    to say. The session must have been made with `RECORD_PLACEMENT`."""
    report = getattr(session, "get_provider_graph_assignment_info", None)
    groups = report() if report is not None else ()
    counts: dict[str, Counter[str]] = {}
    for group in groups:
        counts.setdefault(group.ep_name, Counter()).update(node.op_type for node in group.get_nodes())
    return counts or None


def check_placement(asked: str, graph: str, counts: Mapping[str, Counter[str]] | None) -> None:
    """Refuse a session whose products the provider left to the CPU. What is not known is let pass.

    Raises:
        ProviderError: they are.
    """
    on_cpu = (counts or {}).get(PROVIDERS["cpu"], Counter[str]())
    if asked == "cpu" or not (strays := {op: n for op, n in on_cpu.items() if op in _PRODUCTS}):
        return
    raise ProviderError(
        f"the {asked} provider leaves {', '.join(f'{n} {op}' for op, n in sorted(strays.items()))} of {graph} "
        "to the CPU",
        "export another precision for this device, or take it as it is with --provider auto",
    )
