"""The manifest: a bundle's table of contents, as dataclasses that know how to become JSON and back.

Everything read is checked for presence, type and sense; whoever holds a `Manifest` holds a valid one. Unknown keys are
kept out silently (a newer minor writer may add some); an unknown `schema_version` is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np

from nsn_edge.bundle.quantisation import Quantisation
from nsn_edge.errors import BundleError, NsnEdgeError
from nsn_edge.ladder import RankLadder

SCHEMA_VERSION = 1

GRAPH_FORMS = ("static", "gated", "bound", "sliced", "masked")
"""`static`: one graph per rung. `gated`, `sliced`, `masked`: one graph with an int64 scalar input `rank`. `bound`: one
graph whose factors are inputs, and for a dense top rung another whose inputs are the original weights, see
`BoundTensor`."""

FORMS_OF_RUNGS = ("static", "gated")
"""Forms that hold the rungs' own graphs, where layers may be merged and a dense top rung is the original."""

RANK_INPUT = "rank"
"""The name of the rank input of `gated`, `sliced` and `masked`."""

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output."""

    name: str
    """As the graph names it."""
    dtype: str
    """numpy's name: `int64`, `float32`, `float16`, ..."""
    shape: tuple[int | str, ...]
    """A number where the size is fixed, a name where it varies (`batch_size`, `sequence_length`)."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorSpec:
        """Read and check one tensor."""
        dtype = _get(data, "dtype", str)
        try:
            np.dtype(dtype)
        except TypeError as error:
            raise BundleError(f"the manifest names an unknown dtype {dtype!r}") from error
        shape = _get(data, "shape", list)
        if not all(isinstance(size, str) or (isinstance(size, int) and size >= 0) for size in shape):
            raise BundleError(f"the manifest has a bad shape {shape!r} for {data.get('name')!r}")
        return cls(name=_get(data, "name", str), dtype=dtype, shape=tuple(shape))


@dataclass(frozen=True)
class Artifact:
    """A file of the bundle."""

    kind: str
    """`graph`, `weights` or `asset` (tokenizer, model configuration)."""
    path: str
    """Relative to the bundle, with forward slashes, never leaving it."""
    sha256: str
    """Lower-case hexadecimal."""
    size_bytes: int
    """Exact."""
    form: str | None = None
    """For graphs: one of `GRAPH_FORMS`."""
    rank: int | None = None
    """For `static` graphs, and for the `bound` graph of the original weights: the rung's rank."""
    precision: str | None = None
    """For graphs: the precision of the weights, one of `PRECISIONS` in `quantisation.py`."""
    weight_bytes: int | None = None
    """For graphs: bytes of weights the graph refers to, the shared ones included; what loading it costs at least."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Artifact:
        """Read and check one file's entry. The path is data from outside: it may not lead out of the bundle."""
        path = _get(data, "path", str)
        pure = PurePosixPath(path)
        if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\x00" in path:
            raise BundleError(f"the manifest names a path outside the bundle: {path!r}", "do not use this bundle")
        kind = _get(data, "kind", str)
        form = _get_optional(data, "form", str)
        rank = _get_optional(data, "rank", int)
        if kind == "graph" and form not in GRAPH_FORMS:
            raise BundleError(f"{path} has the unknown form {form!r}", f"this version knows {', '.join(GRAPH_FORMS)}")
        if kind == "graph" and form != "bound" and (form == "static") != (rank is not None):
            raise BundleError(f"{path}: a static graph has a rank, a graph of the form {form} has none")
        sha256 = _get(data, "sha256", str)
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise BundleError(f"{path}: {sha256!r} is not a SHA-256 in hexadecimal")
        size_bytes = _get(data, "size_bytes", int)
        if size_bytes < 0:
            raise BundleError(f"{path}: a negative size")
        return cls(
            kind=kind,
            path=path,
            sha256=sha256,
            size_bytes=size_bytes,
            form=form,
            rank=rank,
            precision=_get_optional(data, "precision", str),
            weight_bytes=_get_optional(data, "weight_bytes", int),
        )


