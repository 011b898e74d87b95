"""Options that make onnxruntime's TensorRT provider build once, not whenever a new shape comes along.

Left alone, the provider builds an engine for the shapes of the first input, widens it with every one outside, and keeps
none. Given the least, usual and largest shape of each input it builds one engine for all of them while the session is
made, and a cache spares the next process that. The rank of the dynamic forms is a value, not a size: it is given in the
place of a shape. The options know one profile, so ranks are one range; an engine with a profile per rung is what
`nsn-edge build` makes.
https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html#explicit-shape-range-for-dynamic-shape-input

The cache's own key is made of names, not of weights, so each bundle gets a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from nsn_edge.bundle import TensorSpec
from nsn_edge.bundle.engines import ENGINES_FOLDER, bundle_hash
from nsn_edge.bundle.manifest import RANK_INPUT, Manifest
from nsn_edge.errors import EngineError, NsnEdgeError, UsageError
from nsn_edge.runtimes.engines.graph_file import external_tensors, graph_inputs

Range = tuple[int, int, int]
"""The least, the usual and the largest."""

_BOUNDS = ("min", "opt", "max")
_BATCH = 8
_SEQUENCE = 128
_LONGEST = 512


def usual_shapes(manifest: Manifest, batch_size: int = _BATCH) -> dict[str, Range]:
    """Ranges of the dimensions of a bundle: up to `batch_size` sequences of up to the model's length (512 tokens where
    it is longer or unknown), a cache of as many, and every rank from the lowest rung on."""
    ladder = manifest.ladder
    longest = min(manifest.task.max_length or _LONGEST, _LONGEST)
    return {
        "batch_size": (1, 1, batch_size),
        "sequence_length": (1, min(_SEQUENCE, longest), longest),
        "past_sequence_length": (0, min(_SEQUENCE, longest), longest),
        RANK_INPUT: (min(ladder.ranks, default=1), ladder.max_rank, ladder.max_rank),
    }


def tensorrt_options(graph_path: Path, shapes: Mapping[str, Range], cache: Path | None, version: str) -> dict[str, str]:
    """Provider options: the profile, if there are shapes, and the caches.

    Args:
        graph_path: of the graph.
        shapes: of each named dimension, and of `rank`; if empty, those of `usual_shapes` for the bundle that the graph
            lies in, and for a graph outside a bundle none: its engine follows the inputs.
        cache: where engines are kept; beside the graph by default.
        version: of onnxruntime.

    Raises:
        UsageError: a dimension of the graph has no range, or one that makes no sense.
        EngineError: the graph cannot be read, or the cache cannot be written.
    """
    manifest = _manifest_beside(graph_path)
    shapes = shapes or (usual_shapes(manifest) if manifest else {})
    root = graph_path.parent / ENGINES_FOLDER if cache is None else cache
    folder = root / f"onnxruntime-{version}-{_content_key(graph_path, manifest)[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(
            f"engines cannot be kept in {folder}: {error.strerror}", "name a folder that can be written as engine_cache"
        ) from error
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        **profile_options(graph_inputs(graph_path), shapes, graph_path.name),
    }


def profile_options(inputs: list[TensorSpec], shapes: Mapping[str, Range], graph: str) -> dict[str, str]:
    """`trt_profile_{min,opt,max}_shapes` as `input_ids:1x16,rank:64`; nothing without shapes.

    Raises:
        UsageError: as `tensorrt_options`.
    """
    if not shapes:
        return {}
    for name, bounds in shapes.items():
        if len(bounds) != 3 or not 0 <= bounds[0] <= bounds[1] <= bounds[2]:
            raise UsageError(f"the range of {name!r} is {bounds}", "give the least, the usual and the largest size")
    varying = [spec for spec in inputs if spec.name == RANK_INPUT or any(isinstance(s, str) for s in spec.shape)]
    entries: dict[str, list[str]] = {bound: [] for bound in _BOUNDS}
    for spec in varying:
        for number, bound in enumerate(_BOUNDS):
            if spec.name == RANK_INPUT:
                sizes = [_size(RANK_INPUT, shapes, number, graph)]
            else:
                sizes = [s if isinstance(s, int) else _size(s, shapes, number, graph) for s in spec.shape]
            entries[bound].append(f"{spec.name}:{'x'.join(map(str, sizes))}")
    return {f"trt_profile_{bound}_shapes": ",".join(entries[bound]) for bound in _BOUNDS if entries[bound]}


def _size(name: str, shapes: Mapping[str, Range], bound: int, graph: str) -> int:
    """A dimension called `a + b` is as large as both together."""
    total = 0
    for part in name.split(" + "):
        if part not in shapes:
            raise UsageError(
                f"{graph} has the dimension {part!r}, and nothing says how large it gets",
                f"ranges are known of {', '.join(sorted(shapes))}",
            )
        total += shapes[part][bound]
    return total


def _manifest_beside(graph_path: Path) -> Manifest | None:
    """Of the bundle that a graph lies in; None outside of one."""
    try:
        return Manifest.from_json(json.loads((graph_path.parent / "manifest.json").read_bytes()))
    except (OSError, ValueError, RecursionError, NsnEdgeError):
        return None


def _content_key(graph_path: Path, manifest: Manifest | None) -> str:
    """Of the bundle, by the hashes in its manifest; of a graph outside a bundle, by its bytes and how old and large its
    weights are."""
    if manifest is not None:
        key = bundle_hash(manifest)
    else:
        key = hashlib.sha256(graph_path.read_bytes()).hexdigest()
        for file in sorted({tensor.file for tensor in external_tensors(graph_path)}):
            stat = file.stat()
            key += f"{file.name} {stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(key.encode()).hexdigest()
