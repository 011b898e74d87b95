"""What a loaded graph has to give back, apart from the graph, so that Python may do it when the graph is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines.tensorrt.lanes import Key, Lanes
from nsn_edge.runtimes.engines.tensorrt.workspace import Workspace


class Resources:
    """An engine's contexts, its stream, and its share of a workspace."""

    def __init__(
        self, workspace: Workspace, engine: Any, host_inputs: Mapping[str, str], profiles: int, cuda_graphs: bool
    ) -> None:
        """
        Args:
            workspace: entered by the caller, left by `release`.
            engine: an `ICudaEngine`.
            host_inputs: dtypes of the inputs on the host, by name.
            profiles: how many optimization profiles the engine has.
            cuda_graphs: let a library that makes CUDA graphs make them.

        Raises:
            EngineError: there is no room. The workspace is not left.
        """
        self.workspace = workspace
        """What all graphs share."""
        self.lanes: Lanes | None = None
        """The contexts; None once released."""
        self._engine = engine
        with workspace.lock:
            workspace.cuda.activate()
            self.stream = workspace.cuda.new_stream()
            """Where the graph's work is queued."""
            try:
                self.lanes = Lanes(workspace, engine, self.stream, host_inputs, cuda_graphs)
                for number in range(profiles):
                    self.lanes.prepare(Key(number, (), ()))
            except BaseException:
                self._give_back()
                raise

    def release(self) -> None:
        """Contexts, then the engine, then the stream, then what the workspace keeps for all."""
        with self.workspace.lock:
            if self.lanes is None:
                return
            with contextlib.suppress(EngineError):
                self.workspace.cuda.activate()
            self._give_back()
            with contextlib.suppress(EngineError):
                self.workspace.leave()

    def _give_back(self) -> None:
        lanes, self.lanes = self.lanes, None
        if lanes is not None:
            lanes.close()
        self._engine = None
        with contextlib.suppress(EngineError):
            self.workspace.cuda.free_stream(self.stream)
