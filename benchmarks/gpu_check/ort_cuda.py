"""onnxruntime's CUDA graphs, which the engine does not offer: inputs and outputs may not move between two runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpu_check.timing import Call
from gpu_check.workloads import Workload, inputs_of
from nsn_edge.bundle import Bundle


@contextmanager
def cuda_graph_calls(bundle: Bundle, work: Workload) -> Iterator[dict[int, Call]]:
    """An inference per rung, each a CUDA graph that onnxruntime recorded; inputs and outputs stay where they are.

    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview
    """
    import onnxruntime as ort

    calls: dict[int, Call] = {}
    keep: list[Any] = []
    for rank in bundle.manifest.ladder.ranks:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        providers = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"}), "CPUExecutionProvider"]
        path = str(bundle.file(bundle.graph(rank)))
        session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
        x = inputs_of(bundle, work)["x"]
        given, taken = (ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0) for _ in "xy")
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", given)
        binding.bind_ortvalue_output(session.get_outputs()[0].name, taken)
        keep.append((session, given, taken, binding))
        calls[rank] = _replay(session, binding)
        for _ in range(3):  # the first runs record
            calls[rank]()
    yield calls
    keep.clear()


def _replay(session: Any, binding: Any) -> Call:
    return lambda: session.run_with_iobinding(binding)
