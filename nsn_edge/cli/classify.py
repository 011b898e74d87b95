"""The part of `nsn-edge run` that labels texts: its options, and what it prints."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape

from nsn_edge.cli.common import emit

if TYPE_CHECKING:
    from nsn_edge.runtimes.difficulty import Cascade, DifficultyRule
    from nsn_edge.runtimes.session import EdgeSession

_SHOWN_CHARS = 80

_OPTIONS = (
    click.option("--text", "label_texts", multiple=True, help="Label this text with a classifier. Repeat it."),
    click.option(
        "--difficulty",
        "difficulty_file",
        type=click.Path(path_type=Path),
        help="With --text: easy texts at a low rung, uncertain ones again at a higher, by this rule (made by "
        "nsn-edge difficulty). --rank, --flops or --policy then set the highest rung. Default: the rule in the policy.",
    ),
)


@dataclass(frozen=True)
class Classifying:
    """What to label, and how, as it was typed."""

    texts: tuple[str, ...]
    """None for lines from stdin, or for a run of another kind."""
    difficulty_file: Path | None
    """The rule; None for the session's rank alone."""

    def rule(self) -> DifficultyRule | None:
        """The rule, checked.

        Raises:
            PolicyError: the file cannot be read, or makes no sense.
        """
        from nsn_edge.runtimes.difficulty import load_rule

        return None if self.difficulty_file is None else load_rule(self.difficulty_file)


def classify_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of labelling to a verb; it gets them as one keyword, `classifying`."""

    @functools.wraps(function)
    def gathered(label_texts: tuple[str, ...], difficulty_file: Path | None, **others: Any) -> None:
        function(classifying=Classifying(label_texts, difficulty_file), **others)

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_OPTIONS), gathered)


def classify_texts(session: EdgeSession, texts: Iterable[str], rule: DifficultyRule | None, as_json: bool) -> None:
    """Label one text after the other; for programs a document each."""
    from nsn_edge.runtimes.classification import TextClassifier
    from nsn_edge.runtimes.difficulty import Cascade

    cascade = None if rule is None else Cascade(session, rule)
    classifier = TextClassifier(session)
    for text in texts:
        (found,) = classifier.classify([text], cascade=cascade)

        def render(console: Console, found: Any = found) -> None:
            shown = found.text if len(found.text) <= _SHOWN_CHARS else found.text[: _SHOWN_CHARS - 2] + " …"
            console.print(f"[bold]{escape(found.label)}[/]  {found.probability:.1%}  {escape(shown)}", soft_wrap=True)
            why = f": {found.why}" if found.why else ""
            console.print(f"  rank {found.rank}, {found.latency_ms:.1f} ms{why}", markup=False, soft_wrap=True)

        emit(found.to_json(), render, as_json)
    if cascade is not None:
        click.echo(_summary(cascade), err=True)


def _summary(cascade: Cascade) -> str:
    counts = cascade.counts
    if counts.mean_flops_fraction is None or counts.share_passed_on is None:
        return "nothing was asked"
    return (
        f"{counts.answers} answers, {counts.share_passed_on:.0%} passed on to a higher rung, "
        f"{counts.mean_flops_fraction:.0%} of the dense linear FLOPs on average"
    )
