"""What to build: which engines, from which graphs, with which profiles. Nothing here needs NVIDIA's library.

rung       one engine per rung, from its `static` graph                rank-064-fp32, rank-128-fp32, ...
dynamic    one engine for all ranks, from the `sliced` graph           sliced-fp32
           rank        1 ....... 64 | 65 ........ 128 | 129 ........ 384
           profile     best at 64   | best at 128     | best at 384         every rank lies in exactly one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nsn_edge.bundle import Artifact, Bundle
from nsn_edge.bundle.engines import PRECISIONS, EngineProfile, engine_stem
from nsn_edge.errors import UsageError
from nsn_edge.export.tensorrt.shapes import (
    CACHE,
    SEQUENCE,
    SizeRange,
    check_sizes,
    default_sizes,
    dimension_names,
    shape_ranges,
)
from nsn_edge.ladder import RankLadder

KINDS = ("rung", "dynamic")

_FORM = {"rung": "static", "dynamic": "sliced"}
_GRAPHS = {"fp32": ("fp32", "tf32", "fp16", "bf16"), "fp16": ("fp16",)}
"""By the precision of a graph: what an engine of it may compute with."""
UNREAD_OPERATORS = {"int8": ("DynamicQuantizeLinear", "MatMulInteger"), "int4": ("MatMulNBits",)}
"""By the precision of a graph that cannot be built: what TensorRT's parser refuses of it (TensorRT-RTX 1.7)."""
_KERNELS_BYTES = 16_000_000
"""What a profile adds besides weights: kernels and tables. MiniLM and Llamas came to 3 to 9 MB each."""
LEVELS = range(6)


@dataclass(frozen=True)
class BuildConfig:
    """What a user asks for."""

    kinds: tuple[str, ...] = ("rung",)
    """Of `KINDS`."""
    ranks: tuple[int, ...] = ()
    """Rungs to build; none means all."""
    precision: str | None = None
    """One of `PRECISIONS`; None for that of the bundle's graphs."""
    sizes: Mapping[str, SizeRange] = field(default_factory=dict)
    """By the dimension's name; others as `default_sizes` says."""
    decode_profile: bool = False
    """For decoders: besides each profile one for writing token by token, which comes first."""
    workspace_mb: int | None = None
    """How much scratch memory a layer may use on the GPU; None for the library's own limit."""
    level: int | None = None
    """How hard the builder tries, 0 to 5; None for the library's own choice."""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise UsageError(f"unknown kind of engine {kind!r}", f"choose {' or '.join(KINDS)}")
        if not self.kinds:
            raise UsageError("no kind of engine asked for", f"choose {' or '.join(KINDS)}")
        if self.precision not in (None, *PRECISIONS):
            raise UsageError(f"unknown precision {self.precision!r}", f"choose {', '.join(PRECISIONS)}")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"a workspace of {self.workspace_mb} MB", "1 or more")
        if self.level is not None and self.level not in LEVELS:
            raise UsageError(f"the builder's level is 0 to {LEVELS[-1]}, not {self.level}")


@dataclass(frozen=True)
class EngineJob:
    """One engine to build."""

    stem: str
    """Of its files."""
    kind: str
    form: str
    rank: int | None
    artifact: Artifact
    """The graph."""
    precision: str
    profiles: tuple[EngineProfile, ...]
    options: Mapping[str, Any]
    """See `EngineRecord.options`."""

    @property
    def lowers_precision(self) -> bool:
        """Whether the graph says another precision than the engine's."""
        return self.artifact.precision != self.precision and self.precision != "tf32"

    @property
    def expected_bytes(self) -> int:
        """About how large the engine will be, rather more than less. TensorRT-RTX 1.7 keeps a rung's weights once for
        each profile, turned as its kernels like them; factors that are sliced in every run it keeps once."""
        copies = len(self.profiles) if self.kind == "rung" else 1
        # Not less for half precision: of a small model most weights are embeddings, which stay as they are.
        return copies * (self.artifact.weight_bytes or 0) + _KERNELS_BYTES * len(self.profiles)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "name": self.stem,
            "kind": self.kind,
            "rank": self.rank,
            "graph": self.artifact.path,
            "precision": self.precision,
            "expected_bytes": self.expected_bytes,
            "profiles": [
                {
                    "name": profile.name,
                    "rank_range": list(profile.rank_range),
                    "inputs": {
                        name: {"min": list(r.min), "opt": list(r.opt), "max": list(r.max)}
                        for name, r in profile.inputs.items()
                    },
                }
                for profile in self.profiles
            ],
        }


