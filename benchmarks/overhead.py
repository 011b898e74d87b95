"""What deciding, sensing and queueing cost beside the inference: MiniLM, and an engine that takes 5 ms exactly.

    python benchmarks/overhead.py --json benchmarks/results/overhead.json

1. A policy decision with every limiter, and the switch that follows from it, between rungs in memory, with an events
   file listening. Only decisions that move the rung count; each reading holds the session's last 64 answers.
2. Processor time of the whole process while a sampler reads at 1 Hz and nothing else happens, on the files of a Jetson
   Orin Nano and on this machine's own sensors. The device on which it matters is slower: the share counts.
3. Requests per second of 4 threads that ask the engine's graph itself, a session, and a server with 4 workers, in short
   turns; the overhead is what a request takes longer than at the graph. Once over a stand-in engine that sleeps for
   5 ms and uses no processor, and once over the MiniLM rung and text length nearest to 5 ms on one thread. The
   stand-in shows the waiting that handing over costs; the model, on as many threads as senders, what the processor
   time costs where there is none to spare.

JSON: `decide {n, p50_us, p99_us, decide_p99_us, switch_p99_us, cpu_p50_us}`, `sampler [{tree, known, seconds,
reads_per_s, cpu_share, read_ms}]`, `queue [{engine, call_ms, threads, turns, direct_ms, session_ms, server_ms,
session_share, server_share, direct_cpu_us, session_cpu_us, server_cpu_us}]`; `cpu_us`: processor time, which other
programs on the machine change less.
"""

from __future__ import annotations

import gc
import itertools
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Target, arguments, percentile, publish, workspace
from rich.table import Table

from nsn_edge.bundle import Bundle, TensorSpec
from nsn_edge.corpus import documentation_corpus
from nsn_edge.runtimes.data import DEFAULT_POLICY
from nsn_edge.runtimes.engines import OnnxRuntimeEngine
from nsn_edge.runtimes.policy import (
    Deadline,
    EnergyBudget,
    Pi,
    PolicyState,
    RungCost,
    RungCosts,
    RungPolicy,
    StepWise,
    load_policy,
)
from nsn_edge.runtimes.serving import JsonlEvents, Server, ServerSettings
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.telemetry import Answered, Reading, Sampler, TelemetrySource, Work, device_telemetry
from nsn_edge.runtimes.text import TextEmbedder

Inputs = dict[str, np.ndarray]
SENDERS = 4
CALL_MS = 5.0


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="measure this bundle of MiniLM; default: adapt and export it anew")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: to see that it runs")
    options = parser.parse_args()
    seconds, turns, turn_s, decisions = (2.0, 3, 0.1, 600) if options.quick else (60.0, 30, 1.0, 50_000)
    with bundle_to_measure(options.bundle, options.checkpoint) as bundle:
        print("the sampler ...", file=sys.stderr)
        sampled = [*sampler_share(seconds)]
        print("decisions and switches ...", file=sys.stderr)
        decide = decide_and_switch(bundle, decisions)
        print("the queue ...", file=sys.stderr)
        queued = [stand_in(bundle, turns, turn_s), minilm(bundle, turns, turn_s)]
    targets = [
        Target("policy decision and switch, p99 us", decide["p99_us"], 50.0),
        *(Target(f"sampler at 1 Hz, share of a core: {run['tree']}", run["cpu_share"], 0.01) for run in sampled),
        *(
            Target(f"{what}, {SENDERS} threads, added to {run['engine']}", run[f"{what}_share"], 0.03)
            for run in queued
            for what in ("session", "server")
        ),
    ]
    results = {"model": bundle.manifest.model, "decide": decide, "sampler": sampled, "queue": queued}
    publish("benchmark-overhead", results, targets, tables(decide, sampled, queued), options.json)


@contextmanager
def bundle_to_measure(bundle: Path | None, checkpoint: Path | None) -> Iterator[Bundle]:
    if bundle is not None:
        yield Bundle.open(bundle)
        return
    from nsn_edge.export.exporter import ExportConfig, export_bundle

    with workspace(checkpoint) as (folder, loaded):
        yield export_bundle(loaded, folder / "bundle", ExportConfig(forms=("static",)))


# --- 1: decisions and switches ------------------------------------------------------------------------------------


