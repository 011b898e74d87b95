"""What switching the rank costs, and that it loses nothing: MiniLM, 1 inference thread per request.

    python benchmarks/switching.py --json benchmarks/results/switching.json

1. Switching between resident rungs: from the call of `switch` until the session's rank is the new one, and one request
   has not been needed to bring it about.
2. A cold rung loads while requests are answered at the old rung. Stretches with a load and stretches without take
   turns, so that both see the same machine; a request counts as disturbed when the load overlaps it.
3. Random switches under load from several threads, under a memory budget that keeps two or three rungs: every answer
   is compared with what the rung it names gives when run alone.

JSON: `resident {switches, p50_ms, p99_ms}`, `cold {loads, load_p50_ms, undisturbed {n, p50_ms, p99_ms}, disturbed
{...}, p99_ratio}`, `random {switches, requests, failed, wrong, ranks_seen}`.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
from common import Target, arguments, percentile, publish, workspace
from rich.table import Table

from nsn_edge.bundle import Bundle
from nsn_edge.corpus import documentation_corpus
from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.runtimes.session import EdgeSession, Switch
from nsn_edge.runtimes.text import TextEmbedder

Inputs = dict[str, np.ndarray]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--switches", type=int, default=1000, help="random switches under load")
    parser.add_argument("--loads", type=int, default=120, help="cold loads")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per request while cold rungs load")
    parser.add_argument("--clients", type=int, default=2, help="threads that send requests during random switches")
    options = parser.parse_args()
    with workspace(options.checkpoint) as (folder, checkpoint):
        bundle = export_bundle(checkpoint, folder / "bundle", ExportConfig(forms=("static",)))
        requests = texts(bundle, options.tokens)
        print("resident switches ...", file=sys.stderr)
        resident = resident_switches(bundle, 5000)
        print("cold loads ...", file=sys.stderr)
        cold = cold_loads(bundle, requests[-1], options.loads)
        print("random switches ...", file=sys.stderr)
        shuffled = random_switches(bundle, requests, options.switches, options.clients)
    targets = [
        Target("switch between resident rungs, p99 ms", resident["p99_ms"], 1.0),
        Target("request p99 while a cold rung loads / undisturbed", cold["p99_ratio"], 2.0),
        Target(f"failed requests in {shuffled['switches']} random switches", shuffled["failed"], 0),
        Target("answers that differ from the rung they name", shuffled["wrong"], 0),
    ]
    results = {
        "model": bundle.manifest.model,
        "settings": {"tokens": options.tokens, "threads_per_request": 1, "clients": options.clients},
        "resident": resident,
        "cold": cold,
        "random": shuffled,
    }
    table = Table(title="Switching", title_justify="left")
    for heading in ("what", "n", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    table.add_row("switch between resident rungs", *figures(resident, "switches"))
    table.add_row("request, no load under way", *figures(cold["undisturbed"], "n"))
    table.add_row("request, a cold rung is loading", *figures(cold["disturbed"], "n"))
    publish("benchmark-switching", results, targets, [table], options.json)


def figures(data: dict[str, Any], count: str) -> tuple[str, str, str]:
    return str(data[count]), f"{data['p50_ms']:.4f}", f"{data['p99_ms']:.4f}"


def texts(bundle: Bundle, tokens: int) -> list[Inputs]:
    """Real requests of several lengths, the last one of exactly `tokens` tokens."""
    sentences = documentation_corpus().held_out
    with EdgeSession.open(bundle) as session:
        embedder = TextEmbedder(session)
        short = [embedder.tokenize([text]) for text in sentences[:7]]
        long = embedder.tokenize([" ".join(sentences[:60])])
    return [*short, {name: np.ascontiguousarray(array[:, :tokens]) for name, array in long.items()}]


def resident_switches(bundle: Bundle, count: int) -> dict[str, Any]:
    """Switch at random between rungs that are all in memory."""
    rng = random.Random(0)
    ranks = bundle.manifest.ladder.ranks
    samples = []
    with EdgeSession.open(bundle) as session:
        for future in session.preload(ranks):
            future.result()
        for _ in range(count):
            rank = rng.choice([rank for rank in ranks if rank != session.rank])
            start = time.perf_counter()
            session.switch(rank)
            current = session.rank
            samples.append((time.perf_counter() - start) * 1e3)
            assert current == rank
    return {"switches": count, **spread(samples)}


def cold_loads(bundle: Bundle, request: Inputs, loads: int) -> dict[str, Any]:
    """Requests at the old rung, with and without a load in the background, in turns.

    The budget holds one rung beside the current one, so that each rung asked for has been evicted before.
    """
    ladder = bundle.manifest.ladder
    ranks = ladder.ranks[:3]
    sizes = [bundle.graph(rank).weight_bytes or 0 for rank in ranks]
    undisturbed: list[float] = []
    disturbed: list[float] = []
    load_ms: list[float] = []
    with EdgeSession.open(bundle, rank=ranks[0], memory_budget_mb=max(sizes) * 1.01 / 1e6) as session:
        for _ in range(30):
            session.run(request)
        for turn in range(loads):
            target = ranks[(turn + 1) % len(ranks)]
            assert target not in session.resident_ranks
            future: Future[Switch] = session.switch(target)
            during: list[float] = []
            while not future.done():
                during.append(one_request(session, request))
            switch = future.result()
            assert switch.cold
            load_ms.append(switch.duration_ms)
            disturbed += during
            session.run(request)  # the new rung's first, which also waits for its memory
            undisturbed += [one_request(session, request) for _ in during]
    calm, busy = spread(undisturbed), spread(disturbed)
    return {
        "loads": loads,
        "load_p50_ms": percentile(load_ms, 50),
        "undisturbed": {"n": len(undisturbed), **calm},
        "disturbed": {"n": len(disturbed), **busy},
        "p99_ratio": busy["p99_ms"] / calm["p99_ms"],
    }


def one_request(session: EdgeSession, request: Inputs) -> float:
    """Milliseconds from asking to having the answer."""
    start = time.perf_counter()
    session.run(request)
    return (time.perf_counter() - start) * 1e3


def random_switches(bundle: Bundle, requests: list[Inputs], switches: int, clients: int) -> dict[str, Any]:
    """Switch at random while clients keep asking; check each answer against its rung run alone."""
    ladder = bundle.manifest.ladder
    with EdgeSession.open(bundle) as session:
        alone = {
            rank: [session.run(request, rank=rank).outputs["last_hidden_state"] for request in requests]
            for rank in ladder.ranks
        }
    budget_mb = sum(sorted(bundle.graph(rank).weight_bytes or 0 for rank in ladder.ranks)[-2:]) * 1.01 / 1e6
    counts = {"requests": 0, "failed": 0, "wrong": 0}
    seen: set[int] = set()
    lock = threading.Lock()
    stop = threading.Event()

    def client(session: EdgeSession, seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            index = rng.randrange(len(requests))
            try:
                answer = session.run(requests[index])
            except Exception as error:
                print(f"failed: {error}", file=sys.stderr)
                with lock:
                    counts["failed"] += 1
                continue
            right = np.allclose(answer.outputs["last_hidden_state"], alone[answer.rank][index], atol=1e-5)
            with lock:
                counts["requests"] += 1
                counts["wrong"] += not right
                seen.add(answer.rank)

    rng = random.Random(1)
    with EdgeSession.open(bundle, memory_budget_mb=budget_mb) as session:
        threads = [threading.Thread(target=client, args=(session, seed)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        for _ in range(switches):
            session.switch(rng.choice(ladder.ranks))
            time.sleep(rng.expovariate(1 / 0.02))
        stop.set()
        for thread in threads:
            thread.join()
    return {"switches": switches, **counts, "ranks_seen": sorted(seen), "memory_budget_mb": budget_mb}


def spread(samples_ms: list[float]) -> dict[str, float]:
    return {"p50_ms": percentile(samples_ms, 50), "p99_ms": percentile(samples_ms, 99)}


if __name__ == "__main__":
    main()
