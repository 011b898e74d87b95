"""The benchmark of idle rungs' threads, in small: every setting is measured on the same rungs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from tiny_encoder import write_encoder_folder

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_setting_is_measured_on_the_same_rungs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, checkpoint, file = write_encoder_folder(tmp_path / "model"), tmp_path / "checkpoint", tmp_path / "r.json"
    assert run_main(main, ["adapt", str(model), "-o", str(checkpoint), "--calibration-sentences", "20"]) == 0
    monkeypatch.syspath_prepend(BENCHMARKS)
    spinning = importlib.import_module("spinning")
    monkeypatch.setattr(spinning, "TOKENS", (4, 8))
    monkeypatch.setattr(spinning, "WORDS", 40)
    arguments = ["spinning.py", "--repetitions", "2", "--checkpoint", str(checkpoint), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    spinning.main()
    results = json.loads(file.read_text())
    assert results["kind"] == "benchmark-spinning"
    places: dict[str, list[tuple[int, int]]] = {}
    for row in results["rows"]:
        places.setdefault(row["setting"], []).append((row["tokens"], row["rank"]))
        assert row["in_turns_ms"] > 0
        assert row["alone_ms"] > 0
    assert list(places) == ["default", "stop at end", "never"]
    assert len({tuple(found) for found in places.values()}) == 1
    (target,) = results["targets"]
    taken = {(row["setting"], row["tokens"], row["rank"]): row["in_turns_ms"] for row in results["rows"]}
    ratios = [taken["stop at end", tokens, rank] / taken["default", tokens, rank] for tokens, rank in places["default"]]
    assert target["value"] == pytest.approx(max(ratios))


def test_the_engine_uses_the_setting_that_was_measured() -> None:
    from nsn_edge.runtimes.engines import OnnxRuntimeEngine

    onnxruntime = pytest.importorskip("onnxruntime")
    options = OnnxRuntimeEngine(threads=2)._options(onnxruntime)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
