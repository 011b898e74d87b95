"""The record of a built engine: what it is, what it takes, what it was built from. JSON, read with suspicion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.errors import InputError, StaleEngineError

SCHEMA_VERSION = 1

LIBRARIES = ("tensorrt", "tensorrt_rtx")
"""By the name of the Python module."""

BACKENDS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The name that a user types, and the library."""

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
"""`tf32`: float32 numbers, multiplied with 10 bits of mantissa."""


@dataclass(frozen=True)
class EngineDevice:
    """A GPU, as far as engines care; or a kind of GPU, for which an engine was built ahead of time."""

    name: str
    """As the driver calls it (`Orin`, `NVIDIA GeForce RTX 3060`); of a kind of GPU, its `sm`."""
    compute_capability: str
    """`major.minor`, as in `8.6`. `8.0+`: this one and later ones, as far as the library knows them."""

    @classmethod
    def kind(cls, compute_capability: str) -> EngineDevice:
        """Every GPU of a compute capability: `kind("8.6")`, `kind("8.0+")`."""
        return cls(_sm(compute_capability), compute_capability)

    @property
    def sm(self) -> str:
        """`sm86` for 8.6, `sm80+` for 8.0 and later."""
        return _sm(self.compute_capability)

    @property
    def key(self) -> str:
        """For a folder's name: `orin-sm87`; `sm86` or `sm80-and-later` where no GPU is named."""
        sm = self.sm.replace("+", "-and-later")
        return sm if self.is_kind else f"{slug(self.name)}-{sm}"

    @property
    def is_kind(self) -> bool:
        """Whether this is a kind of GPU, not a certain one."""
        return self.name in ("", self.sm)

    def serves(self, gpu: EngineDevice) -> bool:
        """Whether an engine for this device may run on a GPU."""
        if self.compute_capability.endswith("+"):
            fits = _numbers(gpu.compute_capability) >= _numbers(self.compute_capability)
        else:
            fits = gpu.compute_capability == self.compute_capability
        return fits and (self.is_kind or self.name == gpu.name)


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that one input may have: each size between its least and its largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    """What the engine is fastest at."""
    max: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape lies inside."""
        bounds = (self.min, self.max)
        return all(len(bound) == len(shape) for bound in bounds) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True)
class EngineProfile:
    """An optimization profile, in the order in which the engine numbers them."""

    name: str
    """For people: `rank 64`, `rank 64, decode`."""
    rank: int
    """The rung it is optimized for."""
    rank_range: tuple[int, int]
    """The least and the largest rank that it takes; twice `rank` for the engine of one rung."""
    inputs: Mapping[str, ShapeRange]
    """By name, every input of the graph but `rank`."""

    def takes(self, rank: int, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether inputs of these shapes, at this rank, lie inside."""
        low, high = self.rank_range
        return low <= rank <= high and all(
            name in self.inputs and self.inputs[name].holds(shape) for name, shape in shapes.items()
        )


