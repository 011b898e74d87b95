"""A deserialised engine as a loaded graph.

    run            arrays -> pinned buffers -> GPU -> engine -> pinned buffers -> arrays, the middle as one CUDA graph
    run_holding    the same, except that held tensors are used where they lie and held outputs get memory of their own

What an engine calls int32 may be int64 in the bundle (TensorRT 8 has no int64): values are converted where they are
copied anyway.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsn_edge.bundle import TensorSpec
from nsn_edge.bundle.engine_record import EngineRecord
from nsn_edge.bundle.manifest import RANK_INPUT
from nsn_edge.errors import EngineError
from nsn_edge.nvidia import reason
from nsn_edge.runtimes.engines.base import Array, check_inputs
from nsn_edge.runtimes.engines.holding import Held
from nsn_edge.runtimes.engines.tensorrt.lanes import Binding, Key, Lane, Lanes
from nsn_edge.runtimes.engines.tensorrt.memory import DeviceTensor, Slot
from nsn_edge.runtimes.engines.tensorrt.resources import Resources
from nsn_edge.runtimes.engines.tensorrt.workspace import Workspace

_log = logging.getLogger("nsn_edge.tensorrt")


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives."""

    inputs: tuple[TensorSpec, ...]
    """Of the bundle's graph, `rank` included where it takes one."""
    outputs: tuple[TensorSpec, ...]
    """Of the bundle's graph."""


