"""`nsn-edge difficulty`: how certain is certain enough, so that easy questions are answered at a low rung."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.cli.common import emit, progress_bar, verb_options
from nsn_edge.cli.engines import EngineChoice, engine_options
from nsn_edge.errors import NsnEdgeError, UsageError

if TYPE_CHECKING:
    from nsn_edge.ladder import RankLadder
    from nsn_edge.runtimes.difficulty.calibration import Calibrated, Goal
    from nsn_edge.runtimes.difficulty.outcomes import HeldOut

_MEASURES = ("margin", "max_probability", "entropy")


@click.command(name="difficulty")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="A csv, tsv, jsonl or txt file of texts that the model was not trained on and will not be judged on; with "
    "labels if there are any.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the rule to this TOML file.")
@click.option("--max-loss", default=0.5, show_default=True, help="Answers of a hundred that may be lost to it.")
@click.option("--confidence", default=0.95, show_default=True, help="That no more are, beyond the file.")
@click.option(
    "--unlabelled", is_flag=True, help="Read no labels: a lost answer is one that differs from the top rung's."
)
@click.option(
    "--start-flops",
    "fractions",
    multiple=True,
    type=float,
    help="Begin at the best rung within this fraction of the dense linear FLOPs. Repeat it to let the cheapest win. "
    "Default: every rung below the top one.",
)
@click.option("--start-rank", "ranks", multiple=True, type=int, help="Begin at this rung. Repeat it.")
@click.option("--top-rank", type=int, help="The rung that has the last word. Default: the top one.")
@click.option(
    "--measure",
    "measures",
    multiple=True,
    type=click.Choice(_MEASURES),
    help="Of certainty. Repeat it to let the cheapest win. Default: margin.",
)
@click.option("--text-column", help="The text. Default: text, sentence, sentence1 or content.")
@click.option("--label-column", help="The label. Default: label, labels, intent or class.")
@click.option("--columns", help="Names of all columns, with commas between, for a file without a header line.")
@click.option("--examples", type=click.IntRange(min=1), help="At most this many, spread evenly. Default: all.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw rungs and rule to this SVG file.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(0), help="Per inference; 0: every core.")
@engine_options
@click.option("--provider", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda", "tensorrt", "auto"]))
@verb_options
def command(
    bundle: Path,
    data: Path,
    output: Path | None,
    max_loss: float,
    confidence: float,
    unlabelled: bool,
    fractions: tuple[float, ...],
    ranks: tuple[int, ...],
    top_rank: int | None,
    measures: tuple[str, ...],
    text_column: str | None,
    label_column: str | None,
    columns: str | None,
    examples: int | None,
    plot_file: Path | None,
    threads: int,
    choice: EngineChoice,
    provider: str,
    as_json: bool,
) -> None:
    """Find how certain a low rung of the classifier in BUNDLE must be of an answer, so that it may keep it.

    Uncertain texts are asked again at the top rung. The rule that comes out loses at most --max-loss answers of a
    hundred against the top rung alone. Use it: nsn-edge run BUNDLE --text TEXT --difficulty FILE
    """
    from nsn_edge.report.cascade import cascade_svg
    from nsn_edge.runtimes.classification import TextClassifier
    from nsn_edge.runtimes.difficulty import save_rule
    from nsn_edge.runtimes.difficulty.calibration import Goal, calibrate
    from nsn_edge.runtimes.difficulty.cascade import logits_of, weights_sha256
    from nsn_edge.runtimes.difficulty.examples import Columns, ask_every_rung, read_labelled_texts
    from nsn_edge.runtimes.difficulty.outcomes import curve
    from nsn_edge.runtimes.engines import OnnxRuntimeEngine
    from nsn_edge.runtimes.session import EdgeSession

    goal = Goal(max_loss, confidence)
    names = tuple(name.strip() for name in columns.split(",")) if columns else ()
    engine = choice.make(lambda: OnnxRuntimeEngine(threads, provider))
    with EdgeSession.open(bundle, engine=engine) as session, progress_bar() as progress:
        logits_of(session.bundle)  # says why, where there are none
        ladder = session.ladder
        top = ladder.rung(top_rank).rank if top_rank is not None else session.top_rank
        starts = _starts(ladder, top, fractions, ranks)
        classifier = TextClassifier(session)
        where = Columns(text_column, label_column, names)
        texts = read_labelled_texts(data, classifier, where, with_labels=not unlabelled, most=examples)
        measures = measures or ("margin",)
        goal.allowed(len(texts.texts), len(starts) * len(measures))  # too few are refused before they are asked
        held_out = ask_every_rung(classifier, texts, (*starts, top), progress=progress)
        found = calibrate(held_out, goal, [(start, top) for start in starts], measures)
        sha256 = weights_sha256(session.bundle)
    if not found or found[0].on_held_out.flops_fraction >= held_out.flops[top]:
        raise NsnEdgeError(
            f"no rung saves work at a loss of at most {max_loss:g} points: too many answers would be asked again",
            "allow a larger loss, give more held-out examples, or train the low ranks: nsn-edge train",
        )
    best = replace(found[0], rule=replace(found[0].rule, bundle_sha256=sha256))
    if output is not None:
        save_rule(best.rule, output, _notes(best, goal, held_out, data))
    document: dict[str, Any] = {
        "schema_version": 1,
        "kind": "difficulty",
        "bundle": str(bundle),
        "data": str(data),
        "examples": held_out.count,
        "labelled": held_out.labels is not None,
        "max_loss_points": max_loss,
        "confidence": confidence,
        "rungs": [_rung(rank, held_out) for rank in sorted(held_out.logits)],
        "found": [item.to_json() for item in found],
        "chosen": best.to_json(),
        "curve": [
            {"threshold": threshold, **result.to_json()}
            for threshold, result in curve(held_out, best.rule.ranks, best.rule.measure)
        ],
        "path": None if output is None else str(output),
    }

    if plot_file is not None:
        what = "right answers" if held_out.labels is not None else "answers that are the top rung's"
        title = f"{what}, {held_out.count} held-out texts"
        svg = cascade_svg(document["rungs"], [document["curve"]], document["chosen"]["on_held_out"], title, max_loss)
        atomic_write_bytes(plot_file, svg.encode())

    def render(console: Console) -> None:
        _render(console, document, found)
        console.print(f"\n{_notes(best, goal, held_out, data)[0]}", markup=False)
        if output is not None:
            console.print(f"written to {output}", markup=False)
            console.print(f"next: nsn-edge run {bundle} --difficulty {output} --text TEXT", markup=False)

    emit(document, render, as_json)


def _starts(ladder: RankLadder, top: int, fractions: tuple[float, ...], ranks: tuple[int, ...]) -> list[int]:
    """The rungs to begin at: those asked for, else every one below the top."""
    if strays := [share for share in fractions if not 0 < share <= 1]:
        raise UsageError(f"--start-flops is a fraction above 0 and up to 1, not {strays[0]:g}", "0.25 is usual")
    asked = {ladder.rung(rank).rank for rank in ranks} | {ladder.rung_within(share).rank for share in fractions}
    if strays := sorted(rank for rank in asked if rank >= top):
        raise UsageError(f"the first rung, {strays[0]}, is not below the one with the last word, {top}")
    starts = sorted(asked) or [rank for rank in ladder.ranks if rank < top]
    if not starts:
        raise UsageError(f"there is no rung below {top} to begin at", "export the bundle with more rungs")
    return starts


def _rung(rank: int, held_out: HeldOut) -> dict[str, Any]:
    return {
        "rank": rank,
        "flops_fraction": held_out.flops[rank],
        "right": float(held_out.right(rank).mean()),
        "spoilt": int(held_out.spoilt(rank).sum()),
    }


def _notes(best: Calibrated, goal: Goal, held_out: HeldOut, data: Path) -> list[str]:
    """What the file says about itself, in words."""
    result = best.on_held_out
    kind = "wrong where the top rung is right" if held_out.labels is not None else "other than the top rung's"
    return [
        f"At {goal.confidence:.0%} confidence at most {best.loss_bound_points:.2f} answers of a hundred are {kind} "
        f"({goal.max_loss_points:g} allowed).",
        f"On the {held_out.count} texts of {data.name}: {result.spoilt} are, {result.passed_on:.1%} are asked twice, "
        f"{result.flops_fraction:.1%} of the dense linear FLOPs on average.",
    ]


def _render(console: Console, document: dict[str, Any], found: list[Calibrated]) -> None:
    right = "right" if document["labelled"] else "as the top rung"
    rungs = Table(title=f"Every rung alone, {document['examples']} texts", title_justify="left")
    for heading in ("rank", "linear FLOPs", right, "lost against the top rung"):
        rungs.add_column(heading, justify="right")
    for rung in reversed(document["rungs"]):
        lost = f"{rung['spoilt'] / document['examples']:.2%}"
        rungs.add_row(str(rung["rank"]), f"{rung['flops_fraction']:.1%}", f"{rung['right']:.2%}", lost)
    console.print(rungs)
    table = Table(title=f"Low rungs that keep within {document['max_loss_points']:g} points", title_justify="left")
    for heading in (
        "begin at",
        "measure",
        "certain from",
        "asked twice",
        "linear FLOPs",
        right,
        "lost",
        "lost at most",
    ):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for item in found:
        result = item.on_held_out
        table.add_row(
            str(item.rule.ranks[0]),
            item.rule.measure,
            f"{item.rule.thresholds[0]:.4f}",
            f"{result.passed_on:.1%}",
            f"{result.flops_fraction:.1%}",
            f"{result.right:.2%}",
            f"{result.spoilt / result.examples:.2%}",
            f"{item.loss_bound_points / 100:.2%}",
        )
    console.print(table)
