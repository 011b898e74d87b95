"""A realistic set of results, written by hand, for the report's tests."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest

from nsn_edge.report import Footprint, ReportData

LADDER = [(48, 0.249, 8.4, 0.623), (68, 0.35, 9.9, 0.721), (96, 0.498, 12.7, 0.834), (144, 0.748, 17.1, 0.921)]
R = 384


def _rung(rank: int, dense: bool, fraction: float, p50_ms: float, spearman: float) -> dict[str, Any]:
    return {
        "rank": rank,
        "dense": dense,
        "flops_fraction": fraction,
        "macs": int(10_616_832 * fraction),
        "repetitions": 120,
        "min_ms": p50_ms * 0.97,
        "p50_ms": p50_ms,
        "p90_ms": p50_ms * 1.08,
        "p95_ms": p50_ms * 1.11,
        "p99_ms": p50_ms * 1.24,
        "max_ms": p50_ms * 1.4,
        "mean_ms": p50_ms * 1.02,
        "std_ms": p50_ms * 0.05,
        "cv": 0.049,
        "steady": True,
        "load_ms": 41.0 + rank / 10,
        "throughput_per_s": 1e3 / p50_ms,
        "quality": {"spearman": spearman},
    }


def _profile() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "profile",
        "bundle": {"path": "demo/bundle", "model": "all-MiniLM-L6-v2"},
        "host": {
            "cpu": "AMD EPYC",
            "architecture": "x86_64",
            "cores": 2,
            "usable_cores": 2,
            "governor": None,
            "frequency_mhz": 2596.1,
            "memory_mb": 25276.5,
            "system": "Debian GNU/Linux 12 (bookworm)",
            "kernel": "6.1.0",
            "python": "3.11.7",
            "packages": {"nsn-edge": "0.1.0", "numpy": "2.4.6", "onnxruntime": "1.31.1"},
            "measured_at": "2026-03-01T10:00:00+00:00",
        },
        "settings": {"engine": "onnxruntime-cpu", "threads": 1, "batch_size": 1, "sequence_length": 128, "warmup": 10},
        "rungs": [_rung(rank, False, fraction, ms, q) for rank, fraction, ms, q in LADDER]
        + [_rung(R, True, 1.0, 21.5, 1.0)],
        "peak_memory_mb": 412.3,
        "warnings": [],
    }


def _simulation() -> dict[str, Any]:
    """Twenty minutes at 1 Hz: a battery that drains, a chip that warms up, mains at the end, a sensor that is gone
    for a minute."""
    by_rank = {rank: ms for rank, _, ms, _ in LADDER} | {R: 21.5}
    plan = [
        (0, R),
        (260, 144),
        (420, 96),
        (470, 144),
        (560, 96),
        (700, 68),
        (820, 48),
        (960, 68),
        (1010, 144),
        (1080, R),
    ]
    timeline = []
    for second in range(1200):
        rank = [rank for start, rank in plan if start <= second][-1]
        battery = 81 - second * 0.065 if second < 940 else 81 - 940 * 0.065 + (second - 940) * 0.09
        temperature = 58 + 12 * math.sin(second / 190) + 1.1 * math.sin(second / 7)
        timeline.append(
            {
                "time_s": float(second),
                "battery_pct": round(battery, 1),
                "on_mains": second >= 940,
                "temperature_c": None if 600 <= second < 660 else round(temperature, 1),
                "rank": rank,
                "latency_ms": by_rank[rank] * (1.02 + 0.04 * math.sin(second * 1.7)) if second % 2 == 0 else None,
            }
        )
    reasons = [
        "battery 64 % is below 65 %: at most the 75 % rung",
        "temperature 69.8 °C is above 68 °C: one rung down",
        "temperature 64.9 °C is below 65 °C for 30 s: one rung up",
        "battery 44 % is below 45 %: at most the 50 % rung",
        "battery 35 % is below 35 %: at most the 35 % rung",
        "battery 27 % is below 28 %: at most the 25 % rung",
        "mains are back: one rung up after 20 s",
        "mains are back: two rungs up after 50 s",
        "mains are back: no limit",
    ]
    switches = [
        {"time_s": float(plan[i + 1][0]), "from_rank": plan[i][1], "to_rank": plan[i + 1][1], "reason": reason}
        for i, reason in enumerate(reasons)
    ]
    time_at: dict[str, float] = {}
    for row in timeline:
        time_at[str(row["rank"])] = time_at.get(str(row["rank"]), 0.0) + 1.0
    return {
        "schema_version": 1,
        "kind": "simulation",
        "trace": {"name": "commute (scripted)", "rows": 1200, "duration_s": 1200.0},
        "policy": {"name": "default"},
        "ladder": [{"rank": r, "dense": False, "flops_fraction": f} for r, f, _, _ in LADDER]
        + [{"rank": R, "dense": True, "flops_fraction": 1.0}],
        "timeline": timeline,
        "switches": switches,
        "summary": {
            "time_at_rung_s": time_at,
            "switches": len(switches),
            "switches_per_minute": len(switches) / 20,
            "queries": 600,
            "failed_queries": 0,
        },
    }


def _verification() -> dict[str, Any]:
    ranks = [rank for rank, *_ in LADDER] + [R]
    return {
        "schema_version": 1,
        "kind": "verification",
        "passed": True,
        "checks": [
            {
                "form": form,
                "rank": rank,
                "max_abs_diff": 2.4e-6 + rank * 1e-9,
                "tolerance": 1e-4,
                "passed": True,
                "worst_tensor": "last_hidden_state",
                "worst_batch": 3,
            }
            for form in ("static", "sliced")
            for rank in ranks
        ],
        "quality": {str(rank): {"spearman": q} for rank, _, _, q in LADDER} | {str(R): {"spearman": 1.0}},
    }


def _answer(rank: int, latency_ms: float, hits: list[tuple[float, str, str]]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "search",
        "query": "how do I run something if the file is missing?",
        "rank": rank,
        "latency_ms": latency_ms,
        "results": [{"score": score, "title": title, "text": text} for score, title, text in hits],
    }


_TRY = "The try statement specifies exception handlers and/or cleanup code for a group of statements."
_WITH = "The with statement is used to wrap the execution of a block with methods defined by a context manager."
_RAISE = "If no expressions are present, raise re-raises the exception that is currently being handled."
_IMPORT = "If the module is not found, a ModuleNotFoundError is raised."
_ASSERT = "Assert statements are a convenient way to insert debugging assertions into a program."


def _data() -> ReportData:
    return ReportData(
        profile=_profile(),
        simulation=_simulation(),
        verification=_verification(),
        top_answer=_answer(
            R,
            21.9,
            [(0.612, "try", _TRY), (0.571, "exceptions", _RAISE), (0.498, "import", _IMPORT), (0.44, "with", _WITH)],
        ),
        lowest_answer=_answer(
            48,
            8.5,
            [(0.703, "exceptions", _RAISE), (0.69, "try", _TRY), (0.655, "assert", _ASSERT), (0.6, "import", _IMPORT)],
        ),
        footprint=Footprint(bundle_bytes=134_000_000, weights_bytes=133_000_000, separate_bytes=331_000_000, rungs=5),
        commands=(
            ("Cut the model into nested factors.", "nsn-edge adapt all-MiniLM-L6-v2 -o demo/checkpoint"),
            ("Write the bundle.", "nsn-edge export demo/checkpoint -o demo/bundle"),
            ("Measure every rung.", "nsn-edge profile demo/bundle --threads 1 --sequence 128 -o demo/profile.json"),
        ),
        versions={"torch": "2.13.0", "transformers": "4.57.0"},
        quality_note="Spearman correlation of pairwise similarities with the dense model's, 500 held-out sentences.",
    )


@pytest.fixture
def report_data() -> Callable[[], ReportData]:
    """A new, unshared sample on each call."""
    return lambda: copy.deepcopy(_data())
