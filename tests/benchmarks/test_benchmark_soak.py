"""The soak test for a few seconds on a tiny bundle: every fault is met, every request is accounted for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import ALL_RUNGS, TinyModel

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="it reads resident memory from /proc")
def test_seconds_of_chaos(text_bundle: tuple[Path, TinyModel], tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    line = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--minutes", "0.1", "--seed", "5"]
    line += ["--bundle", str(text_bundle[0]), "--json", str(file)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads(file.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == document
    assert (document["kind"], document["seed"]) == ("benchmark-soak", 5)
    requests = document["requests"]
    assert requests["wrong"] == 0, document["lost"]
    ends = ("answered", "expired", "rejected", "cancelled", "refused", "lost")
    assert sum(requests[end] for end in ends) == requests["sent"] > 50
    assert requests["lost"] <= requests["sent"] / 100, document["lost"]  # three failures at once may come by chance
    assert {int(rank) for rank in document["ranks_seen"]} <= set(ALL_RUNGS)
    assert document["faults"]["loads"] + document["faults"]["runs"] > 0
    assert sum(document["faults"]["telemetry"].values()) > 0
    assert [point["at_s"] for point in document["memory"]["checkpoints"]] == pytest.approx([0.0, 1.2, 6.0])
    assert document["events"]["loaded"] > 3
