"""The benchmark of policies with one seed: its document, and that it says what it skips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from shared_data import shared_data

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "benchmarks" / "policies.py")


def test_it_runs_and_compares_what_it_promises(tmp_path: Path) -> None:
    shared_data("telemetry")
    file = tmp_path / "policies.json"
    line = [sys.executable, SCRIPT, "--quick", "--json", str(file)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads(file.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == document
    assert document["kind"] == "benchmark-policies"
    rows = {row["policy"]: row for row in document["rows"]}
    assert {f"rank {rung['rank']}" for rung in document["settings"]["rungs"]["rungs"]} < set(rows)
    for name in ("field", "without pi", "without energy", "without deadline", "thresholds"):
        assert rows[name]["requests"] == rows["field"]["requests"]
    # The simulation is deterministic, so its targets are no matter of the machine's mood.
    assert [target["name"] for target in document["targets"] if not target["met"]] == []
    # Each limiter earns its place: without it a limit is broken, or more requests miss their deadline.
    assert rows["without pi"]["limits_broken"] == ["temperature"]
    assert rows["without energy"]["limits_broken"] == ["battery"]
    assert rows["without deadline"]["miss_fraction"] > 2 * rows["field"]["miss_fraction"]
    assert rows["field"]["limits_broken"] == []
    assert all(row["oracle_fraction"] <= 1.0 for row in rows.values() if not row["limits_broken"])


def test_without_the_recording_it_says_so(tmp_path: Path) -> None:
    line = [sys.executable, SCRIPT, "--json", str(tmp_path / "policies.json")]
    environment = {**os.environ, "NSN_EDGE_DATA": str(tmp_path)}
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0
    assert "skipped: no recorded trace at" in done.stdout
    assert not (tmp_path / "policies.json").exists()
