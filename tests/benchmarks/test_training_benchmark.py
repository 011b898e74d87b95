"""The benchmark of recipes runs, on the digits, and its document says what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_recipes_side_by_side(tmp_path: Path) -> None:
    """The ordering of the committed table, on the data that every installation has."""
    wanted = "^(untrained, svd|paper|default|a model for each rank)$"
    line = [sys.executable, "training.py", "--data", "digits", "--seeds", "1", "--recipes", wanted]
    line += ["--kept", str(tmp_path / "kept"), "--json", str(tmp_path / "training.json")]

    def run() -> dict[str, Any]:
        done = subprocess.run(
            line,
            cwd=BENCHMARKS,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "± " not in done.stdout  # one seed has no spread
        document: dict[str, Any] = json.loads((tmp_path / "training.json").read_text())
        assert document == json.loads(done.stdout.splitlines()[-1])
        return document

    document = run()
    assert (document["kind"], document["schema_version"], document["quick"]) == ("benchmark-training", 1, False)
    rows = document["rows"]
    names = {"untrained, svd", "paper", "default", "a model for each rank"}
    assert {row["recipe"] for row in rows} == names
    assert len(rows) == 3 * 10 + 6  # ranks between the rungs have no model of their own
    assert all(0 <= row["score"] <= 100 for row in rows)
    assert {entry["arena"] for entry in document["dense"]} == {"digits"}
    at_15 = {row["recipe"]: row["score"] for row in rows if row["wanted_fraction"] == 0.15}
    assert at_15["untrained, svd"] < at_15["paper"] < at_15["default"] <= at_15["a model for each rank"]
    top = {row["recipe"]: row["top_score"] for row in rows if row["wanted_fraction"] == 1.0}
    assert top["default"] == document["dense"][0]["score"]  # the original is what ships at full power
    assert run()["rows"] == rows  # what was kept is not computed again