class TensorRtGraph:
    """An engine in the GPU's memory. Any thread may run it; runs of all graphs of a workspace take turns."""

    def __init__(
        self,
        name: str,
        workspace: Workspace,
        engine: Any,
        record: EngineRecord,
        signature: Signature,
        *,
        cuda_graphs: bool = True,
    ) -> None:
        """
        Args:
            name: for messages.
            workspace: entered by the caller; `close` leaves it.
            engine: an `ICudaEngine`.
            record: what the engine was built as.
            signature: of the bundle's graph.
            cuda_graphs: record runs that come again, or let the library do so.

        Raises:
            EngineError: the engine does not fit its record, or there is no room for its contexts.
        """
        library = workspace.library
        self._name = name
        self._record = record
        self._signature = signature
        self._dtypes: dict[str, np.dtype[Any]] = {}
        on_host = set()
        # No comprehension: its scope would outlive a failure, and with it the engine.
        for number in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(number)
            self._dtypes[tensor] = np.dtype(library.dtype(engine, tensor))
            if library.is_on_host(engine, tensor):
                on_host.add(tensor)
        self._host_inputs = tuple(spec.name for spec in signature.inputs if spec.name in on_host)
        self._device_inputs = tuple(
            spec for spec in signature.inputs if spec.name in self._dtypes and spec.name not in on_host
        )
        self._device_names = {spec.name for spec in self._device_inputs}
        self._check_fits(engine, on_host)
        self._records_graphs = cuda_graphs and not library.captures_itself
        host_dtypes = {name: self._dtypes[name].name for name in self._host_inputs}
        self._resources = Resources(workspace, engine, host_dtypes, len(record.profiles), cuda_graphs)
        self._release = weakref.finalize(self, self._resources.release)  # a store may drop a graph without closing it

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        return self._signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        return self._signature.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name; the arrays belong to the caller.

        Raises:
            EngineError: the inputs do not fit the graph or any of its profiles, the graph was closed, or TensorRT or
                CUDA failed.
        """
        return self.run_holding(inputs, {}, ())[0]

    def run_holding(
        self, inputs: Mapping[str, Array], held: Mapping[str, Held], hold: Collection[str]
    ) -> tuple[dict[str, Array], dict[str, Held]]:
        """As the function `run_holding`. Held tensors stay on the GPU and outlive this graph.

        Raises:
            EngineError: as `run`.
        """
        resident = {name: tensor for name, tensor in held.items() if self._can_stay(name, tensor)}
        arrays = {**inputs, **{name: tensor.numpy() for name, tensor in held.items() if name not in resident}}
        given = tuple(spec for spec in self._signature.inputs if spec.name not in resident)
        check_inputs(self._name, given, arrays)
        resources = self._resources
        with resources.workspace.lock:
            if resources.lanes is None:
                raise EngineError(f"{self._name} was closed")
            resources.workspace.cuda.activate()
            return self._run(resources.lanes, self._key(arrays, resident), arrays, resident, hold)

    def close(self) -> None:
        """Free the engine's memory; what it shares with other graphs goes with the last of them."""
        self._release()

    def _check_fits(self, engine: Any, on_host: Collection[str]) -> None:
        """An engine of this bundle that is not what its record says was made by another version of us."""
        named = [spec.name for spec in (*self._signature.inputs, *self._signature.outputs)]
        strays = sorted(set(self._dtypes) - set(named))
        lacking = sorted({spec.name for spec in self._signature.outputs} - set(self._dtypes))
        if strays or lacking or engine.num_optimization_profiles != len(self._record.profiles):
            raise EngineError(
                f"{self._name} is not the engine that its record describes: it has {', '.join(sorted(self._dtypes))} "
                f"and {engine.num_optimization_profiles} profiles"
            )
        for name in sorted(on_host):
            if name not in self._host_inputs or name != RANK_INPUT:
                raise EngineError(f"{self._name} keeps {name!r} on the host, which this engine does not pass on")

    def _can_stay(self, name: str, tensor: Held) -> bool:
        """Whether a held tensor can be used where it lies. What cannot goes through numpy, and is checked there."""
        return (
            isinstance(tensor, DeviceTensor)
            and name in self._device_names
            and tensor.device_index == self._resources.workspace.cuda.index
            and tensor.dtype == self._dtypes.get(name)
        )

    def _key(self, arrays: Mapping[str, Array], resident: Mapping[str, Any]) -> Key:
        shapes: dict[str, tuple[int, ...]] = {}
        for spec in self._device_inputs:
            array = arrays.get(spec.name)
            shapes[spec.name] = array.shape if array is not None else tuple(resident[spec.name].shape())
        values = {name: int(arrays[name]) for name in self._host_inputs}
        rank = self._record.rank
        if rank is None:
            rank = int(arrays[RANK_INPUT])
        of_profiles = {name: shape for name, shape in shapes.items() if name != RANK_INPUT}
        return Key(self._record.profile_for(rank, of_profiles), tuple(shapes.items()), tuple(values.items()))

    def _run(
        self,
        lanes: Lanes,
        key: Key,
        arrays: Mapping[str, Array],
        resident: Mapping[str, Any],
        hold: Collection[str],
    ) -> tuple[dict[str, Array], dict[str, Held]]:
        workspace = self._resources.workspace
        workspace.scratch.make_room(workspace.cuda, lanes.scratch_bytes)
        lane, was_seen = lanes.take(key, fixed=not resident and not hold)
        try:
            lanes.make_ready(lane, key)
            into, out_of = self._slots(key, lane, resident, hold)
            kept: dict[str, Held] = {
                spec.name: DeviceTensor(
                    workspace.pool, workspace.cuda, self._dtypes[spec.name], lane.output_shapes[spec.name]
                )
                for spec in self._signature.outputs
                if spec.name in hold
            }
            addresses = {name: slot.device for name, slot in (*into.items(), *out_of.items())}
            addresses |= {name: tensor.address for name, tensor in (*resident.items(), *kept.items())}
            pinned = tuple(slot.host for slot in (*into.values(), *out_of.values()))
            binding = Binding(addresses, pinned, workspace.scratch.address)
            self._fill(into, arrays)
            steps = _Steps(self._resources.stream, self._copies(into, arrays), self._copies(out_of, lane.output_shapes))
            self._execute(lanes, lane, binding, steps)
            outputs = self._read(out_of, lane.output_shapes)
            if was_seen and self._records_graphs and lane.graph is None:
                self._record_graph(lanes, lane, binding, steps)
        except BaseException:
            lanes.forget(lane)
            raise
        return outputs, kept

    def _slots(
        self, key: Key, lane: Lane, resident: Mapping[str, Any], hold: Collection[str]
    ) -> tuple[dict[str, Slot], dict[str, Slot]]:
        """Buffers of what is copied to the GPU, and of what is copied from it."""
        shapes = {name: shape for name, shape in key.shapes if name not in resident}
        gives = {spec.name: lane.output_shapes[spec.name] for spec in self._signature.outputs if spec.name not in hold}
        slots = self._resources.workspace.slots(
            (name, self._size_bytes(name, shape)) for name, shape in (*shapes.items(), *gives.items())
        )
        return {name: slots[name] for name in shapes}, {name: slots[name] for name in gives}

    def _fill(self, slots: Mapping[str, Slot], arrays: Mapping[str, Array]) -> None:
        for name, slot in slots.items():
            array, dtype = arrays[name], self._dtypes[name]
            if array.dtype != dtype and dtype.kind in "iu" and array.size:
                limits = np.iinfo(dtype)
                if array.min() < limits.min or array.max() > limits.max:
                    raise EngineError(
                        f"input {name!r} of {self._name} holds values beyond {dtype}, as the engine has it"
                    )
            np.copyto(slot.array(dtype, array.shape), array, casting="unsafe")

    def _copies(self, slots: Mapping[str, Slot], shaped: Mapping[str, Any]) -> list[tuple[Slot, int]]:
        """Slots and how many bytes of each to copy; nothing for empty tensors."""
        sized = [(slot, self._size_bytes(name, _shape(shaped[name]))) for name, slot in slots.items()]
        return [(slot, size_bytes) for slot, size_bytes in sized if size_bytes]

    def _execute(self, lanes: Lanes, lane: Lane, binding: Binding, steps: _Steps) -> None:
        workspace = self._resources.workspace
        try:
            if lane.graph is not None and lane.recorded == binding:
                workspace.cuda.launch(lane.graph, steps.stream)
            else:
                lanes.drop_graph(lane)
                lanes.bind(lane, binding)
                self._queue(lane, steps)
        finally:
            workspace.cuda.synchronise(steps.stream)  # after a failure too: copies into the buffers may be under way

    def _queue(self, lane: Lane, steps: _Steps) -> None:
        workspace = self._resources.workspace
        for slot, size_bytes in steps.into:
            workspace.cuda.to_device(slot.device, slot.host, size_bytes, steps.stream)
        with workspace.library.messages.collected() as errors:
            if not lane.context.execute_async_v3(steps.stream):
                raise EngineError(f"{workspace.library.backend} failed while running {self._name}: {reason(errors)}")
        for slot, size_bytes in steps.out_of:
            workspace.cuda.to_host(slot.host, slot.device, size_bytes, steps.stream)

    def _record_graph(self, lanes: Lanes, lane: Lane, binding: Binding, steps: _Steps) -> None:
        """Record what was just done. The run before made the context settle on its shapes: not to be recorded."""
        workspace = self._resources.workspace
        try:
            workspace.cuda.begin_capture(steps.stream)
            try:
                self._queue(lane, steps)
            except BaseException:
                workspace.cuda.abandon_capture(steps.stream)
                raise
            lane.graph = workspace.cuda.end_capture(steps.stream)
            lane.recorded = binding
        except EngineError as error:  # the answer is there already; the next ones come without a graph
            self._records_graphs = False
            _log.warning("%s runs without CUDA graphs: %s", self._name, error.message)
            lanes.forget(lane)

    def _read(self, slots: Mapping[str, Slot], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        wanted = {spec.name: spec.dtype for spec in self._signature.outputs}
        return {name: slot.array(self._dtypes[name], shapes[name]).astype(wanted[name]) for name, slot in slots.items()}

    def _size_bytes(self, name: str, shape: Sequence[int]) -> int:
        return self._dtypes[name].itemsize * math.prod(shape)


@dataclass(frozen=True)
class _Steps:
    """What one run queues."""

    stream: int
    into: list[tuple[Slot, int]]
    """Copied to the GPU first: buffers and bytes."""
    out_of: list[tuple[Slot, int]]
    """Copied from the GPU last."""


def _shape(shaped: Any) -> Sequence[int]:
    """Of an array, or a shape itself."""
    return shaped.shape if isinstance(shaped, np.ndarray) else tuple(shaped)
