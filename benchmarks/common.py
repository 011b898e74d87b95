"""What the benchmarks share: a bundle to measure, where the figures came from, tables and JSON.

Each script prints a table for people and, as its last line, one JSON document for programs; `--json FILE` writes the
same document to a file. Figures are ratios within one run: machines are shared, and absolute times move.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.runtimes.profiling.host import describe_host

if TYPE_CHECKING:
    from nsn_edge.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Target:
    """A figure that a run must show."""

    name: str
    """What is measured."""
    value: float
    """What came out."""
    limit: float
    """What it is held to."""
    at_least: bool = False
    """Whether the limit is a lower one."""

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        relation = ">=" if self.at_least else "<="
        return {"name": self.name, "value": self.value, "relation": relation, "limit": self.limit, "met": self.met}


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON document here too")
    parser.add_argument("--checkpoint", type=Path, help="measure this checkpoint; default: adapt MiniLM anew")
    return parser


@contextmanager
def workspace(checkpoint: Path | None) -> Iterator[tuple[Path, Checkpoint]]:
    """A temporary folder, and the checkpoint to measure: the one given, or MiniLM cut here and now."""
    from nsn_edge.adaptation import adapt  # here: not every benchmark needs torch
    from nsn_edge.checkpoint import Checkpoint

    with tempfile.TemporaryDirectory(prefix="nsn-edge-bench-") as name:
        folder = Path(name)
        if checkpoint is None:
            print("adapting MiniLM ...", file=sys.stderr)
            checkpoint = folder / "checkpoint"
            adapt().save(checkpoint)
        yield folder, Checkpoint.load(checkpoint)


def publish(
    kind: str, results: Mapping[str, Any], targets: Sequence[Target], tables: Sequence[Table], file: Path | None
) -> None:
    """Print the tables, the targets and the JSON line; write the file."""
    console = Console(width=140, highlight=False)
    host = describe_host()
    for table in tables:
        console.print(table)
    verdicts = Table(title="Targets", title_justify="left")
    for heading in ("figure", "measured", "must be", ""):
        verdicts.add_column(heading, justify="left" if heading in ("figure", "") else "right")
    for target in targets:
        goal = target.to_json()
        met = "met" if target.met else "[bold red]MISSED[/]"
        verdicts.add_row(target.name, f"{target.value:.4g}", f"{goal['relation']} {target.limit:g}", met)
    console.print(verdicts)
    console.print(host.summary())
    document = {
        "schema_version": 1,
        "kind": kind,
        "commit": commit(),
        "host": host.to_json(),
        "targets": [target.to_json() for target in targets],
        **results,
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    if file is not None:
        atomic_write_bytes(file, json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n")
    print(text)


def commit() -> str | None:
    """The commit that is measured, with `+` when files differ from it; None outside a checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        # A result file that this very run replaces is no change of what is measured.
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(("git", *words), cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def percentile(samples: Sequence[float], q: float) -> float:
    """The `q`-th percentile, interpolated linearly."""
    import numpy as np

    return float(np.percentile(samples, q))