@dataclass(frozen=True)
class BoundTensor:
    """A matrix in the weights file that a graph of form `bound` takes as an input: of a factor, at layer rank `r`, its
    first `r` rows; of an original weight everything."""

    name: str
    """Of the graph's input."""
    layer: str
    """The nested layer, whose rank curve says how many rows."""
    offset: int
    """Bytes from the beginning of the weights file."""
    dtype: str
    """numpy's name."""
    shape: tuple[int, int]
    """`[full layer rank, features]`, row-major; of an original weight `[d_in, d_out]`."""
    original: bool = False
    """Whether it is a layer's original weight, for the graph of the dense rung, and not a factor."""

    @property
    def end(self) -> int:
        """Bytes from the beginning of the file to the end of the tensor."""
        return self.offset + self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BoundTensor:
        """Read and check one factor's entry."""
        spec = TensorSpec.from_json(data)
        rows, features = (*spec.shape, 0, 0)[:2]
        if len(spec.shape) != 2 or not isinstance(rows, int) or not isinstance(features, int):
            raise BundleError(f"the manifest has a bad shape {list(spec.shape)} for the factor {spec.name!r}")
        if np.dtype(spec.dtype).kind != "f":
            raise BundleError(f"the factor {spec.name!r} cannot be {spec.dtype}")
        original = bool(_get_optional(data, "original", bool))
        return cls(
            spec.name, _get(data, "layer", str), _get(data, "offset", int), spec.dtype, (rows, features), original
        )


