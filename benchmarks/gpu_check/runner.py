"""One process per section, each with a time limit; the document is written after each."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpu_check.results import document, save_document
from gpu_check.section import FAILED, NOT_RUN, OK, NotHereError, Plan, Results, Section
from nsn_edge.atomic import atomic_write_bytes

__all__ = ["MEASURING", "SECTIONS", "Plan", "run_child", "run_sections"]

SECTIONS = {
    "machine": 30.0,
    "bundles": 150.0,
    "torch-layers": 110.0,
    "torch-decoder": 90.0,
    "onnxruntime-cuda": 90.0,
    "onnxruntime-tensorrt": 120.0,
    "tensorrt": 120.0,
    "tensorrt-rtx": 120.0,
}
"""The sections in their order, and the seconds that each may take."""

MEASURING = frozenset(SECTIONS) - {"machine", "bundles"}

_ENGINES = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx")
_GRACE_S = 10.0  # to end by itself, after the last part that it may begin
_ENTRY = Path(__file__).resolve().parent.parent / "gpu.py"


def run_sections(plan: Plan, names: Sequence[str], time_limit_s: float) -> dict[str, Results]:
    """Run each section in a process; never raises for what becomes of them."""
    deadline = time.monotonic() + time_limit_s
    done: dict[str, Results] = {}
    for number, name in enumerate(names):
        # Each its share of what is left: a section that cannot run ends at once and leaves its share to the others.
        left_s = deadline - time.monotonic() - 5.0
        limit_s = SECTIONS[name] * min(1.0, left_s / sum(SECTIONS[later] for later in names[number:]))
        if plan.prepare:  # nothing is measured: the bundles may take their time
            limit_s = left_s
        if limit_s < 5.0:
            done[name] = Results(NOT_RUN, f"no time was left of {time_limit_s:.0f} s")
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)
            done[name] = _run_process(plan, name, limit_s)
        print(f"    {done[name].status} {done[name].why}".rstrip(), file=sys.stderr, flush=True)
        save_document(document(plan, done), plan.output)
    return done


def run_child(name: str, plan: Plan, limit_s: float) -> int:
    """Be the process of a section: fill its file."""
    results = Results()
    file = _file(plan, name)

    def save() -> None:
        atomic_write_bytes(file, json.dumps(results.to_json(), allow_nan=False).encode())

    section = Section(plan, results, save, limit_s)
    began = time.monotonic()
    try:
        _function(name)(section)
    except NotHereError as reason:
        results.status, results.why = NOT_RUN, str(reason)
    results.seconds = round(time.monotonic() - began, 2)
    save()
    return 0


def _function(name: str) -> Callable[[Section], None]:
    """Imported here, so that the parent needs neither torch nor an engine."""
    if name in _ENGINES:
        found: Callable[..., None] = importlib.import_module("gpu_check.engines").run
        return partial(found, backend=name)
    function: Callable[[Section], None] = importlib.import_module(f"gpu_check.{name.replace('-', '_')}").run
    return function


def _run_process(plan: Plan, name: str, limit_s: float) -> Results:
    file = _file(plan, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    command = [sys.executable, str(_ENTRY), "-o", str(plan.output), "--child", name, "--device", plan.device]
    command += ["--limit", f"{limit_s:.1f}", *(["--quick"] if plan.quick else [])]
    command += [] if plan.export else ["--bundles", str(plan.bundles)]
    command += ["--prepare"] if plan.prepare else []
    began = time.monotonic()
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=limit_s + _GRACE_S, check=False)
        end = "" if process.returncode == 0 else _died(process.returncode, process.stderr)
    except subprocess.TimeoutExpired:
        end = f"stopped after {limit_s + _GRACE_S:.0f} s"
    results = _read(file)
    if end:  # what it saved before is kept
        results.status, results.why = FAILED, f"{end}{'; before that: ' + results.why if results.why else ''}"
    results.seconds = results.seconds or round(time.monotonic() - began, 2)
    if results.status == OK and not (results.rows or results.facts or results.parity):
        results.status, results.why = NOT_RUN, "; ".join(results.notes) or "it found nothing to do"
    return results


def _died(code: int, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = f": {lines[-1][:300]}" if lines else ""
    return f"killed by signal {-code}{last}" if code < 0 else f"ended with {code}{last}"


def _read(file: Path) -> Results:
    try:
        data: dict[str, Any] = json.loads(file.read_bytes())
        return Results(**data)
    except (OSError, ValueError, TypeError):
        return Results()


def _file(plan: Plan, name: str) -> Path:
    return plan.output / "parts" / f"{name}.json"
