"""The benchmark of building engines, tried on a tiny decoder: real engines, its document, its targets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_it_runs_and_its_figures_fit_together(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install '.[rtx]'")
    file = tmp_path / "build.json"
    line = [
        sys.executable,
        str(ROOT / "benchmarks" / "build.py"),
        "--quick",
        "--precision",
        "fp32",
        "--json",
        str(file),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads(file.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == document
    assert (document["schema_version"], document["kind"]) == (1, "benchmark-build")
    engines = document["engines"]
    by_way = {way: [e for e in engines if e["way"] == way] for way in ("rung", "dedicated", "dynamic", "one profile")}
    assert [len(found) for found in by_way.values()] == [2, 2, 1, 1]
    ranks = [engine["rank"] for engine in by_way["rung"]]
    assert by_way["dynamic"][0]["profiles"] == [[1, ranks[0]], [ranks[0] + 1, ranks[1]]]
    assert by_way["one profile"][0]["profiles"] == [[1, ranks[1]]]
    for engine in engines:
        assert engine["size_bytes"] > 0
        assert engine["seconds"] > 0
        assert 0 < engine["room"]["disk"] < 1
        assert engine["peak_bytes"] > engine["size_bytes"]
    sums = {total["way"]: total["size_bytes"] for total in document["totals"]}
    assert sums["rung"] == sum(engine["size_bytes"] for engine in by_way["rung"])
    assert all(abs(ratio["bytes"] - 1) < 0.02 for ratio in document["ratios"])
    assert all(target["met"] for target in document["targets"])
