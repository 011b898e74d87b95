"""What the sections are put together from."""

from __future__ import annotations

from collections.abc import Sequence

from nsn_edge.report.markup import Child, Markup, el
from nsn_edge.report.style import RungColours


def section(title: str, *children: Child) -> Markup:
    """A part of the report under its heading."""
    return el("section", el("h2", title), *children)


def missing(sentence: str) -> Markup:
    """A sentence where a part would be."""
    return el("p", sentence, class_="soft")


def table(header: Sequence[Child], rows: Sequence[Markup], caption: str | None, class_: str | None = None) -> Markup:
    """A table of header cells and rows. A table wider than a phone scrolls by itself, and by keyboard too."""
    head = el("caption", el("span", caption)) if caption else None
    body = el("table", head, el("thead", el("tr", *header)), el("tbody", rows), class_=class_)
    return el("div", body, class_="scroll", tabindex="0", role="region" if caption else None, aria_label=caption)


def rung_name(rank: int, label: str, colours: RungColours) -> list[Markup | str]:
    """A rung in its colour, by its label."""
    return [el("span", class_="dot", style=f"background:{colours(rank)}"), label]
