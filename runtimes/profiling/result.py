"""A profile: what every rung costs on one machine, as an object and as JSON (`kind` is `profile`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.runtimes.profiling.host import Host
from nsn_edge.runtimes.profiling.stats import LatencyStats

SCHEMA_VERSION = 1
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
    load_ms: float
    """Loading the graph into the engine, the weights file being in the page cache already."""
    throughput_per_s: float
    """Sequences per second: batch size over mean latency."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """As the bundle's manifest has it."""
    energy_mj: float | None = None
    """Millijoules of one call with the whole batch, what the idle device draws subtracted; None without a sensor."""

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
            "throughput_per_s": self.throughput_per_s,
            "energy_mj": self.energy_mj,
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
            load_ms=_number(data, "load_ms"),
            throughput_per_s=_number(data, "throughput_per_s"),
            quality={str(key): _number(_get(data, "quality", dict), key) for key in _get(data, "quality", dict)},
            # Profiles taken before energy was measured do not have the key.
            energy_mj=None if data.get("energy_mj") is None else _number(data, "energy_mj"),
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

    @property
    def dense(self) -> RungProfile | None:
        """The dense rung, against which the others are compared; None if it was not profiled."""
        return next((rung for rung in self.rungs if rung.dense), None)

    def relative_to_dense(self, rung: RungProfile) -> float | None:
        """A rung's median latency against the dense rung's; None without a dense rung."""
        dense = self.dense
        return rung.latency.p50_ms / dense.latency.p50_ms if dense and dense.latency.p50_ms > 0 else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, keys in a fixed order."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "bundle": {"path": self.bundle_path, "model": self.model},
            "host": dict(self.host),
            "settings": dict(self.settings),
            "rungs": [{**rung.to_json(), "relative_to_dense": self.relative_to_dense(rung)} for rung in self.rungs],
            "peak_memory_mb": self.peak_memory_mb,
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, data: Any) -> Profile:
        """The reverse of `to_json`, checked.

        Raises:
            NsnEdgeError: it is not a profile, its version is unknown, a key is missing or has the wrong type.
        """
        if not isinstance(data, Mapping) or data.get("kind") != KIND:
            raise NsnEdgeError("this is not a profile", _AGAIN)
        if data.get("schema_version") != SCHEMA_VERSION:
            raise NsnEdgeError(
                f"the profile has schema version {data.get('schema_version')!r}; "
                f"this nsn-edge reads version {SCHEMA_VERSION}",
                _AGAIN,
            )
        bundle = _get(data, "bundle", dict)
        return cls(
            bundle_path=_get(bundle, "path", str),
            model=_get(bundle, "model", str),
            host=_get(data, "host", dict),
            settings=_get(data, "settings", dict),
            rungs=tuple(RungProfile.from_json(item) for item in _get(data, "rungs", list)),
            peak_memory_mb=None if data.get("peak_memory_mb") is None else _number(data, "peak_memory_mb"),
            warnings=tuple(str(warning) for warning in _get(data, "warnings", list)),
        )

    def save(self, path: Path) -> None:
        """Write the JSON in one step.

        Raises:
            NsnEdgeError: the disk is full or the folder cannot be written.
        """
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write_bytes(path, text.encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read what `save` wrote.

        Raises:
            UsageError: there is no such file.
            NsnEdgeError: it is not readable, or not a profile.
        """
        if not path.is_file():
            raise UsageError(f"no profile at {path}", _AGAIN)
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise NsnEdgeError(f"{path} is not readable JSON: {error}", _AGAIN) from error
        return cls.from_json(data)


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
