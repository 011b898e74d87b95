"""Whether the threads of idle rungs get in the way of the rung in use: MiniLM, rungs that take turns.

    python benchmarks/spinning.py --json FILE                       # two threads, as decision 0016 has it

onnxruntime gives every session threads of its own, which wait spinning for the next call. Three rungs are loaded twice
each, as in a process that serves several, under each of three settings:

    default       threads spin for a while after a call
    stop at end   `session.force_spinning_stop`: they spin within a call alone; what `OnnxRuntimeEngine` sets
    never         `session.intra_op.allow_spinning=0`: they sleep at every operator

`in turns`: the six graphs take turns in a shuffled order; each is called twice, and the second call timed by the wall
clock. `alone`: one of them is called again and again while the others stay idle. Milliseconds, lower quartiles. The
settings follow each other, so the machine must be quiet: ratios between columns of one run count, and little else.

JSON: `rows`, one object per setting, tokens and rank with `in_turns_ms` and `alone_ms`.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import Target, arguments, percentile, publish, workspace
from rich.table import Table

from nsn_edge.bundle import Bundle
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.runtimes.profiling.inputs import synthesise_inputs

SETTINGS = {
    "default": {},
    "stop at end": {"session.force_spinning_stop": "1"},
    "never": {"session.intra_op.allow_spinning": "0"},
}
TOKENS = (8, 32, 128)
WORDS = 20_000
"""Of MiniLM's vocabulary, which made-up inputs are drawn from."""
COPIES = 2
LOW = 25.0
"""The percentile: neighbours only add."""


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=60, help="timed calls of each graph")
    parser.add_argument("--threads", type=int, default=2, help="of each session")
    options = parser.parse_args()
    with workspace(options.checkpoint) as (folder, checkpoint):
        bundle = export_bundle(checkpoint, folder / "bundle", ExportConfig(forms=("static",)))
        ladder = bundle.manifest.ladder
        ranks = (ladder.ranks[0], ladder.rung_within(0.5).rank, ladder.ranks[-1])
        rows = []
        for setting in SETTINGS:
            print(f"{setting} ...", file=sys.stderr)
            rows += measured(bundle, ranks, setting, options.threads, options.repetitions)
    targets = [
        Target("rungs in turns, threads stop at the end of a call / default, worst", worst_ratio(rows), 1.1),
    ]
    results = {"settings": {"repetitions": options.repetitions, "threads": options.threads}, "rows": rows}
    publish("benchmark-spinning", results, targets, [table_of(rows)], options.json)


def measured(
    bundle: Bundle, ranks: tuple[int, ...], setting: str, threads: int, repetitions: int
) -> list[dict[str, Any]]:
    """The rows of a setting. Its sessions live no longer than this: idle ones of another would spin as well."""
    sessions = [
        (rank, load(bundle.file(bundle.graph(rank)), setting, threads)) for rank in ranks for _ in range(COPIES)
    ]
    rng = random.Random(0)
    rows = []
    for tokens in TOKENS:
        sizes = {"batch_size": 1, "sequence_length": tokens}
        inputs = dict(synthesise_inputs(bundle.manifest.inputs, sizes, vocabulary=WORDS))
        in_turns: dict[int, list[float]] = {rank: [] for rank in ranks}
        for _ in range(repetitions):
            for rank, session in rng.sample(sessions, len(sessions)):
                call_ms(session, inputs)
                in_turns[rank].append(call_ms(session, inputs))
        for rank, session in sessions[::COPIES]:
            alone = [call_ms(session, inputs) for _ in range(repetitions)]
            rows.append(
                {
                    "setting": setting,
                    "tokens": tokens,
                    "rank": rank,
                    "dense": bundle.manifest.ladder.rung(rank).dense,
                    "in_turns_ms": percentile(in_turns[rank], LOW),
                    "alone_ms": percentile(alone, LOW),
                }
            )
    return rows


def load(graph: Path, setting: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for key, value in SETTINGS[setting].items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def call_ms(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> float:
    feeds = {node.name: inputs[node.name] for node in session.get_inputs()}
    start = time.perf_counter()
    session.run(None, feeds)
    return (time.perf_counter() - start) * 1e3


def worst_ratio(rows: list[dict[str, Any]]) -> float:
    """Of the engine's setting to the default, where it does worst."""
    taken = {(row["setting"], row["tokens"], row["rank"]): row["in_turns_ms"] for row in rows}
    return max(
        ms / taken["default", tokens, rank] for (setting, tokens, rank), ms in taken.items() if setting == "stop at end"
    )


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Rungs that take turns, ms (in brackets one alone, the others idle)", title_justify="left")
    table.add_column("setting")
    columns = list(dict.fromkeys((row["tokens"], row["rank"], row["dense"]) for row in rows))
    for tokens, rank, dense in columns:
        table.add_column(f"{'dense' if dense else f'rank {rank}'}, {tokens}", justify="right")
    for setting in SETTINGS:
        cells = [f"{row['in_turns_ms']:.1f} ({row['alone_ms']:.1f})" for row in rows if row["setting"] == setting]
        table.add_row(setting, *cells)
    return table


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(3)
    main()
