"""`nsn-edge report`: one page from the profiles of a model's bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from nsn_edge.cli.common import emit, verb_options
from nsn_edge.errors import NsnEdgeError, UsageError


@click.command(name="report")
@click.argument("profiles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The page: an HTML file, or Markdown if it ends in .md.",
)
@verb_options
def command(profiles: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Draw the PROFILES (made by `profile`) of one model as a page that opens offline, or as Markdown tables.

    A page shows every configuration, energy, memory, and heat over time where the profile has them.

    With several, of a bundle each in another precision, it says which rank in which precision to deploy for each
    latency. The first one's rungs are described in full.
    """
    from nsn_edge.report import ReportData, save_markdown, save_report

    first, *others = [_read(path) for path in profiles]
    if output.suffix.lower() in (".md", ".markdown"):
        save_markdown([first, *others], output)
    else:
        save_report(ReportData(profile=first, others=others), output)
    data = {"schema_version": 1, "kind": "report", "path": str(output), "profiles": [str(path) for path in profiles]}

    def render(console: Console) -> None:
        console.print(f"{output}: {len(profiles)} profile{'s' if others else ''}", markup=False)

    emit(data, render, as_json)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"no profile at {path}", "make one with: nsn-edge profile BUNDLE -o FILE")
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise NsnEdgeError(f"{path} is not readable JSON: {error}", "profile the bundle again") from error
    if not isinstance(data, dict) or data.get("kind") != "profile":
        raise UsageError(f"{path} is not a profile", "make one with: nsn-edge profile BUNDLE -o FILE")
    return data
