"""The benchmark of overheads, tried on a tiny bundle: that it runs, and that its document hangs together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tiny_bundle import ALL_RUNGS, TinyModel

ROOT = Path(__file__).resolve().parents[2]


def test_it_runs_and_its_figures_fit_together(text_bundle: tuple[Path, TinyModel], tmp_path: Path) -> None:
    file = tmp_path / "overhead.json"
    line = [sys.executable, str(ROOT / "benchmarks" / "overhead.py"), "--quick"]
    line += ["--bundle", str(text_bundle[0]), "--json", str(file)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads(file.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == document
    assert (document["schema_version"], document["kind"]) == (1, "benchmark-overhead")
    decide = document["decide"]
    assert decide["n"] > 300
    assert 0 < decide["p50_us"] <= decide["p99_us"]
    orin, own = document["sampler"]
    assert set(orin["known"]) >= {"temperature_c", "power_mw", "gpu_load_pct"}
    for run in (orin, own):
        assert run["cpu_share"] > 0
        assert run["reads_per_s"] > 0
    sleeping, model = document["queue"]
    assert sleeping["call_ms"] >= 5.0
    assert model["rank"] in ALL_RUNGS
    for run in (sleeping, model):
        assert all(run[f"{way}_{unit}"] > 0 for way in ("direct", "session", "server") for unit in ("ms", "cpu_us"))
    assert [target["limit"] for target in document["targets"]] == [50.0, 0.01, 0.01, 0.03, 0.03, 0.03, 0.03]
