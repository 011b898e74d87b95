"""`nsn-edge run`: answer from a bundle, at a rank or at one chosen by policy."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from nsn_edge.bundle.manifest import GRAPH_FORMS
from nsn_edge.cli.classify import Classifying, classify_options, classify_texts
from nsn_edge.cli.common import emit, progress_bar, read_texts, verb_options
from nsn_edge.cli.engines import EngineChoice, engine_options
from nsn_edge.cli.prompt import Prompting, continue_prompts, prompt_options
from nsn_edge.errors import NsnEdgeError, UsageError

if TYPE_CHECKING:
    from nsn_edge.corpus import Passage
    from nsn_edge.runtimes.difficulty import DifficultyRule
    from nsn_edge.runtimes.policy import RungCosts
    from nsn_edge.runtimes.session import EdgeSession

_SHOWN_CHARS = 240


@click.command(name="run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--query", "queries", multiple=True, help="What to look for. Repeat it. Default: lines from stdin.")
@prompt_options
@classify_options
@click.option("--rank", type=int, help="Answer at this rank. Default: the top one.")
@click.option("--flops", type=float, help="Answer at the best rank within this fraction of the dense linear FLOPs.")
@click.option("--policy", type=click.Path(path_type=Path), help="Let this policy choose, from this device's sensors.")
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    help="With --policy: what the rungs cost here, from nsn-edge profile. Default: the one in the bundle, if there is.",
)
@click.option("--top-k", default=3, show_default=True, type=click.IntRange(1), help="How many passages to show.")
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    help="Search this file, a passage per line. Default: Python's documentation.",
)
@click.option("--index-rank", type=int, help="Embed the passages at this rank. Default: the top one.")
@click.option("--inputs", type=click.Path(path_type=Path), help="Run these arrays (.npz) instead of a search.")
@click.option("--outputs", type=click.Path(path_type=Path), help="With --inputs: save the outputs here (.npz).")
@click.option(
    "--form",
    default="static",
    show_default=True,
    type=click.Choice(GRAPH_FORMS),
    help="static answers at the rungs, the others at any rank.",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(0), help="Per inference; 0: every core.")
@click.option(
    "--share-weights",
    is_flag=True,
    help="Hold the weights once for all rungs: on the CPU mapped and not repacked, which is slower; with CUDA "
    "on the GPU. Export with --no-merge.",
)
@engine_options
@click.option("--provider", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda", "tensorrt", "auto"]))
@click.option("--memory-budget-mb", type=float, help="Weights that may stay in memory. Default: no limit.")
@verb_options
def command(
    bundle: Path,
    queries: tuple[str, ...],
    rank: int | None,
    flops: float | None,
    policy: Path | None,
    profile: Path | None,
    top_k: int,
    texts: Path | None,
    index_rank: int | None,
    inputs: Path | None,
    outputs: Path | None,
    form: str,
    threads: int,
    share_weights: bool,
    provider: str,
    choice: EngineChoice,
    memory_budget_mb: float | None,
    prompting: Prompting,
    classifying: Classifying,
    as_json: bool,
) -> None:
    """Continue --prompt with the decoder in BUNDLE, label --text with the classifier in it, or search Python's
    documentation (or your own texts) with the sentence encoder in it.

    Without --query or --text, queries and texts are read from stdin, one per line. A bundle of another kind runs with
    --inputs. With --json there is one document per line and query, text or prompt.
    """
    from nsn_edge.runtimes.engines import OnnxRuntimeEngine
    from nsn_edge.runtimes.session import EdgeSession

    if sum(choice is not None for choice in (rank, flops, policy)) > 1:
        raise UsageError("--rank, --flops and --policy each choose the rank", "give one of them")
    if profile is not None and policy is None:
        raise UsageError("--profile tells a policy what the rungs cost", "give --policy FILE, too")
    if inputs is not None and (queries or texts):
        raise UsageError("--inputs runs arrays, --query and --texts search", "give the ones or the others")
    if prompting.prompts and (queries or texts or inputs is not None):
        raise UsageError("--prompt continues a text, --query, --texts and --inputs do something else", "run them apart")
    rule = classifying.rule()
    if classifying.texts and (prompting.prompts or queries or texts or inputs is not None):
        raise UsageError(
            "--text labels a text, --prompt, --query, --texts and --inputs do something else", "run them apart"
        )
    if rule is not None and (prompting.prompts or queries or texts or inputs is not None):
        raise UsageError("--difficulty decides about texts to label", "give them with --text")
    if outputs is not None and inputs is None:
        raise UsageError("--outputs saves what --inputs gives", "give --inputs FILE.npz too")
    if flops is not None and not 0 < flops <= 1:
        raise UsageError(f"--flops is a fraction above 0 and up to 1, not {flops}", "0.5 means half of the dense FLOPs")
    engine = choice.make(lambda: OnnxRuntimeEngine(threads, provider, share_weights))
    with EdgeSession.open(bundle, engine=engine, form=form, memory_budget_mb=memory_budget_mb) as session:
        if rule is None and policy is not None and _is_classifier(session):
            rule = _rule_of(policy)
        if flops is not None:
            ladder = session.bundle.manifest.ladder
            rank = ladder.rung_within(flops).rank if form == "static" else ladder.rank_for_fraction(flops)
        if rank is not None:
            session.switch(rank).result()
        with _governed(session, policy, profile):
            if prompting.prompts:
                continue_prompts(session, prompting, as_json)
            elif inputs is not None:
                _run_arrays(session, inputs, outputs, as_json)
            elif (
                classifying.texts or classifying.difficulty_file or (_is_classifier(session) and not (queries or texts))
            ):
                classify_texts(session, classifying.texts or _lines_of_stdin("text"), rule, as_json)
            else:
                _search(session, queries, texts, index_rank, top_k, as_json)


@contextlib.contextmanager
def _governed(session: EdgeSession, policy_file: Path | None, profile: Path | None) -> Iterator[None]:
    """Let a policy choose the rank: once before the first answer, then every second."""
    if policy_file is None:
        yield
        return
    from nsn_edge.runtimes.governor import Governor
    from nsn_edge.runtimes.policy import build_policy, load_policy
    from nsn_edge.runtimes.telemetry import Sampler, device_telemetry

    needed = bool(load_policy(policy_file).needs_costs)
    policy = build_policy(policy_file, session.ladder, _costs(session, profile, needed))
    with device_telemetry() as device, Sampler(device) as sampler:
        governor = Governor(sampler, policy, session)
        decision = governor.tick()
        session.switch(decision.rank).result()
        click.echo(f"rank {decision.rank}: {decision.reason}", err=True)
        with governor:
            yield


def _costs(session: EdgeSession, profile: Path | None, needed: bool) -> RungCosts | None:
    """What the rungs cost on this device with this engine; None where nobody measured it and nobody has to know."""
    from nsn_edge.runtimes.policy import load_costs
    from nsn_edge.runtimes.profiling import default_profile_path, describe_host

    host, engine = describe_host(), session.engine.describe()
    path = profile or default_profile_path(session.bundle.path, host, engine)
    if profile is None and not path.is_file():
        return None
    try:
        return load_costs(
            path, session.ladder, model=session.bundle.manifest.model, host=host, engine=engine, form=session.form
        )
    except NsnEdgeError as error:
        if profile is not None or needed:
            raise
        click.echo(f"the policy goes by FLOPs: {error.message}", err=True)
        return None


def _search(
    session: EdgeSession,
    queries: tuple[str, ...],
    texts: Path | None,
    index_rank: int | None,
    top_k: int,
    as_json: bool,
) -> None:
    from nsn_edge.corpus import documentation_corpus
    from nsn_edge.runtimes.search import SearchIndex
    from nsn_edge.runtimes.text import TextEmbedder

    embedder = TextEmbedder(session)
    passages = documentation_corpus().passages if texts is None else _passages(texts)
    with progress_bar() as progress:
        index = SearchIndex.build(embedder, passages, rank=index_rank, progress=progress)
    for query in queries or _lines_of_stdin("query"):
        result = index.query(query, top_k=top_k)

        def render(console: Console, result: Any = result) -> None:
            console.print(f"[bold]{escape(result.query)}[/]  (rank {result.rank}, {result.latency_ms:.1f} ms)")
            for hit in result.hits:
                console.print(f"  {hit.score:.3f}  [bold]{escape(hit.passage.title)}[/]")
                console.print(Padding(escape(_shortened(hit.passage.text)), (0, 0, 0, 9), expand=False))

        emit(result.to_json(), render, as_json)


def _run_arrays(session: EdgeSession, inputs: Path, outputs: Path | None, as_json: bool) -> None:
    import numpy as np

    from nsn_edge.arrays import read_arrays
    from nsn_edge.atomic import atomic_write_bytes

    answer = session.run(read_arrays(inputs))
    if outputs is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **answer.outputs)  # type: ignore[arg-type]  # numpy's stub takes the names for its own flags
        atomic_write_bytes(outputs, buffer.getvalue())
    data = {
        "schema_version": 1,
        "kind": "run",
        "rank": answer.rank,
        "latency_ms": answer.latency_ms,
        "outputs": {
            name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in answer.outputs.items()
        },
        "saved_to": None if outputs is None else str(outputs),
    }

    def render(console: Console) -> None:
        console.print(f"rank {answer.rank}, {answer.latency_ms:.1f} ms")
        for name, array in answer.outputs.items():
            console.print(f"  {escape(name)}  {array.dtype} {escape(str(list(array.shape)))}")
        if outputs is not None:
            console.print(f"saved to {outputs}", markup=False)

    emit(data, render, as_json)


def _passages(path: Path) -> tuple[Passage, ...]:
    """A passage per line of text, titled by its number."""
    from nsn_edge.corpus import Passage

    return tuple(Passage(f"text {number}", text) for number, text in enumerate(read_texts(path), start=1))


def _rule_of(policy_file: Path) -> DifficultyRule | None:
    from nsn_edge.runtimes.policy import load_policy

    return load_policy(policy_file).difficulty


def _is_classifier(session: EdgeSession) -> bool:
    return session.bundle.manifest.task.name == "text-classification"


def _lines_of_stdin(asked_for: str) -> Iterator[str]:
    """What is typed or piped, line by line, until the end of the input."""
    prompt = f"{asked_for}> " if sys.stdin.isatty() else ""
    while True:
        if prompt:
            click.echo(prompt, nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS].rsplit(" ", 1)[0] + " …"
