"""The main job from end to end: the verbs that a user would type, one after the other, and a report of what came out.

    adapt -> export -> verify -> profile -> run (top rung, lowest rung) -> simulate -> report.html

Every step is the real command in a process of its own, so what is printed is what to type, the device verbs run
without torch in memory, and the profile is not disturbed by the training library. Each leaves its JSON in the folder.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from nsn_edge.bundle import Bundle
from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.report import Footprint, ReportData, save_report

QUERY = "how do I make sure that a file is closed even when something goes wrong"

QUALITY_NOTE = (
    "Quality is the Spearman rank correlation between all pairwise similarities of 600 held-out sentences of Python's "
    "documentation at a rung and at the dense model. No training and no labels were used; the sentences were not "
    "calibrated on."
)

TRACE_NOTE = "a scripted shift of twenty minutes, not a recording"


@dataclass(frozen=True)
class Step:
    """One verb of the demo."""

    purpose: str
    """What it does, in a few words."""
    verb: str
    """Of `nsn-edge`."""
    arguments: tuple[str, ...]
    """After the verb, as a user would type them."""
    result: str
    """The JSON file it leaves in the folder."""

    @property
    def command(self) -> str:
        """The line to type."""
        return shlex.join(["nsn-edge", self.verb, *self.arguments])


Runner = Callable[[Step, Path], None]


def run_demo(
    folder: Path,
    model: str,
    sequence_length: int,
    announce: Callable[[str], None],
    runner: Runner,
) -> Path:
    """Run every step and write the report.

    Args:
        folder: for the checkpoint, the bundle, the results and the report. What an earlier demo left is replaced.
        model: a local folder, a hub id, or `minilm`.
        sequence_length: tokens per sequence in the profile.
        announce: hears of each step before it runs.
        runner: runs a step and leaves its JSON at the path.

    Returns:
        The path of `report.html`.

    Raises:
        UsageError: `folder` is a file.
        NsnEdgeError: a step failed; it has said why.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "name a folder with -o")
    folder.mkdir(parents=True, exist_ok=True)
    commands: list[tuple[str, str]] = []
    results: dict[str, Any] = {}

    def take(step: Step) -> None:
        commands.append((step.purpose, step.command))
        announce(f"\n[{len(commands)}] {step.purpose}\n$ {step.command}")
        path = folder / step.result
        runner(step, path)
        results[step.result] = json.loads(path.read_bytes())

    checkpoint, bundle = str(folder / "checkpoint"), str(folder / "bundle")
    take(Step("cut every linear layer into nested factors", "adapt", (model, "-o", checkpoint), "adapt.json"))
    take(Step("write every rung over one weights file", "export", (checkpoint, "-o", bundle), "export.json"))
    take(Step("compare every rung with torch", "verify", (bundle, checkpoint), "verify.json"))
    sequence = ("--sequence", str(sequence_length))
    take(Step("measure every rung on this machine", "profile", (bundle, *sequence), "profile.json"))
    lowest = str(Bundle.open(folder / "bundle", check_hashes=False).manifest.ladder.ranks[0])
    query = (bundle, "--threads", "0", "--query", QUERY)
    take(Step("ask the full model", "run", query, "answer-top.json"))
    take(Step("ask the smallest rung", "run", (*query, "--rank", lowest), "answer-lowest.json"))
    take(Step("replay a shift in the field", "simulate", (bundle,), "simulation.json"))

    opened = Bundle.open(folder / "bundle", check_hashes=False)
    report = folder / "report.html"
    data = ReportData(
        profile=results["profile.json"],
        simulation=results["simulation.json"],
        verification=results["verify.json"],
        top_answer=results["answer-top.json"],
        lowest_answer=results["answer-lowest.json"],
        footprint=Footprint.from_bundle(opened),
        commands=commands,
        versions=opened.manifest.created_by,
        trace_note=TRACE_NOTE,
        quality_note=QUALITY_NOTE,
    )
    save_report(data, report)
    return report


def run_step(step: Step, result: Path, output: TextIO | None = None) -> None:
    """Run a step as a process of its own on this terminal.

    Args:
        step: what to run.
        result: where its JSON goes.
        output: takes what the step prints for people; None for this process's stdout.

    Raises:
        NsnEdgeError: it exited with another code than 0; its own line on stderr has said why.
        KeyboardInterrupt: it was interrupted.
    """
    line = [sys.executable, "-m", "nsn_edge", step.verb, *step.arguments, "--json-file", str(result)]
    code = subprocess.run(line, check=False, stdout=output).returncode
    if code in (130, -2):
        raise KeyboardInterrupt
    if code != 0:
        raise NsnEdgeError(f"the demo stopped: {step.command} failed with exit code {code}", "its message is above")
