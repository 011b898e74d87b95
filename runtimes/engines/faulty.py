"""Rehearse a slow or failing device with real graphs: any engine, with hooks before its loads and runs.

    engine = FaultyEngine(OnnxRuntimeEngine(), before_load=lambda path: time.sleep(2))     # an SD card
    engine = FaultyEngine(OnnxRuntimeEngine(), before_load=fail_on("rank-096.onnx"))       # a cut file

A hook that raises makes the call fail with that exception; one that waits makes it slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsn_edge.bundle import TensorSpec
from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines.base import Array, Engine, LoadedGraph

Hook = Callable[[Path], None]
"""Called with the path of the graph."""


def _nothing(graph_path: Path) -> None:
    """The default hook."""


def fail_on(*file_names: str) -> Hook:
    """A hook that fails for graphs of these names and lets the others pass."""

    def hook(graph_path: Path) -> None:
        if graph_path.name in file_names:
            raise EngineError(f"{graph_path.name} fails on purpose")

    return hook


@dataclass(frozen=True)
class FaultyEngine:
    """An engine that does what another does, after a hook."""

    engine: Engine
    """Does the work."""
    before_load: Hook = _nothing
    """Runs in the loading thread before each load."""
    before_run: Hook = _nothing
    """Runs in the calling thread before each inference."""

    @property
    def name(self) -> str:
        """The inner engine's name, marked."""
        return f"faulty-{self.engine.name}"

    @property
    def owns_threads(self) -> bool:
        """As the inner engine."""
        return self.engine.owns_threads

    def load(self, graph_path: Path) -> LoadedGraph:
        """Run the hook, then load."""
        self.before_load(graph_path)
        return _FaultyGraph(self.engine.load(graph_path), graph_path, self.before_run)

    def describe(self) -> dict[str, Any]:
        """The inner engine's description, marked."""
        return {**self.engine.describe(), "engine": self.name}


@dataclass(frozen=True)
class _FaultyGraph:
    graph: LoadedGraph
    path: Path
    before_run: Hook

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.graph.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.before_run(self.path)
        return self.graph.run(inputs)

    def close(self) -> None:
        self.graph.close()
