"""A profile: what every rung costs on one machine in one configuration, as an object and as JSON (`kind` is `profile`).

document, version 2            bundle, device, host, and a list of configurations; `DeviceProfile` is all of it
  configurations[0]            form, batch, sequence length, ... -> `Profile`: the one that is asked for, or the first
document, version 1            one configuration, at the top; still read
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.runtimes.profiling.conditions import Conditions
from nsn_edge.runtimes.profiling.energy import EnergyMethod
from nsn_edge.runtimes.profiling.host import Host
from nsn_edge.runtimes.profiling.memory import MemoryUse
from nsn_edge.runtimes.profiling.stats import LatencyStats

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
KIND = "profile"

_AGAIN = "profile the bundle again with: nsn-edge profile BUNDLE -o FILE"

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class RungProfile:
    """One rung: what it is and what it took."""

    rank: int
    """The model's rank."""
    dense: bool
    """Whether this is the original dense model."""
    flops_fraction: float
    """MACs of the nested linear layers against the dense model's."""
    macs: int
    """MACs of the nested linear layers for one token."""
    latency: LatencyStats
    """Of one call with the whole batch."""
    load_ms: float | None
    """Loading the graph into the engine, the weights file being in the page cache already; None where it was not
    measured here (times that another tool took)."""
    throughput_per_s: float
    """Sequences per second: batch size over mean latency."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """As the bundle's manifest has it."""
    energy_mj: float | None = None
    """Millijoules of one call with the whole batch, what the idle device draws subtracted; None without a sensor."""
    energy_rounds_mj: tuple[float, ...] = ()
    """The same by each round of turns, whose mean `energy_mj` is."""
    first_run_ms: float | None = None
    """The first call after loading; of a graph that serves every rank, the rung called first pays for its start."""
    memory_mb: float | None = None
    """What the process's resident memory grew by when the graph was loaded, after the rungs below it, and run once;
    forms with one graph for all ranks have one value. Less than 0 if memory was given back meanwhile."""
    turns_ms: tuple[float, ...] = ()
    """Median latency of each turn in the order taken, at most 200 (neighbours are put together): what a bootstrap and
    a plot over time need."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        latency = asdict(self.latency)
        return {
            "rank": self.rank,
            "dense": self.dense,
            "flops_fraction": self.flops_fraction,
            "macs": self.macs,
            "repetitions": latency.pop("n"),
            **latency,
            "steady": self.latency.steady,
            "load_ms": self.load_ms,
            "first_run_ms": self.first_run_ms,
            "memory_mb": self.memory_mb,
            "throughput_per_s": self.throughput_per_s,
            "energy_mj": self.energy_mj,
            "energy_rounds_mj": list(self.energy_rounds_mj),
            "turns_ms": list(self.turns_ms),
            "quality": dict(self.quality),
        }

    @classmethod
    def from_json(cls, data: Any) -> RungProfile:
        """The reverse of `to_json`, checked."""
        if not isinstance(data, Mapping):
            raise NsnEdgeError(f"the profile has {data!r} where a rung belongs", _AGAIN)
        numbers = {
            key: _number(data, key)
            for key in ("mean_ms", "std_ms", "cv", "min_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")
        }
        return cls(
            rank=_get(data, "rank", int),
            dense=_get(data, "dense", bool),
            flops_fraction=_number(data, "flops_fraction"),
            macs=_get(data, "macs", int),
            latency=LatencyStats(n=_get(data, "repetitions", int), **numbers),
            load_ms=_optional(data, "load_ms"),
            throughput_per_s=_number(data, "throughput_per_s"),
            quality={str(key): _number(_get(data, "quality", dict), key) for key in _get(data, "quality", dict)},
            # Profiles of version 1 do not have these.
            energy_mj=_optional(data, "energy_mj"),
            energy_rounds_mj=_numbers(data, "energy_rounds_mj"),
            first_run_ms=_optional(data, "first_run_ms"),
            memory_mb=_optional(data, "memory_mb"),
            turns_ms=_numbers(data, "turns_ms"),
        )


@dataclass(frozen=True)
class Profile:
    """Every profiled rung of a bundle on one machine."""

    bundle_path: str
    """Where the bundle was."""
    model: str
    """The model's name, from the manifest."""
    host: Mapping[str, Any]
    """`Host.to_json()`."""
    settings: Mapping[str, Any]
    """Engine, form, threads, batch size, sequence length and how it was measured."""
    rungs: tuple[RungProfile, ...]
    """Rising in rank."""
    peak_memory_mb: float | None
    """Of the whole process, see `memory`; None where the system does not say."""
    warnings: tuple[str, ...] = ()
    """What makes these numbers less than sure."""
    bundle_hash: str | None = None
    """Of the bundle's graphs and weights; None in a profile of version 1."""
    device: str | None = None
    """The key of device and engine, see `device_key`; None in a profile of version 1."""
    memory: MemoryUse | None = None
    """Resident memory besides the peak."""
    conditions: Conditions | None = None
    """How the device was meanwhile: warm, throttled, steady."""
    energy: EnergyMethod | None = None
    """How energy was measured; None where it was not asked for."""

    @property
    def dense(self) -> RungProfile | None:
        """The dense rung, against which the others are compared; None if it was not profiled."""
        return next((rung for rung in self.rungs if rung.dense), None)

    def relative_to_dense(self, rung: RungProfile) -> float | None:
        """A rung's median latency against the dense rung's; None without a dense rung."""
        dense = self.dense
        return rung.latency.p50_ms / dense.latency.p50_ms if dense and dense.latency.p50_ms > 0 else None

    @property
    def configuration(self) -> dict[str, Any]:
        """Which cell of the grid this is: `form`, `batch_size`, `sequence_length`, `dimensions`."""
        return {key: self.settings.get(key) for key in ("form", "batch_size", "sequence_length", "dimensions")}

    def configuration_json(self) -> dict[str, Any]:
        """What is of this configuration alone, as plain JSON types."""
        return {
            "settings": dict(self.settings),
            "rungs": [{**rung.to_json(), "relative_to_dense": self.relative_to_dense(rung)} for rung in self.rungs],
            "peak_memory_mb": self.peak_memory_mb,
            "memory": None if self.memory is None else self.memory.to_json(),
            "energy": None if self.energy is None else self.energy.to_json(),
            "conditions": None if self.conditions is None else self.conditions.to_json(),
            "warnings": list(self.warnings),
        }

    def to_json(self) -> dict[str, Any]:
        """A document of this configuration alone, as plain JSON types, keys in a fixed order."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "bundle": {"path": self.bundle_path, "model": self.model, "hash": self.bundle_hash},
            "device": self.device,
            "host": dict(self.host),
            "plan": None,
            "complete": True,
            "configurations": [self.configuration_json()],
            "failed": [],
        }

    @classmethod
    def from_json(
        cls,
        data: Any,
        *,
        form: str | None = None,
        batch_size: int | None = None,
        sequence_length: int | None = None,
    ) -> Profile:
        """One configuration of a document: the first that is as asked for; the first of all by default.

        Raises:
            UsageError: the document has no such configuration.
            NsnEdgeError: it is not a profile, its version is unknown, a key is missing or has the wrong type.
        """
        asked = {"form": form, "batch_size": batch_size, "sequence_length": sequence_length}
        asked = {key: value for key, value in asked.items() if value is not None}
        found = all_configurations(data)
        for profile in found:
            if all(profile.settings.get(key) == value for key, value in asked.items()):
                return profile
        wanted = ", ".join(f"{key} {value}" for key, value in asked.items())
        there = "; ".join(configuration_name(profile.configuration) for profile in found)
        raise UsageError(
            f"the profile has no configuration{f' with {wanted}' if wanted else ''}",
            f"it has {there}" if there else _AGAIN,
        )

    @classmethod
    def of_configuration(cls, document: Mapping[str, Any], item: Any) -> Profile:
        """One configuration with what it shares with the others, checked."""
        if not isinstance(item, Mapping):
            raise NsnEdgeError(f"the profile has {item!r} where a configuration belongs", _AGAIN)
        bundle = _get(document, "bundle", dict)
        memory, energy, conditions = (item.get(key) for key in ("memory", "energy", "conditions"))
        try:
            use = None if memory is None else MemoryUse(**{key: memory.get(key) for key in _MEMORY})
        except AttributeError as error:
            raise NsnEdgeError(f"the profile's 'memory' is {memory!r}", _AGAIN) from error
        return cls(
            bundle_path=_get(bundle, "path", str),
            model=_get(bundle, "model", str),
            host=_get(document, "host", dict),
            settings=_get(item, "settings", dict),
            rungs=tuple(RungProfile.from_json(rung) for rung in _get(item, "rungs", list)),
            peak_memory_mb=_optional(item, "peak_memory_mb"),
            warnings=tuple(str(warning) for warning in _get(item, "warnings", list)),
            bundle_hash=bundle.get("hash"),
            device=document.get("device"),
            memory=use,
            conditions=None if conditions is None else Conditions.from_json(conditions),
            energy=None if energy is None else EnergyMethod.from_json(energy),
        )

    def save(self, path: Path) -> None:
        """Write the JSON in one step.

        Raises:
            NsnEdgeError: the disk is full or the folder cannot be written.
        """
        write_document(path, self.to_json())

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        form: str | None = None,
        batch_size: int | None = None,
        sequence_length: int | None = None,
    ) -> Profile:
        """Read one configuration of what `save` or `DeviceProfile.save` wrote, as `from_json` chooses it.

        Raises:
            UsageError: there is no such file, or no such configuration.
            NsnEdgeError: it is not readable, or not a profile.
        """
        data = read_document(path)
        try:
            return cls.from_json(data, form=form, batch_size=batch_size, sequence_length=sequence_length)
        except NsnEdgeError as error:
            raise type(error)(f"{path}: {error.message}", error.hint) from error


_MEMORY = tuple(MemoryUse.__dataclass_fields__)


def read_document(path: Path) -> Any:
    """The JSON of a file.

    Raises:
        UsageError: there is no such file.
        NsnEdgeError: it is not readable.
    """
    if not path.is_file():
        raise UsageError(f"no profile at {path}", _AGAIN)
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise NsnEdgeError(f"{path} is not readable JSON: {error}", _AGAIN) from error


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON in one step.

    Raises:
        NsnEdgeError: the disk is full or the folder cannot be written.
    """
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_bytes(path, text.encode() + b"\n")


