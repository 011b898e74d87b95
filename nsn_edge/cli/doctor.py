"""`nsn-edge doctor`: what this device has, what its sensors answer, and what to install or allow for what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nsn_edge.cli.common import emit, verb_options
from nsn_edge.errors import EngineError

if TYPE_CHECKING:
    from nsn_edge.runtimes.doctor import Diagnosis

_MARKS = {"present": "[green]✓[/]", "absent": "[dim]–[/]", "faulty": "[red]✗[/]"}


@click.command(name="doctor")
@verb_options
def command(as_json: bool) -> None:
    """Say which engines, GPUs and tools this device has, what each sensor answers now or why it does not, and what to
    install or allow for the missing ones.

    Exits with 1 only when nothing here can run a bundle.
    """
    from nsn_edge.runtimes.doctor import examine

    diagnosis = examine()
    emit(diagnosis.to_json(), lambda console: render(console, diagnosis), as_json)
    if not diagnosis.can_run:
        raise EngineError("nothing on this device can run a bundle", "pip install 'nsn-edge[ort]'")


def render(console: Console, diagnosis: Diagnosis) -> None:
    """One table per area, then what to install or allow."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    area = None
    for finding in diagnosis.findings:
        if finding.area != area:
            if area is not None:
                table.add_row()
            area = finding.area
            table.add_row("", f"[bold]{area}[/]")
        table.add_row(_MARKS[finding.status.value], escape(finding.name), escape(finding.detail))
    console.print(table)
    gains: dict[str, list[str]] = {}
    for finding in diagnosis.findings:
        if finding.install:
            gains.setdefault(finding.install, []).append(f"{finding.name}: {finding.gives}")
    if gains:
        console.print("\n[bold]to install or allow[/]")
    for install, items in gains.items():
        console.print(f"  {install}", markup=False, soft_wrap=True)
        for item in items:
            console.print(f"      {item}", markup=False)
    if diagnosis.can_run:
        console.print("\nthis device can run bundles")
