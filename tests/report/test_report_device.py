"""What a profile of version 2 adds to the page: the grid, energy, memory, the device over time; and Markdown."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsn_edge.errors import NsnEdgeError
from nsn_edge.report import ReportData, build_markdown, build_report, save_markdown

Sample = Callable[[], ReportData]


def document(report_data: Sample, sizes: tuple[tuple[str, int, int], ...] = (("static", 1, 128),)) -> dict[str, Any]:
    """The sample's profile as version 2, in several configurations, with everything that can be known."""
    old = dict(report_data().profile)
    configurations = []
    for form, batch, sequence in sizes:
        rungs = copy.deepcopy(old["rungs"])
        for rung in rungs:
            for key in [key for key in rung if key.endswith("_ms") and key != "load_ms"]:
                rung[key] *= batch * sequence / 128
            rung["energy_mj"] = rung["p50_ms"] * 8
            rung |= {"first_run_ms": rung["p50_ms"] * 3, "memory_mb": rung["rank"] / 4, "energy_rounds_mj": []}
            rung["turns_ms"] = [rung["p50_ms"] * (1 + 0.1 * math.sin(turn)) for turn in range(40)]
        samples = [
            {"time_s": at / 2, "temperature_c": 50 + at / 20, "cpu_mhz": 1500.0, "gpu_mhz": None} for at in range(80)
        ]
        configurations.append(
            {
                "settings": {**old["settings"], "form": form, "batch_size": batch, "sequence_length": sequence},
                "rungs": rungs,
                "peak_memory_mb": 412.3,
                "memory": {
                    "before_mb": 80.0,
                    "loaded_mb": 380.0,
                    "after_mb": 400.0,
                    "peak_is_own": True,
                    "device_mb": None,
                },
                "energy": {"kind": "counter", "method": "a counter, idle subtracted", "idle_mw": 4200.0},
                "conditions": {
                    "duration_s": 40.0,
                    "samples": samples,
                    "power_mode": "15W",
                    "steady": False,
                    "throttled": True,
                    "temperature_slope_c_per_min": 6.0,
                    "latency_change": 0.02,
                },
                "warnings": ["it throttled | a lot"],
            }
        )
    bundle = {**old["bundle"], "hash": "0"}
    return {
        "schema_version": 2,
        "kind": "profile",
        "bundle": bundle,
        "device": "some-device",
        "host": old["host"],
        "plan": None,
        "complete": True,
        "configurations": configurations,
        "failed": [],
    }


GRID = tuple((form, batch, sequence) for form in ("static", "gated") for batch in (1, 8) for sequence in (32, 128))


def test_a_page_of_a_grid(report_data: Sample) -> None:
    page = build_report(ReportData(profile=document(report_data, GRID)))
    for told in (
        "All 8 configurations",
        "static, batch 8",
        "gated, batch 1, sequence 32",
        "tokens per sequence",
        "Sequences per second",
        "Energy of an answer",
        "Idle, the device draws 4.2 W",
        "a counter, idle subtracted",
        "What each rung added",
        "+96.0 MB",
        "It throttled. Power mode: 15W.",
        "temperature, °C",
        "clock, MHz",
        "latency of each turn, × its rung's median",
    ):
        assert told in page
    assert page.count("<h3>static, batch") == 2
    for strange in ("nan", "None", "No trace was replayed", "<script"):
        assert strange not in page


def test_one_configuration_has_no_grid_and_sizes_may_be_the_batch(report_data: Sample) -> None:
    assert "configurations" not in build_report(ReportData(profile=document(report_data)))
    page = build_report(ReportData(profile=document(report_data, (("static", 1, 128), ("static", 4, 128)))))
    assert "sequences per call" in page
    assert "<h3>static, sequence 128</h3>" in page


def test_what_was_not_measured_is_said_and_never_zero(report_data: Sample) -> None:
    data = document(report_data, GRID[:2])
    for configuration in data["configurations"]:
        configuration["energy"] = {"kind": None, "method": "no sensor of energy or power answers here", "idle_mw": None}
        configuration["conditions"] |= {"samples": [], "steady": None, "throttled": None, "power_mode": None}
        configuration["memory"]["before_mb"] = None
        for rung in configuration["rungs"]:
            rung |= {"energy_mj": None, "load_ms": None, "memory_mb": None, "first_run_ms": None, "turns_ms": []}
    data["failed"] = [{"form": "gated", "batch_size": 64, "sequence_length": 8, "dimensions": {}, "error": "no <room>"}]
    page = build_report(ReportData(profile=data))
    assert "Unknown: no sensor of energy or power answers here." in page
    assert "cannot be told" in page
    assert "Too little was measured to draw it over time." in page
    assert "gated, batch 64, sequence 8: no &lt;room&gt;" in page
    assert "<h2>Memory</h2>" not in page
    assert "Millijoules of a call" not in page
    text = build_markdown([data])
    assert "Not measured: gated, batch 64, sequence 8: no &lt;room>" in text
    assert "| – | – | – | – |" in text


def test_markdown(report_data: Sample, tmp_path: Path) -> None:
    text = build_markdown([document(report_data, GRID[:2]), dict(report_data().profile)])
    assert text.count("# all-MiniLM-L6-v2: profile\n") == 2
    assert "- device key: `some-device`" in text
    assert "## static, batch 1, sequence 32\n\n| rung | rank |" in text
    assert "- warning: it throttled \\| a lot" in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in tables}) == 1  # every row has every cell
    save_markdown([report_data().profile], tmp_path / "profile.md")
    assert (tmp_path / "profile.md").read_text().startswith("# all-MiniLM-L6-v2")
    with pytest.raises(NsnEdgeError, match="profile of schema version 1 or 2"):
        build_markdown([{**report_data().profile, "schema_version": 3}])
    with pytest.raises(NsnEdgeError, match="nothing was measured"):
        build_markdown([{**document(report_data), "configurations": []}])