def decide_and_switch(bundle: Bundle, count: int) -> dict[str, Any]:
    """Hot, cool and still cool in turns, minutes apart, so that the rung falls, may rise, rises."""
    ladder = bundle.manifest.ladder
    costs = RungCosts(
        tuple(
            RungCost(
                rank, CALL_MS * ladder.flops_fraction(rank), 1.3 * CALL_MS * ladder.flops_fraction(rank), 20.0 + rank
            )
            for rank in ladder.ranks
        )
    )
    limits = replace(
        load_policy(DEFAULT_POLICY),
        step_wise=StepWise(),
        pi=Pi(),
        energy=EnergyBudget(last_h=8.0),
        deadline=Deadline(deadline_ms=50.0),
    )
    policy = RungPolicy(limits, ladder, costs)
    work = Work(tuple(Answered(ladder.ranks[index % len(ladder.ranks)], 4.0) for index in range(64)), 20.0, 1)
    whole_us, decide_us, switch_us, processor_us = [], [], [], []
    state = PolicyState()
    with (
        tempfile.TemporaryDirectory(prefix="nsn-edge-bench-") as folder,
        JsonlEvents(Path(folder) / "events.jsonl") as events,
        EdgeSession.open(bundle, listener=events) as session,
    ):
        for loaded in session.preload(ladder.ranks):
            loaded.result()
        gc.collect()
        for index in range(count):
            reading = Reading(
                60.0 * index,
                battery_pct=80.0,
                on_mains=False,
                temperature_c=(89.0, 45.0, 45.0)[index % 3],
                temperature_limit_c=99.0,
                throttling=False,
                power_mw=5000.0,
                battery_j=4e6,
                wall_s=1.7e9 + 60.0 * index,
                work=work,
            )
            before = session.rank
            begun_s = time.thread_time()
            start = time.perf_counter()
            decision = policy.decide(reading, state)
            decided = time.perf_counter()
            if decision.rank != before:
                session.switch(decision.rank)
                end = time.perf_counter()
                processor_us.append((time.thread_time() - begun_s) * 1e6)
                assert session.rank == decision.rank
                whole_us.append((end - start) * 1e6)
                decide_us.append((decided - start) * 1e6)
                switch_us.append((end - decided) * 1e6)
            state = decision.state
    assert len(whole_us) > count / 2, f"only {len(whole_us)} of {count} decisions moved the rung"
    return {
        "n": len(whole_us),
        "p50_us": percentile(whole_us, 50),
        "p99_us": percentile(whole_us, 99),
        "decide_p99_us": percentile(decide_us, 99),
        "switch_p99_us": percentile(switch_us, 99),
        "cpu_p50_us": percentile(processor_us, 50),
    }


# --- 2: the sampler -----------------------------------------------------------------------------------------------


def sampler_share(seconds: float) -> Iterator[dict[str, Any]]:
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from jetson_trees import orin_nano_jp5

    with (
        tempfile.TemporaryDirectory(prefix="nsn-edge-bench-") as folder,
        device_telemetry(orin_nano_jp5(Path(folder))) as orin,
    ):
        yield share("an Orin Nano's files", orin, seconds)
    with device_telemetry() as own:
        yield share("this machine", own, seconds)


def share(tree: str, source: TelemetrySource, seconds: float) -> dict[str, Any]:
    """Processor time of the process while its sampler runs, and what one reading takes."""
    reads = 0

    class Counted:
        def read(self) -> Reading:
            nonlocal reads
            reads += 1
            return source.read()

    reading = source.read()
    known = [
        name
        for name in ("temperature_c", "power_mw", "gpu_load_pct", "battery_pct")
        if getattr(reading, name) is not None
    ]
    once = []
    for _ in range(20):
        start = time.perf_counter()
        source.read()
        once.append((time.perf_counter() - start) * 1e3)
    with Sampler(Counted()):
        gc.collect()
        first, wall_s, cpu_s = reads, time.monotonic(), time.process_time()
        time.sleep(seconds)
        spent_s, passed_s = time.process_time() - cpu_s, time.monotonic() - wall_s
    return {
        "tree": tree,
        "known": known,
        "seconds": passed_s,
        "reads_per_s": (reads - first) / passed_s,
        "cpu_share": spent_s / passed_s,
        "read_ms": percentile(once, 50),
    }


# --- 3: session and queue -----------------------------------------------------------------------------------------


class Sleeping:
    """An engine whose every run takes `CALL_MS` and no processor time."""

    name, owns_threads = "sleeping", False

    class Graph:
        inputs: tuple[TensorSpec, ...] = ()
        outputs: tuple[TensorSpec, ...] = ()

        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            time.sleep(CALL_MS / 1e3)
            return {}

        def close(self) -> None:
            pass

    def load(self, graph_path: Path) -> Graph:
        return self.Graph()

    def describe(self) -> dict[str, Any]:
        return {"engine": self.name}


def stand_in(bundle: Bundle, turns: int, turn_s: float) -> dict[str, Any]:
    engine = Sleeping()
    with EdgeSession.open(bundle, engine=engine) as session:
        return {"engine": "a stand-in of 5 ms", **in_turns(session, engine.Graph().run, {}, turns, turn_s)}


def minilm(bundle: Bundle, turns: int, turn_s: float) -> dict[str, Any]:
    rank, inputs = nearest_to_call_ms(bundle)
    graph = OnnxRuntimeEngine().load(bundle.file(bundle.graph(rank)))
    with EdgeSession.open(bundle, rank=rank) as session:
        measured = in_turns(session, graph.run, inputs, turns, turn_s)
    graph.close()
    tokens = next(iter(inputs.values())).shape[1]
    return {"engine": f"MiniLM, rank {rank}, {tokens} tokens", "rank": rank, "tokens": tokens, **measured}


