"""Execution contexts of one engine, each ready for inputs of one shape: lanes.

    key (profile, shapes, rank) --take--> lane: context, output shapes, and with luck a CUDA graph

A CUDA graph repeats the work of one context as it was when recorded: at these shapes, this rank, these addresses.
TensorRT forbids to touch the context afterwards, so a lane that has a graph is kept for its key, and another key gets
another lane, up to a few; then the one longest unused is turned over. Lanes cost no scratch memory, as all share it.

Texts have all sorts of lengths, and recording a graph that is never used is a loss: a key is worth one when it comes
the second time.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nsn_edge.errors import EngineError
from nsn_edge.nvidia import reason
from nsn_edge.runtimes.engines.base import Array
from nsn_edge.runtimes.engines.tensorrt.workspace import Workspace

_MOST_LANES = 4
"""Of one profile. A graph of a lane is some kilobytes per kernel."""
_REMEMBERED_KEYS = 64


@dataclass(frozen=True)
class Key:
    """What a lane is made ready for."""

    profile: int
    """Number of the optimization profile."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Of the inputs on the GPU, by name."""
    values: tuple[tuple[str, int], ...]
    """Of the inputs on the host, whose values are shapes: the rank."""


@dataclass(frozen=True)
class Binding:
    """Where the tensors of one run lie."""

    addresses: Mapping[str, int]
    """On the GPU, by name."""
    pinned: tuple[int, ...]
    """Of the buffers that are copied from and to."""
    scratch: int
    """On the GPU."""


@dataclass(eq=False)
class Lane:
    """A context, and what it is ready for."""

    context: Any
    """An `IExecutionContext`."""
    hosts: dict[str, Array]
    """Inputs on the host; their addresses never change, as a context keeps them."""
    key: Key | None = None
    """None before the first run, and after a failed one."""
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """At the key."""
    bound: dict[str, int] = field(default_factory=dict)
    """Addresses that the context was told."""
    scratch: int = 0
    """Address of the scratch memory that it was told."""
    graph: Any = None
    """An executable CUDA graph of the copies in, the run, and the copies out."""
    recorded: Binding | None = None
    """Where the tensors were when it was recorded."""


