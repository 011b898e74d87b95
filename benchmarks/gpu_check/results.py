"""The document of a check, its targets, and the tables for people."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import Target, commit
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpu_check.section import FAILED, OK, Plan, Results
from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.runtimes.profiling.host import describe_host

NOTHING_MEASURED = 3
OF_IDEAL, SWITCH_MS, ADDED_SHARE = 1.15, 1.0, 0.05
_WIDE = "layers of 4096"


def document(plan: Plan, done: Mapping[str, Results]) -> dict[str, Any]:
    """What is known so far."""
    return {
        "schema_version": 1,
        "kind": "benchmark-gpu",
        "commit": commit(),
        "host": describe_host().to_json(),
        "settings": {"device": plan.device, "quick": plan.quick},
        "targets": [target.to_json() for target in targets(plan, done)],
        "sections": {name: results.to_json() for name, results in done.items()},
    }


def targets(plan: Plan, done: Mapping[str, Results]) -> list[Target]:
    """The targets, where there is a figure; none of a trial on the processor."""
    if plan.device == "cpu":
        return []
    found: list[Target] = []
    for name, results in done.items():
        rows = [row for row in results.rows if _WIDE in str(row["model"]) and not row["dense"]]
        for form, workload, batch in sorted({(r["form"], r["workload"], r["batch_size"]) for r in rows}):
            same = [r for r in rows if (r["form"], r["workload"], r["batch_size"]) == (form, workload, batch)]
            worst = max(row["of_ideal"] for row in same)
            found.append(
                Target(f"{name}: {form}, {workload}, batch {batch}: latency of ideal, worst rung", worst, OF_IDEAL)
            )
        if results.switches:
            worst = max(row["added_p99_ms"] for row in results.switches)
            found.append(Target(f"{name}: switch p99, ms, worst", worst, SWITCH_MS))
        if results.memory:
            worst = max(row["of_weights"] for row in results.memory)
            found.append(Target(f"{name}: an added rung's share of the weights, worst", worst, ADDED_SHARE))
        if results.parity:
            worst = max(row["difference"] / row["limit"] for row in results.parity)
            found.append(Target(f"{name}: difference to the reference, of its limit, worst rung", worst, 1.0))
    return found


def exit_code(done: Mapping[str, Results], measuring: Collection[str]) -> int:
    """0 something was measured and nothing failed; 1 a section failed; 3 nothing was measured."""
    if any(results.status == FAILED for results in done.values()):
        return 1
    return 0 if any(done[name].status == OK for name in done if name in measuring) else NOTHING_MEASURED


def save_document(data: Mapping[str, Any], folder: Path) -> None:
    """Write `gpu.json` in one step."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1)
    atomic_write_bytes(folder / "gpu.json", text.encode() + b"\n")


def publish_check(data: Mapping[str, Any], folder: Path) -> None:
    """Print tables and the JSON line; write `gpu.json` and `gpu.txt`."""
    save_document(data, folder)
    text = io.StringIO()
    for console in (Console(width=150, highlight=False), Console(file=text, width=150, highlight=False)):
        for table in _tables(data):
            console.print(table)
        for name, section in data["sections"].items():
            for note in section["notes"]:
                console.print(f"{name}: {note}", markup=False)
    atomic_write_bytes(folder / "gpu.txt", text.getvalue().encode())
    print(json.dumps(data, ensure_ascii=False, allow_nan=False))


def _tables(data: Mapping[str, Any]) -> list[Table]:
    sections: Mapping[str, Any] = data["sections"]
    tables = [
        _table(
            "Sections",
            ("section", "status", "s", "why"),
            [(name, s["status"], f"{s['seconds']:.0f}", s["why"]) for name, s in sections.items()],
        )
    ]
    rows = [
        (
            *(name, row["model"], f"{row['form']} {row.get('dtype', '')}", f"{row['workload']} {_length(row)}"),
            *(str(row["batch_size"]), "dense" if row["dense"] else str(row["rank"]), f"{row['flops_fraction']:.0%}"),
            *(f"{row['p50_ms']:.4g}", f"{row['relative_to_dense']:.2f}", f"{row['of_ideal']:.2f}"),
            "–" if row["energy_mj"] is None else f"{row['energy_mj']:.3g}",
        )
        for name, section in sections.items()
        for row in section["rows"]
    ]
    headings = ("section", "model", "form", "workload", "batch", "rank", "FLOPs", "p50 ms", "× dense", "of ideal", "mJ")
    tables += [_table("Latency", headings, rows)] if rows else []
    rows = [
        (name, row["model"], row["form"], row["workload"], f"{row['select_p99_ms']:.3g}", f"{row['added_p99_ms']:.3g}")
        for name, section in sections.items()
        for row in section["switches"]
    ]
    headings = ("section", "model", "form", "workload", "select p99 ms", "added p99 ms")
    tables += [_table("Switches", headings, rows)] if rows else []
    rows = [
        (
            name,
            row["model"],
            row["form"],
            str(row["rank"]),
            f"{row['added_bytes'] / 1e6:.1f}",
            f"{row['of_weights']:.1%}",
        )
        for name, section in sections.items()
        for row in section["memory"]
    ]
    tables += (
        [_table("Memory of an added rung", ("section", "model", "form", "rank", "MB", "of weights"), rows)]
        if rows
        else []
    )
    rows = [
        (
            name,
            row["model"],
            row.get("form", ""),
            str(row["rank"]),
            row["against"],
            f"{row['difference']:.2g}",
            f"{row['limit']:g}",
            "ok" if row["ok"] else "[bold red]NO[/]",
        )
        for name, section in sections.items()
        for row in section["parity"]
    ]
    headings = ("section", "model", "form", "rank", "against", "difference", "limit", "")
    tables += [_table("Parity", headings, rows)] if rows else []
    verdicts = [
        (
            t["name"],
            f"{t['value']:.4g}",
            f"{t['relation']} {t['limit']:g}",
            "met" if t["met"] else "[bold red]MISSED[/]",
        )
        for t in data["targets"]
    ]
    tables += [_table("Targets", ("figure", "measured", "must be", ""), verdicts)] if verdicts else []
    return tables


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(cell if cell.startswith("[bold red]") else escape(cell) for cell in row))
    return table


def _length(row: Mapping[str, Any]) -> str:
    parts = {
        "tokens": row.get("tokens") or row.get("sequence_length"),
        "past": row.get("past") or row.get("past_sequence_length"),
    }
    return ", ".join(f"{name} {n}" for name, n in parts.items() if n)