@dataclass(frozen=True)
class TaskSpec:
    """What the model is for, so that a device can use it without the training library."""

    name: str
    """Optimum's task name: `feature-extraction`, `text-classification`, ...; `custom` for a plain module."""
    pooling: str | None = None
    """For sentence embeddings: `mean` or `cls`; None where the outputs are used as they are."""
    normalize: bool = False
    """Whether embeddings are scaled to length 1."""
    max_length: int | None = None
    """The most tokens an input may have."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskSpec:
        """Read and check the task."""
        pooling = _get_optional(data, "pooling", str)
        if pooling not in (None, "mean", "cls"):
            raise BundleError(f"unknown pooling {pooling!r}", "this version knows mean and cls")
        return cls(
            name=_get(data, "name", str),
            pooling=pooling,
            normalize=_get(data, "normalize", bool),
            max_length=_get_optional(data, "max_length", int),
        )


@dataclass(frozen=True)
class Manifest:
    """A bundle's table of contents."""

    model: str
    """A name for people."""
    architecture: str
    """The torch class that was traced."""
    task: TaskSpec
    """What the model is for."""
    ladder: RankLadder
    """Every nested layer and every rung."""
    inputs: tuple[TensorSpec, ...]
    """Inputs of every graph; the dynamic forms take `rank` besides."""
    outputs: tuple[TensorSpec, ...]
    """Outputs of every graph."""
    artifacts: tuple[Artifact, ...]
    """Every other file of the bundle."""
    bound_tensors: tuple[BoundTensor, ...] = ()
    """What the graph of form `bound` takes besides `inputs`; empty where the bundle has no such graph."""
    quantisation: Quantisation | None = None
    """How the weights were quantised; None where they are floats."""
    created_by: Mapping[str, str] = field(default_factory=dict)
    """Versions of the tools that wrote it."""

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise BundleError("the manifest names no inputs or no outputs")
        paths = [artifact.path for artifact in self.artifacts]
        if len(set(paths)) != len(paths):
            raise BundleError("the manifest names a file twice")
        ranks = {artifact.rank for artifact in self.artifacts if artifact.rank is not None}
        if strays := sorted(ranks - set(self.ladder.ranks)):
            raise BundleError(f"the manifest has graphs at ranks without a rung: {strays}")
        self._check_bound_tensors()
        if self.quantisation is not None:
            layers = {layer.name for layer in self.ladder.layers}
            for name in self.quantisation.kept:
                if name not in layers:
                    raise BundleError(f"the manifest keeps the layer {name!r} precise, which the ladder has not")

    def _check_bound_tensors(self) -> None:
        """These become pointers into a mapped file, so each must lie inside it, aligned, and be as its layer says."""
        ranks = [artifact.rank for artifact in self.artifacts if artifact.form == "bound"]
        for original in (False, True):
            if any(tensor.original == original for tensor in self.bound_tensors) != any(
                (rank is not None) == original for rank in ranks
            ):
                raise BundleError("the manifest must describe the weights that its bound graphs take, and no others")
        if any(rank is not None and not self.ladder.rung(rank).dense for rank in ranks):
            raise BundleError("the manifest has a bound graph of a rung that is not the dense one")
        weights_bytes = sum(artifact.size_bytes for artifact in self.artifacts if artifact.kind == "weights")
        layers = {layer.name: layer for layer in self.ladder.layers}
        names = {spec.name for spec in self.inputs}
        for tensor in self.bound_tensors:
            if tensor.name in names:
                raise BundleError(f"the manifest names the input {tensor.name!r} twice")
            names.add(tensor.name)
            layer = layers.get(tensor.layer)
            if layer is None or not (
                tensor.shape == (layer.d_in, layer.d_out)
                if tensor.original
                else tensor.shape[0] == layer.curve.full_rank
            ):
                raise BundleError(f"the factor {tensor.name!r} does not fit the layer {tensor.layer!r} of the ladder")
            if tensor.offset % np.dtype(tensor.dtype).itemsize or not 0 <= tensor.offset < tensor.end <= weights_bytes:
                raise BundleError(f"the factor {tensor.name!r} is misaligned or leads out of the weights file")

    @property
    def precision(self) -> str:
        """Of the weights: that of the graphs, which share them; `fp32` where none says."""
        return next((a.precision for a in self.artifacts if a.kind == "graph" and a.precision), "fp32")

    def with_quality(self, quality: Mapping[int, Mapping[str, float]]) -> Manifest:
        """This manifest with measured quality, by rank, merged into the rungs."""
        return replace(self, ladder=self.ladder.with_quality(quality))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, keys in a fixed order."""
        bound = {"bound_tensors": [asdict(tensor) for tensor in self.bound_tensors]} if self.bound_tensors else {}
        quantisation = {"quantisation": self.quantisation.to_json()} if self.quantisation else {}
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "architecture": self.architecture,
            "task": asdict(self.task),
            "inputs": [asdict(spec) for spec in self.inputs],
            "outputs": [asdict(spec) for spec in self.outputs],
            "ladder": self.ladder.to_json(),
            "artifacts": [asdict(artifact) for artifact in self.artifacts],
            **bound,
            **quantisation,
            "created_by": dict(self.created_by),
        }

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """The reverse of `to_json`, checked.

        Raises:
            BundleError: the schema version is unknown, a key is missing, or a value makes no sense.
        """
        if not isinstance(data, Mapping):
            raise BundleError("the manifest is not a JSON object")
        version = data.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:  # True == 1 == 1.0, and neither is a version
            raise BundleError(
                f"the bundle has schema version {version!r}; this nsn-edge reads version {SCHEMA_VERSION}",
                "export the bundle again, or install the nsn-edge that wrote it",
            )
        try:
            ladder = RankLadder.from_json(_get(data, "ladder", dict))
        except BundleError:
            raise
        except NsnEdgeError as error:
            raise BundleError(f"the manifest's ladder: {error.message}") from error
        return cls(
            model=_get(data, "model", str),
            architecture=_get(data, "architecture", str),
            task=TaskSpec.from_json(_get(data, "task", dict)),
            ladder=ladder,
            inputs=tuple(TensorSpec.from_json(_object(item)) for item in _get(data, "inputs", list)),
            outputs=tuple(TensorSpec.from_json(_object(item)) for item in _get(data, "outputs", list)),
            artifacts=tuple(Artifact.from_json(_object(item)) for item in _get(data, "artifacts", list)),
            bound_tensors=tuple(
                BoundTensor.from_json(_object(item)) for item in _get_optional(data, "bound_tensors", list) or ()
            ),
            quantisation=(None if data.get("quantisation") is None else Quantisation.from_json(data["quantisation"])),
            created_by={str(k): str(v) for k, v in _get(data, "created_by", dict).items()},
        )


def _get(data: Mapping[str, Any], key: str, kind: type[_Value]) -> _Value:
    """A required value of an exact JSON type (a bool is not an int here)."""
    if key not in data:
        raise BundleError(f"the manifest lacks {key!r}", "export the bundle again")
    value = data[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BundleError(f"the manifest's {key!r} is {value!r}, not {kind.__name__}", "export the bundle again")
    return value


def _get_optional(data: Mapping[str, Any], key: str, kind: type[_Value]) -> _Value | None:
    return None if data.get(key) is None else _get(data, key, kind)


def _object(item: Any) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise BundleError(f"the manifest has {item!r} where an object belongs")
    return item
