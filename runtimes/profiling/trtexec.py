"""Times that trtexec took: `trtexec --loadEngine=rank-048.engine --exportTimes=48.json` -> a profile.

trtexec writes a list with an object for each inference. Three generations of it are about, told apart by their keys
(samples/common/sampleReporting.cpp of TensorRT):

    TensorRT 7 to 8.0    startInMs ... inMs computeMs outMs latencyMs endToEndMs
    8.0 to 8.5           startEnqMs ... h2dMs computeMs d2hMs latencyMs endToEndMs
    8.6 and later        startEnqMs ... h2dMs computeMs d2hMs latencyMs

`latencyMs` is copying in, computing and copying out; it is what a caller waits for, and is taken. The two older ones
write down the warm-up, too (200 ms by default): inferences that began to compute before its end are left out.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engines import bundle_hash
from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.errors import UsageError
from nsn_edge.runtimes.profiling.profiler import flops_of
from nsn_edge.runtimes.profiling.result import Profile, RungProfile
from nsn_edge.runtimes.profiling.stats import LatencyStats
from nsn_edge.runtimes.profiling.turns import merged

WARM_UP_MS = 200.0
"""trtexec's own `--warmUp`."""

_MAKE = "make it with: trtexec --loadEngine=FILE --exportTimes=FILE.json"
_TURN = 5


@dataclass(frozen=True)
class TrtexecTimes:
    """The inferences of one file that count, in milliseconds and in order."""

    latency_ms: tuple[float, ...]
    compute_ms: tuple[float, ...]
    """On the GPU alone."""
    left_out: int
    """Inferences of the warm-up."""
    generation: str
    """`in-out`, `end-to-end` or `current`: which keys the file has."""


def read_times(path: Path, *, warm_up_ms: float = WARM_UP_MS) -> TrtexecTimes:
    """Read what `--exportTimes` wrote.

    Args:
        path: the file.
        warm_up_ms: of the run, where the file has the warm-up in it.

    Raises:
        UsageError: the file is missing, is something else, was cut, or all of it is warm-up.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", _MAKE) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not readable JSON: {error}", f"was trtexec broken off while it wrote? {_MAKE}"
        ) from error
    if not isinstance(data, list) or not data or not all(isinstance(item, Mapping) for item in data):
        raise UsageError(f"{path} is not a list of inferences as --exportTimes writes them", _MAKE)
    if "latencyMs" not in data[0]:
        kind = " It looks like --exportProfile's." if any("averageMs" in item for item in data) else ""
        raise UsageError(f"{path} has no latencyMs.{kind}", _MAKE)
    generation = "in-out" if "inMs" in data[0] else "end-to-end" if "endToEndMs" in data[0] else "current"
    counted = [
        (_number(path, index, item, "latencyMs"), _number(path, index, item, "computeMs"))
        for index, item in enumerate(data, start=1)
        if generation == "current" or _number(path, index, item, "startComputeMs", least=-math.inf) >= warm_up_ms
    ]
    if not counted:
        raise UsageError(
            f"{path} has {len(data)} inferences, all within the warm-up of {warm_up_ms:g} ms",
            "run trtexec for longer with --duration, or say its own --warm-up",
        )
    latency_ms, compute_ms = zip(*counted, strict=True)
    return TrtexecTimes(latency_ms, compute_ms, len(data) - len(counted), generation)


def profile_from_times(
    bundle: Bundle,
    times: Mapping[int, TrtexecTimes],
    *,
    form: str = "static",
    batch_size: int = 1,
    sequence_length: int | None = None,
    host: Mapping[str, Any] | None = None,
) -> Profile:
    """A profile of one configuration, without what trtexec does not tell (loading, memory, energy, conditions).

    Args:
        bundle: whose graphs the engines were built from.
        times: by rank.
        form: of the graphs.
        batch_size: of the shapes that trtexec ran.
        sequence_length: likewise; None where the model has none.
        host: of the device, if it is known.

    Raises:
        UsageError: no times, an unknown form, or a size below 1.
        RankError: a rank has no rung.
    """
    if not times:
        raise UsageError("no times to import", "name a file for each rank: RANK=FILE")
    if form not in GRAPH_FORMS:
        raise UsageError(f"unknown form {form!r}", f"choose {', '.join(GRAPH_FORMS)}")
    if batch_size < 1 or (sequence_length is not None and sequence_length < 1):
        raise UsageError(f"cannot be: batch {batch_size}, sequence {sequence_length}", "sizes are 1 or more")
    ladder = bundle.manifest.ladder
    rungs = []
    for rank in sorted(times):
        rung = ladder.rung(rank)
        latency = LatencyStats.from_samples(times[rank].latency_ms)
        dense, macs = flops_of(bundle, rank, form)
        turns = [statistics.median(times[rank].latency_ms[at : at + _TURN]) for at in range(0, latency.n, _TURN)]
        rungs.append(
            RungProfile(
                rank=rank,
                dense=dense,
                flops_fraction=macs / ladder.dense_macs,
                macs=macs,
                latency=latency,
                load_ms=None,
                throughput_per_s=batch_size * 1e3 / latency.mean_ms if latency.mean_ms > 0 else 0.0,
                quality=rung.quality if dense == rung.dense else {},
                turns_ms=merged(turns),
            )
        )
    left_out = sum(item.left_out for item in times.values())
    return Profile(
        bundle_path=str(bundle.path),
        model=bundle.manifest.model,
        host=dict(host or {}),
        settings={
            "engine": "trtexec",
            "form": form,
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "dimensions": {},
            "calls_per_turn": _TURN,
            "precision": bundle.manifest.precision,
            "median_compute_ms": {str(rank): statistics.median(times[rank].compute_ms) for rank in sorted(times)},
        },
        rungs=tuple(rungs),
        peak_memory_mb=None,
        warnings=(
            "measured by trtexec, a rung after the other: what disturbed the machine need not have disturbed all alike",
            *([f"{left_out} inferences of the warm-up were left out"] if left_out else []),
            *([] if host else ["trtexec does not say which device it ran on"]),
        ),
        bundle_hash=bundle_hash(bundle.manifest),
    )


def _number(path: Path, index: int, item: Mapping[str, Any], key: str, least: float = 0.0) -> float:
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
        raise UsageError(f"{path}: inference {index} has the {key} {value!r}", _MAKE)
    return float(value)
