"""A graph in an onnxruntime session: numpy in and out, or tensors that stay on the device between calls."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from nsn_edge.bundle import TensorSpec
from nsn_edge.errors import EngineError
from nsn_edge.runtimes.engines.base import Array, LoadedGraph, check_inputs
from nsn_edge.runtimes.engines.fixing import WithFixedInputs
from nsn_edge.runtimes.engines.holding import Held, HeldArray
from nsn_edge.runtimes.engines.onnxruntime_prefix import first_rows

_CHECK_VALUES = "are the ids within the vocabulary, and is the input as long as the model takes?"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
_SOURCE_LINE = re.compile(r"^/\S*onnxruntime\S*:\d+ .*?\) (?=[A-Z\[])")
"""Where in its own sources onnxruntime raised, which begins some of its messages."""


class OnnxRuntimeGraph:
    """A graph held by an onnxruntime session."""

    def __init__(
        self, name: str, session: Any, device: tuple[str, int] = ("cpu", 0), weights: Collection[Any] = ()
    ) -> None:
        """
        Args:
            name: for messages.
            session: an `onnxruntime.InferenceSession`.
            device: kind and number of the device where held tensors stay.
            weights: tensors that the session uses and does not own.
        """
        self._name = name
        self._session = session
        self._device = device
        self._weights = weights
        self._places = device[0] != "cpu"
        self._placed: dict[Any, tuple[Array, Any]] = {}
        self._placing = threading.Lock()
        self._inputs = tuple(_spec(name, node) for node in session.get_inputs())
        self._outputs = tuple(_spec(name, node) for node in session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]

    @property
    def name(self) -> str:
        """For messages."""
        return self._name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        return self._outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name; the arrays belong to the caller.

        Raises:
            EngineError: the inputs do not fit, the graph was closed, or onnxruntime failed.
        """
        check_inputs(self._name, self._inputs, inputs)
        if self._session is None:
            raise EngineError(f"{self._name} was closed")
        try:
            outputs = self._session.run(self._output_names, inputs)
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            raise EngineError(
                f"onnxruntime failed while running {self._name}: {first_line(error)}", _CHECK_VALUES
            ) from error
        return dict(zip(self._output_names, outputs, strict=True))

    def run_holding(
        self, inputs: Mapping[str, Array], held: Mapping[str, Held], hold: Collection[str]
    ) -> tuple[dict[str, Array], dict[str, Held]]:
        """As the function `run_holding`, by I/O binding. Held tensors are `OrtValue`s: they outlive this graph, and
        on a GPU they never leave it.

        Raises:
            EngineError: the inputs do not fit, the graph was closed, or onnxruntime failed.
        """
        arrays = {**inputs, **{name: tensor.array for name, tensor in held.items() if isinstance(tensor, HeldArray)}}
        bound = {name: tensor for name, tensor in held.items() if name not in arrays}
        check_inputs(self._name, tuple(spec for spec in self._inputs if spec.name not in bound), arrays)
        session = self._session
        if session is None:
            raise EngineError(f"{self._name} was closed")
        binding = session.io_binding()
        try:
            for name, array in arrays.items():
                arrays[name] = np.asarray(array, order="C")  # kept in `arrays`: the binding does not own it
                binding.bind_cpu_input(name, arrays[name])
            for name, tensor in bound.items():
                binding.bind_ortvalue_input(name, tensor)
            for name in self._output_names:
                binding.bind_output(name, *(self._device if name in hold else ("cpu", 0)))
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            raise EngineError(
                f"onnxruntime failed while running {self._name}: {first_line(error)}", _CHECK_VALUES
            ) from error
        outputs = dict(zip(self._output_names, binding.get_outputs(), strict=True))
        returned = {name: value.numpy() for name, value in outputs.items() if name not in hold}
        return returned, {name: value for name, value in outputs.items() if name in hold}

    def fix_inputs(self, fixed: Mapping[str, Array]) -> LoadedGraph:
        """As the function `fix_inputs`. On the CPU they are bound once, which for the 70 factors of a small encoder
        takes a tenth of its inference. On a GPU they are put there once: factors of other ranks, which begin at the
        same address, are other numbers of rows of the same tensors, if the largest rank came first.

        Raises:
            EngineError: one of them does not fit, the graph was closed, or the device has no memory left.
        """
        check_inputs(self._name, tuple(spec for spec in self._inputs if spec.name in fixed), fixed)
        if self._session is None:
            raise EngineError(f"{self._name} was closed")
        if not self._places:
            return _BoundInputs(self, {name: np.asarray(array, order="C") for name, array in fixed.items()})
        # What has no rows, the rank, is wanted on the processor.
        return _PlacedInputs(self, fixed, {name: self._place(array) for name, array in fixed.items() if array.ndim})

    def _place(self, array: Array) -> Any:
        import onnxruntime as ort

        key = (array.ctypes.data, array.dtype.str, array.shape[1:])
        with self._placing:
            # The array is kept besides: its address cannot become another's.
            _, whole = self._placed.get(key, (None, None))
            if whole is None or whole.shape()[0] < array.shape[0]:
                try:
                    whole = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *self._device)
                except Exception as error:  # onnxruntime's exceptions share no narrower base
                    raise EngineError(
                        f"{array.nbytes / 1e6:.0f} MB of {self._name} do not go onto {self._device[0]}: "
                        f"{first_line(error)}",
                        "is there memory left on the device?",
                    ) from error
                self._placed[key] = (array, whole)
            return first_rows(ort, whole, array.shape[0])

    def run_bound(self, binding: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run with a binding that holds the other inputs.

        Raises:
            EngineError: the graph was closed, or onnxruntime failed.
        """
        session = self._session
        if session is None:
            raise EngineError(f"{self._name} was closed")
        arrays = {name: np.asarray(array, order="C") for name, array in inputs.items()}  # the binding owns none
        try:
            for name, array in arrays.items():
                binding.bind_cpu_input(name, array)
            for name in self._output_names:
                binding.bind_output(name)
            session.run_with_iobinding(binding)
            outputs = dict(zip(self._output_names, (value.numpy() for value in binding.get_outputs()), strict=True))
            binding.clear_binding_outputs()
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            raise EngineError(
                f"onnxruntime failed while running {self._name}: {first_line(error)}", _CHECK_VALUES
            ) from error
        return outputs

    def binding(self, fixed: Mapping[str, Array]) -> Any:
        """A binding that holds these inputs.

        Raises:
            EngineError: the graph was closed.
        """
        session = self._session
        if session is None:
            raise EngineError(f"{self._name} was closed")
        binding = session.io_binding()
        for name, array in fixed.items():
            binding.bind_cpu_input(name, array)
        return binding

    def close(self) -> None:
        """Free the session's memory."""
        self._session = None
        self._weights = ()  # after the session, which reads them
        self._placed.clear()


class _PlacedInputs(WithFixedInputs):
    """Inputs that lie on the device, and others that are passed along."""

    graph: OnnxRuntimeGraph

    def __init__(self, graph: OnnxRuntimeGraph, fixed: Mapping[str, Array], placed: Mapping[str, Held]) -> None:
        super().__init__(graph, fixed)
        self._placed = placed
        self._rest = {name: array for name, array in fixed.items() if name not in placed}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.run_holding(inputs, {}, ())[0]

    def run_holding(
        self, inputs: Mapping[str, Array], held: Mapping[str, Held], hold: Collection[str]
    ) -> tuple[dict[str, Array], dict[str, Held]]:
        return self.graph.run_holding({**inputs, **self._rest}, {**held, **self._placed}, hold)


class _BoundInputs(WithFixedInputs):
    """Bindings that hold the fixed inputs, one for each call under way at a time, used again and again."""

    graph: OnnxRuntimeGraph

    def __init__(self, graph: OnnxRuntimeGraph, fixed: Mapping[str, Array]) -> None:
        super().__init__(graph, fixed)
        self._idle: list[Any] = []  # `pop` and `append` are atomic

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.graph.name, self._inputs, inputs)
        try:
            binding = self._idle.pop()
        except IndexError:
            binding = self.graph.binding(self.fixed)
        outputs = self.graph.run_bound(binding, inputs)  # after a failure the binding is left to be freed
        self._idle.append(binding)
        return outputs


def _spec(graph: str, node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise EngineError(
            f"{graph} has the tensor {node.name!r} of type {node.type}, which this engine does not pass on"
        )
    shape = tuple(size if isinstance(size, int) else str(size) for size in node.shape)
    return TensorSpec(node.name, _DTYPES[node.type], shape)


def first_line(error: Exception) -> str:
    """onnxruntime's messages run over many lines and repeat the path of its own sources."""
    text = _SOURCE_LINE.sub("", str(error).strip())
    return text.splitlines()[0][:300] if text else type(error).__name__