class Lanes:
    """The lanes of one engine. Every method is called under the workspace's lock."""

    def __init__(
        self, workspace: Workspace, engine: Any, stream: int, host_inputs: Mapping[str, str], cuda_graphs: bool
    ) -> None:
        """
        Args:
            workspace: whose library makes contexts.
            engine: an `ICudaEngine`.
            stream: of the engine's runs.
            host_inputs: dtypes of the inputs on the host, scalars, by name.
            cuda_graphs: let a library that makes CUDA graphs make them.
        """
        self._workspace = workspace
        self._engine = engine
        self._stream = stream
        self._host_inputs = host_inputs
        self._cuda_graphs = cuda_graphs
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self._outputs = [name for name in names if not workspace.library.is_input(engine, name)]
        self._scratch_bytes = workspace.library.scratch_bytes(engine)
        self._lanes: dict[tuple[int, bool], list[Lane]] = {}
        self._seen: OrderedDict[Key, None] = OrderedDict()
        workspace.scratch.make_room(workspace.cuda, self._scratch_bytes)

    def take(self, key: Key, fixed: bool) -> tuple[Lane, bool]:
        """The lane for a key, and whether the key was seen before.

        Args:
            key: what the run is for. The lane may be ready for another one.
            fixed: whether its tensors lie where they lay in the last run, so that a graph can be of use.
        """
        lanes = self._lanes_for(key.profile, fixed)
        lane = next((lane for lane in lanes if lane.key == key), None)
        if lane is None:
            lane = next((lane for lane in lanes if lane.graph is None), None)
        if lane is None and len(lanes) < self._most:
            lane = self._new(key.profile, fixed)
        elif lane is None:
            lane = lanes[0]
            self.drop_graph(lane)
        with contextlib.suppress(ValueError):
            lanes.remove(lane)
        lanes.append(lane)  # the last is the latest used
        return lane, fixed and self._was_seen(key)

    def prepare(self, key: Key) -> None:
        """Make the first lane of a profile now rather than in the first run."""
        lanes = self._lanes_for(key.profile, True)
        if not lanes:
            lanes.append(self._new(key.profile, True))

    def make_ready(self, lane: Lane, key: Key) -> None:
        """Tell a lane's context the shapes of a key, and learn those of the outputs.

        Raises:
            EngineError: TensorRT refuses a shape, or cannot tell the outputs' before it runs.
        """
        if lane.key == key:
            return
        assert lane.graph is None, "a context that a graph was recorded from is not to be touched"
        lane.key = None
        context, library = lane.context, self._workspace.library
        with library.messages.collected() as errors:
            for name, value in key.values:
                lane.hosts[name][...] = value
            self._tell_hosts(lane)  # again: nothing says that a value is looked at later than when its address is told
            for name, shape in key.shapes:
                if not context.set_input_shape(name, shape):
                    raise EngineError(_refused(library.backend, f"{name} of {list(shape)}", errors))
            try:
                lacking = context.infer_shapes()
            except RuntimeError as error:
                raise EngineError(_refused(library.backend, "these shapes", errors or [str(error)])) from error
        if lacking:
            raise EngineError(f"{library.backend} wants more than it was given: {', '.join(lacking)}")
        lane.output_shapes = {}
        for name in self._outputs:
            shape = tuple(int(size) for size in context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise EngineError(f"the size of the output {name!r} depends on values, which is not supported")
            lane.output_shapes[name] = shape
        lane.key = key

    def bind(self, lane: Lane, binding: Binding) -> None:
        """Tell a lane's context where the tensors are.

        Raises:
            EngineError: TensorRT refuses an address.
        """
        if lane.scratch != binding.scratch:
            self._workspace.library.give_scratch(lane.context, binding.scratch, self._workspace.scratch.size_bytes)
            lane.scratch = binding.scratch
        with self._workspace.library.messages.collected() as errors:
            for name, address in binding.addresses.items():
                if lane.bound.get(name) != address:
                    self._tell_address(lane, name, address, errors)
                    lane.bound[name] = address

    def drop_graph(self, lane: Lane) -> None:
        """Free a lane's graph, if it has one."""
        graph, lane.graph, lane.recorded = lane.graph, None, None
        if graph is not None:
            self._workspace.cuda.free_graph(graph)

    def forget(self, lane: Lane) -> None:
        """After a failure: nobody knows what the context was told and what not."""
        self.drop_graph(lane)
        lane.key = None
        lane.bound.clear()
        lane.scratch = 0
        self._tell_hosts(lane)

    def close(self) -> None:
        """Graphs first, then the contexts that they were recorded from."""
        for lanes in self._lanes.values():
            for lane in lanes:
                with contextlib.suppress(EngineError):
                    self.drop_graph(lane)
                lane.context = None
        self._lanes.clear()
        self._engine = None

    @property
    def scratch_bytes(self) -> int:
        """That a run of this engine needs."""
        return self._scratch_bytes

    @property
    def _most(self) -> int:
        library = self._workspace.library
        return _MOST_LANES if library.shares_profiles and not library.captures_itself else 1

    def _lanes_for(self, profile: int, fixed: bool) -> list[Lane]:
        # A library that captures by itself must not do so where addresses change with every run, hence lanes of both
        # kinds. Where we capture, any lane without a graph will do.
        return self._lanes.setdefault((profile, fixed or not self._workspace.library.captures_itself), [])

    def _new(self, profile: int, fixed: bool) -> Lane:
        workspace = self._workspace
        capture = fixed and self._cuda_graphs
        context = workspace.library.context(self._engine, profile, self._stream, capture, workspace.kernels)
        lane = Lane(context, {name: np.zeros((), dtype) for name, dtype in self._host_inputs.items()})
        self._tell_hosts(lane)
        return lane

    def _tell_hosts(self, lane: Lane) -> None:
        with self._workspace.library.messages.collected() as errors:
            for name, array in lane.hosts.items():
                self._tell_address(lane, name, array.ctypes.data, errors)

    def _tell_address(self, lane: Lane, name: str, address: int, errors: list[str]) -> None:
        if not lane.context.set_tensor_address(name, address):
            raise EngineError(_refused(self._workspace.library.backend, f"the address of {name}", errors))

    def _was_seen(self, key: Key) -> bool:
        seen = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED_KEYS:
            self._seen.popitem(last=False)
        return seen


def _refused(backend: str, what: str, errors: list[str]) -> str:
    return f"{backend} refuses {what}: {reason(errors)}"
