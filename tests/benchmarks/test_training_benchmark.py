"""The benchmark of recipes runs, on the digits, and its document says what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_recipes_side_by_side(tmp_path: Path) -> None:
    line = [sys.executable, "training.py", "--quick", "--data", "digits", "--recipes", "svd,paper + sand,rungs"]
    done = subprocess.run(
        [*line, "--json", str(tmp_path / "training.json")],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads((tmp_path / "training.json").read_text())
    assert document == json.loads(done.stdout.splitlines()[-1])
    assert (document["kind"], document["schema_version"], document["quick"]) == ("benchmark-training", 1, True)
    rows = document["rows"]
    names = {"untrained, svd", "paper + sandwich", "default, rungs alone"}
    assert {row["recipe"] for row in rows} == names
    assert len(rows) == len(names) * 10
    assert all(0 <= row["score"] <= 100 for row in rows)
    assert {entry["arena"] for entry in document["dense"]} == {"digits"}
    untrained, trained = (
        next(row["score"] for row in rows if row["recipe"] == name and row["wanted_fraction"] == 0.15)
        for name in ("untrained, svd", "default, rungs alone")
    )
    assert trained > untrained
    assert "± " not in done.stdout  # one seed has no spread
