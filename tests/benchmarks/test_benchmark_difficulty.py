"""The benchmark of difficulty, in small: a tiny encoder learns three intents, and the document fits together."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tiny_encoder import write_encoder_folder

from nsn_edge.cli import main
from nsn_edge.cli.common import run_main

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORDS = {"open": "file object value", "stop": "error statement class", "count": "and if the"}


def write_intents(path: Path) -> Path:
    """CLINC150's layout: three intents told by their words, among words that say nothing."""
    rows = [
        (f"{word} {first} {word} {second}", intent)
        for intent, words in WORDS.items()
        for word, first, second in itertools.product(
            words.split(), ("a", "is", "of", "to"), ("a1", "b2", "c3", "d4", "e5")
        )
    ]
    rows = rows * 4
    path.write_text(json.dumps({"train": rows, "val": rows[::-1], "test": rows}))
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("difficulty")
    model, checkpoint, file = write_encoder_folder(folder / "model"), folder / "checkpoint", folder / "r.json"
    assert run_main(main, ["adapt", str(model), "-o", str(checkpoint), "--calibration-sentences", "20"]) == 0
    plot, data = folder / "plot.svg", write_intents(folder / "data.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        benchmark = importlib.import_module("difficulty")
        patch.setattr(benchmark, "TIMED_TEXTS", 20)
        arguments = ["--quick", "--checkpoint", checkpoint, "--data", data, "--plot", plot, "--json", file]
        patch.setattr(sys, "argv", ["difficulty.py", *map(str, arguments)])
        benchmark.main()
    loaded: dict[str, Any] = json.loads(file.read_text())
    loaded["plot"] = plot
    return loaded


def test_rules_are_judged_on_texts_that_they_were_not_calibrated_on(results: dict[str, Any]) -> None:
    assert (results["kind"], results["schema_version"]) == ("benchmark-difficulty", 1)
    assert results["examples"] == {"val": 720, "test": 240}
    ranks = [row["rank"] for row in results["rungs"]]
    assert ranks == sorted(ranks)
    assert results["rungs"][-1]["loss_points"] == 0
    shares = {row["rank"]: row["flops_fraction"] for row in results["rungs"]}
    assert results["rules"], "the tiny encoder tells the intents apart"
    for row in [*results["rules"], *results["chains"]]:
        assert row["loss_bound_points"] <= row["max_loss_points"]
        assert row["on_held_out"]["examples"] == 720
        found = row["on_test"]
        assert found["examples"] == 240
        assert found["loss_points"] <= 100 * found["spoilt"] / 240 + 1e-9
        if len(row["ranks"]) == 2:
            low, top = (shares[rank] for rank in row["ranks"])
            assert found["flops_fraction"] == pytest.approx(low + found["passed_on"] * top)
    assert {row["labelled"] for row in results["rules"]} == {True, False}


def test_what_onnxruntime_serves_is_what_the_logits_foretell(results: dict[str, Any]) -> None:
    chosen, served = results["rules"][results["chosen"]], results["served"]
    assert served["answers"] == 240
    assert served["mean_flops_fraction"] == pytest.approx(chosen["on_test"]["flops_fraction"], abs=0.01)
    assert served["right"] == pytest.approx(chosen["on_test"]["right"], abs=0.01)
    assert results["latency"]["texts"] == 20
    assert {target["limit"] for target in results["targets"]} == {0.5, 0.6}
    svg = ElementTree.fromstring(results["plot"].read_text())
    assert "test texts of CLINC150" in "".join(svg.itertext())
