"""The benchmark of rank and precision, in small: what it prints fits together."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_encoder import write_encoder_folder

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    model, checkpoint, file = write_encoder_folder(tmp_path / "model"), tmp_path / "checkpoint", tmp_path / "r.json"
    assert run_main(main, ["adapt", str(model), "-o", str(checkpoint), "--calibration-sentences", "20"]) == 0
    monkeypatch.syspath_prepend(BENCHMARKS)
    precision = importlib.import_module("precision")
    monkeypatch.setattr(precision, "TOKENS", (8, 16))
    monkeypatch.setattr(precision, "LIMITS", {8: 0.7, 16: 0.85})
    monkeypatch.setattr(precision, "WORDS", 40)
    arguments = ["precision.py", "--quick", "--checkpoint", str(checkpoint), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    precision.main()
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def test_every_rung_in_every_precision_stands_beside_the_dense_one(results: dict[str, Any]) -> None:
    assert results["kind"] == "benchmark-precision"
    workloads = {row["workload"] for row in results["rows"]}
    assert workloads == {"8 tokens", "16 tokens", "decode 1 after 64"}
    for workload in workloads:
        rows = [row for row in results["rows"] if row["workload"] == workload]
        precisions = {row["precision"] for row in rows}
        assert precisions == ({"fp32", "int8", "int4"} if workload.startswith("decode") else {"fp32", "int8"})
        for precision in precisions:
            ranks = [row["rank"] for row in rows if row["precision"] == precision and row["rank"]]
            assert ranks == sorted(ranks)
            assert len(ranks) >= 4
            (dense,) = [row for row in rows if row["precision"] == precision and row["dense"] and row["rank"]]
            assert dense["relative_to_dense"] == 1
            if precision == "fp32":
                assert all(row["quality_cost"] == 0 for row in rows if row["precision"] == "fp32")
    assert len([row for row in results["rows"] if row["rank"] is None]) == 2, "the default int8, once a length"
    for found in results["operators"].values():
        assert {"DynamicQuantizeMatMul", "LayerNormalization"} <= set(found)
    assert {(row["tokens"], row["rank"]) for row in results["split"]} == {
        (tokens, row["rank"])
        for tokens in (8, 16)
        for row in results["rows"]
        if row["precision"] == "int8" and row["rank"] and row["workload"] == f"{tokens} tokens"
    }
    for row in results["split"]:
        assert row["products_ms"] + row["other_ms"] == pytest.approx(row["ms"])
        assert 0 < row["products_ms"] <= row["ms"]
    assert {target["limit"] for target in results["targets"]} == {0.7, 0.85, 0.5, 0.30}
    sizes = results["disk"]
    decoder = {name.split(", ")[1]: size for name, size in sizes.items() if "Llama" in name}
    assert decoder["int4"] < decoder["int8"] < decoder["fp32"]
