"""Latency of candidates that take turns, what a switch adds, energy per call."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from gpu_check.section import NotHereError, Section
from nsn_edge.errors import NsnEdgeError
from nsn_edge.runtimes.profiling import LatencyStats, MeasureSettings, measure
from nsn_edge.runtimes.telemetry import NvmlGpu

Call = Callable[[], object]
"""One inference, done when it returns."""

_CALLS = MeasureSettings(warmup=5, min_repetitions=60, min_time_s=0.25, max_time_s=6.0, calls_per_turn=5)
_FEW = MeasureSettings(warmup=1, min_repetitions=3, min_time_s=0.0, max_time_s=2.0, calls_per_turn=1)
_FEWEST_CALLS = 4  # of each candidate: warm-up, untimed, timed, and one over
_ENERGY_S = 1.5  # the counter moves on every 20 to 100 ms
_SWITCHES, _SWITCHING_S = 200, 3.0


def latency_rows(
    section: Section,
    calls: Mapping[int, Call],
    fractions: Mapping[int, float],
    dense: int,
    gpu: NvmlGpu | None = None,
    calls_at_once: int = 1,
    **about: Any,
) -> list[dict[str, Any]]:
    """A row per rank; none, and a note, where a call takes longer than there is time.

    Args:
        section: that has the time.
        calls: by rank.
        fractions: FLOPs fraction by rank.
        dense: the rank that is the dense original.
        gpu: measures energy, besides.
        calls_at_once: inferences that one call makes.
        about: what else each row says.
    """
    calls[dense]()
    call_s = _timed_ms(calls[dense]) / 1e3
    if _FEWEST_CALLS * len(calls) * call_s > section.left_s:
        place = " ".join(str(value) for value in about.values())
        section.results.notes.append(f"{place}: not run: a call takes {call_s:.1f} s, too long for the time left")
        return []
    settings = _CALLS
    if section.plan.quick:
        settings = _FEW
    elif (share_s := section.left_s / 4) < _CALLS.max_time_s:
        settings = replace(_CALLS, max_time_s=max(1.0, share_s))
    samples = measure(calls, settings)
    stats = {rank: LatencyStats.from_samples([ms / calls_at_once for ms in taken]) for rank, taken in samples.items()}
    rows = []
    for rank in sorted(calls, reverse=True):
        stat = stats[rank]
        relative = stat.p50_ms / stats[dense].p50_ms
        rows.append(
            {
                **about,
                "rank": rank,
                "dense": rank == dense,
                "flops_fraction": fractions[rank],
                "p50_ms": stat.p50_ms,
                "p90_ms": stat.p90_ms,
                "cv": stat.cv,
                "n": stat.n,
                "relative_to_dense": relative,
                "of_ideal": relative / fractions[rank],
                "energy_mj": energy_per_call_mj(gpu, calls[rank], calls_at_once, section),
            }
        )
    return rows


def switch_row(
    section: Section, calls: Mapping[int, Call], select: Callable[[int], object], **about: Any
) -> dict[str, Any]:
    """What a switch costs: selecting another rank at random, and how much longer the first inference at it takes than
    the median of the same rank without a switch.

    Args:
        section: says how much to measure.
        calls: by rank.
        select: makes a rank the current one.
        about: what else the row says.
    """
    most, seconds = (10, 0.5) if section.plan.quick else (_SWITCHES, _SWITCHING_S)
    draw = random.Random(0)
    ranks = list(calls)
    steady: dict[int, float] = {}
    for rank in ranks:
        select(rank)
        steady[rank] = _median_ms(calls[rank], seconds / len(ranks))
    selecting_ms: list[float] = []
    added_ms: list[float] = []
    current, stop = ranks[0], time.perf_counter() + seconds
    while len(added_ms) < most and (time.perf_counter() < stop or not added_ms):
        current = draw.choice([rank for rank in ranks if rank != current] or ranks)
        selecting_ms.append(_timed_ms(partial(select, current)))
        added_ms.append(selecting_ms[-1] + max(0.0, _timed_ms(calls[current]) - steady[current]))
    selecting, added = LatencyStats.from_samples(selecting_ms), LatencyStats.from_samples(added_ms)
    return {
        **about,
        "n": len(added_ms),
        "select_p50_ms": selecting.p50_ms,
        "select_p99_ms": selecting.p99_ms,
        "added_p50_ms": added.p50_ms,
        "added_p99_ms": added.p99_ms,
    }


def energy_per_call_mj(gpu: NvmlGpu | None, call: Call, calls_at_once: int, section: Section) -> float | None:
    """Millijoules of the whole board for one inference, over a second or more: by its energy counter, else by the mean
    of its power; None where it tells neither."""
    if gpu is None or gpu.lost or section.plan.quick or section.left_s < 3 * _ENERGY_S:
        return None
    begin_mj, powers_mw = gpu.energy_mj(), []
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < _ENERGY_S:
        call()
        count += calls_at_once
        if begin_mj is None and (power_mw := gpu.power_mw()) is not None:
            powers_mw.append(power_mw)
    taken_s = time.perf_counter() - began
    end_mj = gpu.energy_mj()
    if begin_mj is not None and end_mj is not None and end_mj > begin_mj:
        return (end_mj - begin_mj) / count
    return sum(powers_mw) / len(powers_mw) * taken_s / count if powers_mw else None


@contextmanager
def nvml(section: Section) -> Iterator[NvmlGpu | None]:
    """The GPU for energy and memory; None, with a note, where there is none to be asked."""
    if section.plan.device == "cpu":
        section.results.notes.append("energy: not run: the processor's energy is not measured here")
        yield None
        return
    try:
        gpu = NvmlGpu.open()
    except NsnEdgeError as error:
        section.results.notes.append(f"energy and memory: not run: {error}")
        yield None
        return
    with gpu:
        yield gpu
        if gpu.disabled:
            section.results.notes.append(f"NVML does not support here: {', '.join(sorted(gpu.disabled))}")


def need(module: str, install: str) -> None:
    """Refuse to go on without a module.

    Raises:
        NotHereError: it is not installed, or cannot be imported.
    """
    import importlib

    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        raise NotHereError(f"{module} cannot be imported ({error}); {install}") from error


def _median_ms(call: Call, seconds: float) -> float:
    """Of 3 to 20 calls."""
    call()
    samples: list[float] = []
    while len(samples) < 3 or (len(samples) < 20 and sum(samples) < seconds * 1e3):
        samples.append(_timed_ms(call))
    return sorted(samples)[len(samples) // 2]


def _timed_ms(call: Call) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
