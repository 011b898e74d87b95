"""Running torch on the device that was asked for: what both torch sections share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpu_check.section import NotHereError, Section
from gpu_check.timing import Call, need

_CALL_MS = 2.0
"""What a timed call should take at least: so many inferences are queued before the GPU is waited for."""


class TorchDevice:
    """A device and a dtype, with what differs between a GPU and the processor."""

    def __init__(self, section: Section) -> None:
        """
        Raises:
            NotHereError: torch is not installed, or has no CUDA device.
        """
        need("torch", "install PyTorch for CUDA")
        import torch

        self.torch = torch
        self.kind = section.plan.device
        self.where = self.kind
        """Where tensors are made."""
        if self.kind == "cuda" and not torch.cuda.is_available():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
            raise NotHereError(f"torch {torch.__version__} ({built}) finds no GPU; --device cpu tries the code")
        if self.kind == "cpu":
            torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = False  # fp32 shall be fp32: parity is judged by it
        torch.manual_seed(0)
        section.results.facts["torch"] = torch.__version__
        section.results.facts["device"] = torch.cuda.get_device_name() if self.kind == "cuda" else "cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to wait for."""
        return self.kind == "cuda"

    def synchronise(self) -> None:
        """Wait until everything queued is done."""
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def free_bytes(self) -> int:
        """Of the device's memory, as the driver counts; a fixed figure for the processor, on which models are tiny."""
        return int(self.torch.cuda.mem_get_info()[0]) if self.on_gpu else 1 << 30

    def random(self, *shape: int, dtype: Any, scale: float) -> Any:
        """Normal values of a standard deviation."""
        return self.torch.randn(*shape, device=self.where, dtype=self.torch.float32).mul_(scale).to(dtype)

    def eager(self, run: Call, count: int) -> Call:
        """`count` inferences, then wait."""

        def call() -> None:
            for _ in range(count):
                run()
            self.synchronise()

        return call

    def recorded(self, runs: Mapping[int, Call]) -> Recorded:
        """A CUDA graph per rank.

        Raises:
            NotHereError: this is no GPU.
        """
        if not self.on_gpu:
            raise NotHereError("CUDA graphs need a GPU")
        return Recorded(self, runs)

    def count_for(self, run: Call, quick: bool) -> int:
        """How many inferences make a call of `_CALL_MS`."""
        if quick:
            return 1
        import time

        run()
        self.synchronise()
        began = time.perf_counter()
        run()
        self.synchronise()
        return max(1, min(200, round(_CALL_MS / max((time.perf_counter() - began) * 1e3, 1e-3))))


class Recorded:
    """CUDA graphs by rank that share one pool of scratch memory and one output: only one of them runs at a time."""

    def __init__(self, device: TorchDevice, runs: Mapping[int, Call]) -> None:
        torch = device.torch
        self.output: Any = None
        """What the graph that ran last wrote."""
        self.added_bytes: dict[int, int] = {}
        """What recording took of the device's memory, by rank, in the order given: the first also pays for the pool."""
        self._device = device
        self._graphs: dict[int, Any] = {}
        pool = torch.cuda.graph_pool_handle()
        for rank, run in runs.items():
            side = torch.cuda.Stream()  # recording needs libraries that were started, on a stream of their own
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            if self.output is None:
                self.output = run().clone()
            device.synchronise()
            torch.cuda.empty_cache()
            before = device.free_bytes()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self.output.copy_(run())  # an output of its own would stay in the pool for every rung
            device.synchronise()
            self._graphs[rank] = graph
            self.added_bytes[rank] = before - device.free_bytes()

    def calls(self, count: int) -> dict[int, Call]:
        """`count` replays, then wait; by rank."""

        def replay(graph: Any) -> Callable[[], None]:
            def call() -> None:
                for _ in range(count):
                    graph.replay()
                self._device.synchronise()

            return call

        return {rank: replay(graph) for rank, graph in self._graphs.items()}