@dataclass(frozen=True)
class EngineRecord:
    """What is known of an engine file."""

    library: str
    """One of `LIBRARIES`."""
    library_version: str
    """In full: engines of one version are refused by the next."""
    device: EngineDevice
    """What it was built for."""
    kind: str
    """`rung`: one rank. `dynamic`: the rank is an input, an int64 scalar whose value is a shape."""
    form: str
    """The form of the bundle's graph that it was built from: `static`, `sliced`."""
    rank: int | None
    """Of a rung's engine; None for a dynamic one."""
    precision: str
    """One of `PRECISIONS`: the least that a layer may compute with."""
    profiles: tuple[EngineProfile, ...]
    """At least one."""
    bundle_hash: str
    """`bundle_hash` of the bundle's manifest."""
    options: Mapping[str, Any]
    """What else it was built with, as plain JSON types: two builds with equal options make equal engines."""
    sha256: str
    """Of the engine file."""
    size_bytes: int
    """Of the engine file."""
    build_s: float
    """How long building took."""
    created_by: Mapping[str, str] = field(default_factory=dict)
    """Versions of the tools that wrote it."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        device = {**asdict(self.device), "key": self.device.key, "sm": self.device.sm}
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "device": device}

    @classmethod
    def from_json(cls, data: Any) -> EngineRecord:
        """The reverse of `to_json`, checked.

        Raises:
            StaleEngineError: the schema version is unknown, a key is missing, or a value makes no sense.
        """
        version = _object(data).get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise StaleEngineError(f"schema version {version!r}; this nsn-edge reads version {SCHEMA_VERSION}")
        device = _get(data, "device", dict)
        kind = _one_of(data, "kind", ("rung", "dynamic"))
        rank = None if data.get("rank") is None else _get(data, "rank", int)
        if (kind == "rung") != (rank is not None):
            raise StaleEngineError("a rung's engine has a rank, a dynamic one has none")
        profiles = tuple(_profile(item) for item in _get(data, "profiles", list))
        if not profiles:
            raise StaleEngineError("no optimization profile")
        return cls(
            library=_one_of(data, "library", LIBRARIES),
            library_version=_get(data, "library_version", str),
            device=EngineDevice(_get(device, "name", str), _capability(device)),
            kind=kind,
            form=_one_of(data, "form", GRAPH_FORMS),
            rank=rank,
            precision=_one_of(data, "precision", PRECISIONS),
            profiles=profiles,
            bundle_hash=_get(data, "bundle_hash", str),
            options=_get(data, "options", dict),
            sha256=_get(data, "sha256", str),
            size_bytes=_get(data, "size_bytes", int),
            build_s=float(_get(data, "build_s", (int, float))),
            created_by={str(k): str(v) for k, v in _get(data, "created_by", dict).items()},
        )

    def profile_for(self, rank: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The number of the first profile that takes inputs of these shapes at this rank.

        Raises:
            InputError: none does; the message names the first size that does not fit.
        """
        for number, profile in enumerate(self.profiles):
            if profile.takes(rank, shapes):
                return number
        of_rank = [p for p in self.profiles if p.rank_range[0] <= rank <= p.rank_range[1]]
        if not of_rank:
            taken = ", ".join("{}..{}".format(*p.rank_range) for p in self.profiles)
            raise InputError(
                f"the engine has no profile for rank {rank}; it takes {taken}",
                f"build it for more rungs: {build_command(self.library)}",
            )
        closest = max(of_rank, key=lambda p: sum(p.takes(rank, {name: shape}) for name, shape in shapes.items()))
        name, shape = next(item for item in shapes.items() if not closest.takes(rank, dict([item])))
        known = [p.inputs[name] for p in of_rank if name in p.inputs]
        ranges = " or ".join(f"{list(r.min)} to {list(r.max)}" for r in known) or "no such input"
        raise InputError(
            f"the engine at rank {rank} takes {name} of {ranges}, not {list(shape)}",
            "build it for larger shapes: --batch, --sequence and --cache of nsn-edge build",
        )


def _sm(compute_capability: str) -> str:
    return "sm" + compute_capability.replace(".", "")


def _numbers(compute_capability: str) -> tuple[int, ...]:
    return tuple(int(number) for number in compute_capability.rstrip("+").split("."))


def build_command(library: str) -> str:
    """What makes engines of a library."""
    backend = next(name for name, module in BACKENDS.items() if module == library)
    return f"nsn-edge build BUNDLE --backend {backend}"


def slug(text: str) -> str:
    """For a folder's name."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.")


def _profile(item: Any) -> EngineProfile:
    data = _object(item)
    low, high = _sizes(data, "rank_range")
    rank = _get(data, "rank", int)
    if not 1 <= low <= rank <= high:
        raise StaleEngineError(f"a profile of rank {rank} for {low}..{high}")
    inputs = {}
    for name, shapes in _get(data, "inputs", dict).items():
        shape = ShapeRange(*(_sizes(_object(shapes), key) for key in ("min", "opt", "max")))
        if not shape.holds(shape.opt):
            raise StaleEngineError(f"a profile whose shapes of {name!r} cross: {shapes}")
        inputs[str(name)] = shape
    return EngineProfile(_get(data, "name", str), rank, (low, high), inputs)


def _sizes(data: Mapping[str, Any], key: str) -> tuple[int, ...]:
    sizes = _get(data, key, list)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes):
        raise StaleEngineError(f"{key!r} is {sizes!r}, not sizes")
    return tuple(sizes)


def _capability(data: Mapping[str, Any]) -> str:
    text: str = _get(data, "compute_capability", str)
    if not re.fullmatch(r"\d+\.\d\+?", text):
        raise StaleEngineError(f"'compute_capability' is {text!r}")
    return text


def _one_of(data: Mapping[str, Any], key: str, known: tuple[str, ...]) -> str:
    value: str = _get(data, key, str)
    if value not in known:
        raise StaleEngineError(f"{key!r} is {value!r}, and this version knows {', '.join(known)}")
    return value


def _get(data: Mapping[str, Any], key: str, kind: Any) -> Any:
    """A required value of a JSON type (a bool is not a number here)."""
    value = data.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise StaleEngineError(f"{key!r} is {value!r}")
    return value


def _object(item: Any) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise StaleEngineError(f"{item!r} where an object belongs")
    return item