def nearest_to_call_ms(bundle: Bundle) -> tuple[int, Inputs]:
    """The rung and the length of text whose processor time comes nearest to `CALL_MS`."""
    found: list[tuple[float, int, Inputs]] = []
    with EdgeSession.open(bundle) as session:
        text = TextEmbedder(session).tokenize([" ".join(documentation_corpus().held_out[:60])])
        for rank, tokens in itertools.product(bundle.manifest.ladder.ranks, (8, 16, 24, 32, 48, 64)):
            inputs = {name: np.ascontiguousarray(array[:, :tokens]) for name, array in text.items()}
            spent_ms = []
            for _ in range(12):  # on one thread, this one: its processor time is what a call takes on a quiet machine
                begun_s = time.thread_time()
                session.run(inputs, rank=rank)
                spent_ms.append((time.thread_time() - begun_s) * 1e3)
            found.append((abs(math.log(percentile(spent_ms[2:], 50) / CALL_MS)), rank, inputs))
    _, rank, inputs = min(found, key=lambda candidate: candidate[0])
    return rank, inputs


def in_turns(
    session: EdgeSession, run: Callable[[Inputs], object], inputs: Inputs, turns: int, turn_s: float
) -> dict[str, Any]:
    """Milliseconds per request and sender, of each way in turns; the share is the median over turns of the ratio to the
    direct way's in the same turn."""
    with Server(session, ServerSettings(workers=SENDERS)) as server:
        ways: dict[str, Callable[[], object]] = {
            "direct": lambda: run(inputs),
            "session": lambda: session.run(inputs),
            "server": lambda: server.submit(inputs).result(),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(turns):
            order = list(ways) if turn % 2 else list(reversed(ways))  # whoever goes first meets another machine
            for name in order:
                wall_ms, cpu_us = request_cost(ways[name], turn_s)
                took[name].append(wall_ms)
                spent[name].append(cpu_us)
    calls = []
    for _ in range(10):
        start = time.perf_counter()
        run(inputs)
        calls.append((time.perf_counter() - start) * 1e3)
    medians = {f"{name}_ms": percentile(values, 50) for name, values in took.items()}
    medians |= {f"{name}_cpu_us": percentile(values, 50) for name, values in spent.items()}
    shares = {
        f"{name}_share": percentile(
            [way / direct - 1.0 for way, direct in zip(took[name], took["direct"], strict=True)], 50
        )
        for name in ("session", "server")
    }
    return {"call_ms": percentile(calls, 50), "threads": SENDERS, "turns": turns, **medians, **shares}


def request_cost(ask: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Milliseconds that a request takes when `SENDERS` threads each ask again as soon as they are answered, and the
    microseconds of processor time that the process spends on it."""
    counts = [0] * SENDERS
    start_line = threading.Barrier(SENDERS + 1)
    stop = threading.Event()

    def send(number: int) -> None:
        ask()
        start_line.wait()
        while not stop.is_set():
            ask()
            counts[number] += 1

    threads = [threading.Thread(target=send, args=(number,)) for number in range(SENDERS)]
    for thread in threads:
        thread.start()
    start_line.wait()
    start, begun_s = time.perf_counter(), time.process_time()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    answered = max(sum(counts), 1)
    return (
        (time.perf_counter() - start) * 1e3 * SENDERS / answered,
        (time.process_time() - begun_s) * 1e6 / answered,
    )


def tables(decide: dict[str, Any], sampled: list[dict[str, Any]], queued: list[dict[str, Any]]) -> list[Table]:
    first = Table(title="Decision and switch", title_justify="left")
    for heading in ("what", "p50 us", "p99 us"):
        first.add_column(heading, justify="left" if heading == "what" else "right")
    first.add_row("decision and switch", f"{decide['p50_us']:.1f}", f"{decide['p99_us']:.1f}")
    first.add_row("its processor time", f"{decide['cpu_p50_us']:.1f}", "")
    first.add_row("decision alone", "", f"{decide['decide_p99_us']:.1f}")
    first.add_row("switch alone", "", f"{decide['switch_p99_us']:.1f}")
    second = Table(title="Sampler, 1 Hz", title_justify="left")
    for heading in ("sensors", "one reading ms", "readings per s", "share of a core"):
        second.add_column(heading, justify="left" if heading == "sensors" else "right")
    for run in sampled:
        second.add_row(run["tree"], f"{run['read_ms']:.2f}", f"{run['reads_per_s']:.2f}", f"{run['cpu_share']:.3%}")
    third = Table(title=f"A request, {SENDERS} threads sending", title_justify="left")
    for heading in ("engine", "one call ms", "graph ms", "session ms", "server ms", "session adds", "server adds"):
        third.add_column(heading, justify="left" if heading == "engine" else "right")
    for run in queued:
        times = [f"{run[key]:.3f}" for key in ("call_ms", "direct_ms", "session_ms", "server_ms")]
        third.add_row(run["engine"], *times, f"{run['session_share']:+.2%}", f"{run['server_share']:+.2%}")
    return [first, second, third]


if __name__ == "__main__":
    main()