def plan_jobs(bundle: Bundle, config: BuildConfig) -> tuple[EngineJob, ...]:
    """The engines that a configuration asks for, smallest rung first.

    Raises:
        RankError: a rank without a rung.
        UsageError: the bundle lacks a graph, sizes do not fit the model, or profiles leave out a rung.
    """
    ladder, specs = bundle.manifest.ladder, bundle.manifest.inputs
    for rank in config.ranks:
        ladder.rung(rank)
    sizes = {**default_sizes(bundle.manifest), **config.sizes}
    check_sizes(bundle.manifest, sizes)
    if config.decode_profile and CACHE not in dimension_names(specs):
        raise UsageError("a profile for decoding, and the model keeps no cache", "leave out --decode-profile")
    chosen = [rank for rank in ladder.ranks if not config.ranks or rank in config.ranks]
    spans = [("", sizes)]
    if config.decode_profile:
        spans.insert(0, (", decode", {**sizes, SEQUENCE: SizeRange(1, 1, 1)}))
    shapes = [(suffix, shape_ranges(specs, span)) for suffix, span in spans]
    common = {
        "sizes": {name: str(size) for name, size in sorted(sizes.items())},
        "decode_profile": config.decode_profile,
        "workspace_mb": config.workspace_mb,
        "level": config.level,
    }

    def job(kind: str, rank: int | None, ranges: Sequence[tuple[int, tuple[int, int]]]) -> EngineJob:
        artifact = _graph(bundle, rank, _FORM[kind])
        precision = _precision(artifact, config.precision)
        profiles = tuple(
            EngineProfile(f"rank {best}{suffix}", best, span, inputs)
            for best, span in ranges
            for suffix, inputs in shapes
        )
        stem = engine_stem(kind, _FORM[kind], rank, precision)
        options = {**common, "ranks": [best for best, _ in ranges]}
        return EngineJob(stem, kind, _FORM[kind], rank, artifact, precision, profiles, options)

    jobs = []
    if "rung" in config.kinds:
        jobs += [job("rung", rank, [(rank, (rank, rank))]) for rank in chosen]
    if "dynamic" in config.kinds:
        jobs.append(job("dynamic", None, rank_ranges(ladder, chosen)))
    return tuple(jobs)


def rank_ranges(ladder: RankLadder, chosen: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    """For each chosen rung its rank, and the ranks that its profile takes: those above the rung before, up to it; the
    last one's up to the model's largest rank.

    Raises:
        UsageError: a rung lies above all of them.
    """
    if missing := [rank for rank in ladder.ranks if rank > max(chosen)]:
        raise UsageError(
            f"the profiles would end at rank {max(chosen)} and exclude the rungs {', '.join(map(str, missing))}",
            f"add --rank {missing[-1]}, or leave out --rank, or build --kind rung",
        )
    ends = [*chosen[:-1], ladder.max_rank]
    return [(rank, (below + 1, end)) for rank, below, end in zip(chosen, [0, *ends], ends, strict=False)]


def _graph(bundle: Bundle, rank: int | None, form: str) -> Artifact:
    """The graph of a rung or form in a precision that TensorRT's parser takes."""
    first = bundle.graph(rank, form)
    if first.precision in _GRAPHS:
        return first
    for artifact in bundle.manifest.artifacts:
        if (
            artifact.kind == "graph"
            and (artifact.form, artifact.rank) == (form, rank)
            and artifact.precision in _GRAPHS
        ):
            return artifact
    operators = UNREAD_OPERATORS.get(first.precision or "", ())
    raise UsageError(
        f"{first.path} is {first.precision}, and engines are built from graphs in {' or '.join(_GRAPHS)}"
        + (f": TensorRT's parser does not read {' or '.join(operators)}" if operators else ""),
        "export the checkpoint once more, with --precision fp16 or fp32",
    )


def _precision(artifact: Artifact, asked: str | None) -> str:
    own = artifact.precision or "fp32"
    if asked is not None and asked not in _GRAPHS[own]:
        raise UsageError(
            f"{artifact.path} is {own}, and cannot become {asked}",
            f"choose --precision {own}, or export the model in float32",
        )
    return asked or own