def all_configurations(data: Any) -> tuple[Profile, ...]:
    """Every configuration of a document of any version that is known.

    Raises:
        NsnEdgeError: it is not a profile, its version is unknown, a key is missing or has the wrong type.
    """
    if not isinstance(data, Mapping) or data.get("kind") != KIND:
        raise NsnEdgeError("this is not a profile", _AGAIN)
    version = data.get("schema_version")
    if version not in READABLE_VERSIONS or isinstance(version, bool):
        raise NsnEdgeError(
            f"the profile has schema version {version!r}; this nsn-edge reads version "
            f"{' and '.join(map(str, READABLE_VERSIONS))}",
            _AGAIN,
        )
    items = [data] if version == 1 else _get(data, "configurations", list)
    return tuple(Profile.of_configuration(data, item) for item in items)


def configuration_name(configuration: Mapping[str, Any]) -> str:
    """For people: `static, batch 1, sequence 128`."""
    parts = [
        configuration.get("form"),
        f"batch {configuration['batch_size']}" if configuration.get("batch_size") is not None else None,
        f"sequence {configuration['sequence_length']}" if configuration.get("sequence_length") is not None else None,
        *(f"{name} {size}" for name, size in (configuration.get("dimensions") or {}).items()),
    ]
    return ", ".join(str(part) for part in parts if part is not None)


def host_summary(host: Mapping[str, Any]) -> str:
    """One line about the machine from a profile's `host`, whatever a newer writer has added to it."""
    known = {name: host[name] for name in Host.__dataclass_fields__ if name in host}
    return Host(**known).summary()


def _get(data: Mapping[str, Any], key: str, kind: type[_Value]) -> _Value:
    """A required value of an exact JSON type (a bool is not an int here)."""
    if key not in data:
        raise NsnEdgeError(f"the profile lacks {key!r}", _AGAIN)
    value = data[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise NsnEdgeError(f"the profile's {key!r} is {value!r}, not {kind.__name__}", _AGAIN)
    return value


def _number(data: Mapping[str, Any], key: str) -> float:
    return float(_get(data, key, int) if isinstance(data.get(key), int) else _get(data, key, float))


def _optional(data: Mapping[str, Any], key: str) -> float | None:
    return None if data.get(key) is None else _number(data, key)


def _numbers(data: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = data.get(key, [])
    if not isinstance(values, list) or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        raise NsnEdgeError(f"the profile's {key!r} is {values!r}, not a list of numbers", _AGAIN)
    return tuple(map(float, values))
