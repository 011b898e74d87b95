"""JetPack's `tensorrt`, as far as building goes: TensorRT-RTX's real builder, with what JetPack's versions lack taken
away, what they have besides recorded.

    8.5, JetPack 5    no progress monitor, networks told of their batch, no BF16, no optimization level
    10.3, JetPack 6   all of it; precision by flags, a timing cache
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Calls:
    """What a builder was asked for."""

    network_flags: list[int] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    caches: list[bytes] = field(default_factory=list)
    """Contents of the timing caches that builds began with."""


class _Flag(enum.IntEnum):
    TF32 = 7
    FP16 = 0
    BF16 = 17


class _OldFlag(enum.IntEnum):
    TF32 = 7
    FP16 = 0


class _NetworkFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0


class _TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class JetPack:
    """Stands where `import tensorrt` looks."""

    def __init__(self, version: str) -> None:
        import tensorrt_rtx

        self._real = tensorrt_rtx
        self.__version__ = version
        self.calls = Calls()
        self._old = version.startswith("8.")
        self.BuilderFlag = _OldFlag if self._old else _Flag
        self.NetworkDefinitionCreationFlag = _NetworkFlag
        self.refuses_caches = False
        """Whether a timing cache that is not empty is one of another device."""

    def __getattr__(self, name: str) -> Any:
        missing = {"ComputeCapability", *(("IProgressMonitor",) if self._old else ())}
        if name in missing:
            raise AttributeError(name)
        if name == "DataType" and self._old:
            return enum.Enum("DataType", {"INT32": self._real.DataType.INT32, "FLOAT": self._real.DataType.FLOAT})
        return getattr(self._real, name)

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        return _Builder(self, self._real.Builder(logger))


class _Builder:
    def __init__(self, library: JetPack, real: Any) -> None:
        self._library, self._real = library, real

    def create_network(self, flags: int) -> Any:
        self._library.calls.network_flags.append(flags)
        return self._real.create_network(0)

    def create_builder_config(self) -> Any:
        return _Config(self._library, self._real.create_builder_config())

    def create_optimization_profile(self) -> Any:
        return self._real.create_optimization_profile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        return self._real.build_serialized_network(network, config.real)


class _Config:
    def __init__(self, library: JetPack, real: Any) -> None:
        object.__setattr__(self, "library", library)
        object.__setattr__(self, "real", real)
        object.__setattr__(self, "cache", None)

    def set_flag(self, flag: Any) -> None:
        self.library.calls.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.library.calls.flags.discard(flag.name)

    def create_timing_cache(self, content: bytes) -> _TimingCache:
        return _TimingCache(content)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content and self.library.refuses_caches:
            return False
        self.library.calls.caches.append(cache.content)
        object.__setattr__(self, "cache", cache)
        return True

    def get_timing_cache(self) -> _TimingCache | None:
        return self.cache

    def __getattr__(self, name: str) -> Any:
        if name == "builder_optimization_level" and self.library.__version__.startswith("8.5"):
            raise AttributeError(name)
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        assert name != "progress_monitor" or not self.library.__version__.startswith("8.")
        setattr(self.real, name, value)
