"""Everything fails at random for ten minutes, and nobody loses an answer: MiniLM behind a server, 4 clients.

    python benchmarks/soak.py --json benchmarks/results/soak.json         # --minutes 2 --seed 7 to repeat a shorter one

What goes wrong, each at random:

* telemetry: every kind of fault of `FaultyTelemetry` (raises, nonsense, NaN, stuck, vanished, slow, clock steps,
  suspend) and the death of the sampling thread;
* the policy raises, now and then with `SystemExit`;
* engines: a run fails once; a load fails once or is slow; a rung, at times two, neither loads nor runs for seconds;
* clients: deadlines that cannot be kept, cancelled requests, inputs of a wrong shape, tokens outside the vocabulary,
  ranks of their own; a policy moves the rung all the while, under a memory budget that keeps three.

Every answer must be that of the rung it names, bit for bit as that rung answers alone. A request is lost if it does not
end, or ends with an error that it did not ask for. Memory is the process's resident set at checkpoints, each in the
same state: clients and faults paused, the same rungs in memory and asked, freed memory returned to the system
(`malloc_trim`). glibc is told to give large blocks back when they are freed and to keep one heap (`mallopt`): otherwise
its heaps' holes, which come and go with the loads, are ten times what is looked for. Growth is from the end of the
warm-up, the first fifth, to the end.

The seed decides every draw, not how threads interleave.

JSON: `seed`, `minutes`, `requests {sent, answered, degraded, expired, rejected, cancelled, refused, lost, wrong}`,
`faults {telemetry {kind: readings}, sampler_deaths, policy, loads, runs, outages}`, `switches`, `ranks_seen`, `events
{kind: n}`, `memory {checkpoints [{at_s, rss_mb, anonymous_mb, threads}], growth}`, `lost` (the first few, in words).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Target, arguments, publish
from overhead import Inputs, bundle_to_measure
from rich.table import Table

from nsn_edge.bundle import Bundle
from nsn_edge.corpus import documentation_corpus
from nsn_edge.errors import DeadlineError, EngineError, InputError, QueueFullError
from nsn_edge.runtimes.data import DEFAULT_POLICY
from nsn_edge.runtimes.engines import FaultyEngine, OnnxRuntimeEngine
from nsn_edge.runtimes.events import SessionEvent, listeners
from nsn_edge.runtimes.governor import Governor
from nsn_edge.runtimes.policy import Decision, PolicyState, RungCost, RungCosts, RungPolicy, load_policy
from nsn_edge.runtimes.serving import JsonlEvents, Server, ServerSettings
from nsn_edge.runtimes.session import Answer, EdgeSession
from nsn_edge.runtimes.telemetry import FaultyTelemetry, Reading, Sampler, chances
from nsn_edge.runtimes.text import TextEmbedder

CLIENTS = 4
PATIENCE_S = 60.0
"""A request that takes longer is lost."""


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="use this bundle of MiniLM; default: adapt and export it anew")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="of every draw; default: another one each time")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    tame_malloc()
    with bundle_to_measure(options.bundle, options.checkpoint) as bundle:
        results = Soak(bundle, seed).run(options.minutes * 60.0)
    requests, memory = results["requests"], results["memory"]
    targets = [
        Target("lost answers", requests["lost"], 0),
        Target("answers that differ from their rung's alone", requests["wrong"], 0),
        Target("growth of memory after warm-up", memory["growth"], 0.01),
    ]
    document = {"model": bundle.manifest.model, "seed": seed, "minutes": options.minutes, **results}
    publish("benchmark-soak", document, targets, [summary(results)], options.json)


class Chaos:
    """Decides when an engine fails. One switch turns it off."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        self.ranks = bundle.manifest.ladder.ranks
        self.rank_of = {bundle.file(bundle.graph(rank)).name: rank for rank in self.ranks}
        self.draw = random.Random(seed)
        self.lock = threading.Lock()
        self.on = True
        self.broken_until_s: dict[int, float] = {}
        self.counts: Counter[str] = Counter()

    def break_some(self) -> None:
        """A rung, at times a second one, neither loads nor runs for a while."""
        with self.lock:
            now_s = time.monotonic()
            if sum(until_s > now_s for until_s in self.broken_until_s.values()) < 2:
                self.broken_until_s[self.draw.choice(self.ranks)] = now_s + self.draw.uniform(0.2, 4.0)
                self.counts["outages"] += 1

    def mend(self) -> None:
        """Nothing fails until `on` is set again."""
        with self.lock:
            self.on = False
            self.broken_until_s.clear()

    def before_load(self, path: Path) -> None:
        with self.lock:
            slow_s = self.draw.uniform(0.0, 0.3) if self.on and self.draw.random() < 0.2 else 0.0
            fails = self._fails(path, 0.1)
            self.counts["loads"] += fails
        if slow_s:
            time.sleep(slow_s)
        if fails:
            raise EngineError(f"{path.name} does not load, by chance")

    def before_run(self, path: Path) -> None:
        with self.lock:
            fails = self._fails(path, 0.005)
            self.counts["runs"] += fails
        if fails:
            raise RuntimeError(f"{path.name} fails, by chance")

    def _fails(self, path: Path, chance: float) -> bool:
        broken = time.monotonic() < self.broken_until_s.get(self.rank_of[path.name], 0.0)
        return self.on and (broken or self.draw.random() < chance)


class Weather:
    """A device whose battery and heat wander over every threshold of the default policy."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.battery_pct, self.temperature_c = 60.0, 70.0

    def read(self) -> Reading:
        self.battery_pct = min(max(self.battery_pct + self.draw.gauss(0.0, 4.0), 0.0), 100.0)
        self.temperature_c = min(max(self.temperature_c + self.draw.gauss(0.0, 2.0), 40.0), 95.0)
        return Reading(
            time.monotonic(),
            battery_pct=self.battery_pct,
            on_mains=self.draw.random() < 0.3,
            temperature_c=self.temperature_c,
            temperature_limit_c=99.0,
            wall_s=time.time(),
        )


class MoodyPolicy:
    """The default policy with a short dwell, which now and then raises."""

    def __init__(self, policy: RungPolicy, seed: int, counts: Counter[str]) -> None:
        self.policy, self.draw, self.counts = policy, random.Random(seed), counts

    def decide(self, reading: Reading, state: PolicyState) -> Decision:
        if self.draw.random() < 0.02:
            self.counts["policy"] += 1
            raise SystemExit if self.draw.random() < 0.3 else ZeroDivisionError
        return self.policy.decide(reading, state)

    def to_json(self) -> Mapping[str, Any]:
        return self.policy.to_json()


class Soak:
    """One run."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        self.bundle, self.seed = bundle, seed
        self.ranks = bundle.manifest.ladder.ranks
        self.requests, self.alone = questions(bundle)
        self.output = bundle.manifest.outputs[0].name
        self.counts: Counter[str] = Counter()
        self.ranks_seen: Counter[int] = Counter()
        self.events: Counter[str] = Counter()
        self.lost: list[str] = []
        self.lock = threading.Lock()
        self.going = threading.Event()
        self.stop = threading.Event()
        self.idle = [threading.Event() for _ in range(CLIENTS)]
        self.checkpoints: list[dict[str, float]] = []

    def run(self, seconds: float) -> dict[str, Any]:
        chaos = Chaos(self.bundle, self.seed)
        chaos.mend()  # until the first checkpoint: opening shall not fail
        sources: list[FaultyTelemetry] = []

        def telemetry() -> FaultyTelemetry:
            number = self.seed + 100 * len(sources)
            sources.append(FaultyTelemetry(Weather(number), chances(0.01), number + 1, slow_s=0.6))
            return sources[-1]

        limits = replace(load_policy(DEFAULT_POLICY), min_dwell_s=0.2)
        policy = MoodyPolicy(RungPolicy(limits, self.bundle.manifest.ladder), self.seed + 2, chaos.counts)
        sizes = sorted(self.bundle.graph(rank).weight_bytes or 0 for rank in self.ranks)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nsn-edge-bench-")))
            log = folder / "events.jsonl"
            events = stack.enter_context(JsonlEvents(log, max_bytes=1_000_000))
            hear = listeners(self.count_event, events)
            session = EdgeSession.open(
                self.bundle,
                engine=FaultyEngine(OnnxRuntimeEngine(), chaos.before_load, chaos.before_run),
                memory_budget_mb=sum(sizes[-3:]) * 1.01 / 1e6,
                prefetch=True,
                retry_after_s=0.5,
                listener=hear,
            )
            stack.enter_context(session)
            server = Server(
                session, ServerSettings(workers=2, capacity=8), costs=guessed_costs(self.bundle), listener=hear
            )
            stack.enter_context(server)
            sampler = Sampler(telemetry(), 0.02, max_age_s=1.0, hangs_after_s=0.3, reopen=telemetry)
            stack.enter_context(sampler)
            governor = Governor(
                sampler, policy, server, interval_s=0.05, max_age_s=1.0, retry_after_s=1.0, listener=hear
            )
            stack.enter_context(governor)
            clients = [threading.Thread(target=self.client, args=(server, number)) for number in range(CLIENTS)]
            for client in clients:
                client.start()
            self.weather(chaos, session, governor, seconds)
            self.stop.set()
            self.going.set()
            for client in clients:
                client.join()
            server.close()
            governor.close()
            events.close()
            written = [json.loads(line) for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]
        switches = self.events["switched"]
        assert {line["event"] for line in written} <= set(self.events), "events that nobody heard"
        injected: Counter[str] = Counter()
        for source in sources:
            injected.update({fault.value: count for fault, count in source.injected.items()})
        warm = [point for point in self.checkpoints if point["at_s"] >= seconds / 5.0 - 1e-9] or self.checkpoints
        growth = warm[-1]["rss_mb"] / warm[0]["rss_mb"] - 1.0
        keys = ("sent", "answered", "degraded", "expired", "rejected", "cancelled", "refused", "lost", "wrong")
        return {
            "requests": {key: self.counts[key] for key in keys},
            "faults": {
                "telemetry": dict(sorted(injected.items())),
                "sampler_deaths": injected["kills"],
                **{key: chaos.counts[key] for key in ("policy", "loads", "runs", "outages")},
            },
            "switches": switches,
            "ranks_seen": {str(rank): self.ranks_seen[rank] for rank in sorted(self.ranks_seen)},
            "events": dict(sorted(self.events.items())),
            "memory": {"checkpoints": self.checkpoints, "growth": growth},
            "lost": self.lost[:20],
        }

    def weather(self, chaos: Chaos, session: EdgeSession, governor: Governor, seconds: float) -> None:
        """Let everything go wrong, with a checkpoint at the start, at a fifth, at the end and each minute between."""
        draw = random.Random(self.seed + 3)
        marks = sorted({0.0, seconds / 5.0, seconds, *(float(mark) for mark in range(60, int(seconds), 60))})
        start_s = time.monotonic()
        paused_s = 0.0
        for mark in marks:
            while (left_s := mark - (time.monotonic() - start_s - paused_s)) > 0.0:
                time.sleep(min(left_s, draw.expovariate(1.0)))
                chaos.break_some()
            pause_s = time.monotonic()
            self.checkpoint(mark, chaos, session, governor)
            paused_s += time.monotonic() - pause_s
            counts = dict(self.counts)
            print(f"{mark:6.0f} s  {counts}  {self.checkpoints[-1]}", file=sys.stderr)

    def checkpoint(self, at_s: float, chaos: Chaos, session: EdgeSession, governor: Governor) -> None:
        """Bring everything into the same state and look at the memory."""
        self.going.clear()
        governor.close()
        chaos.mend()
        if at_s:
            for idle in self.idle:
                assert idle.wait(2 * PATIENCE_S), "a client does not come back"
        for rank in (self.ranks[-1], *self.ranks[-3:]):  # the top rung and the two below it: what the budget keeps
            self.settle(session, rank)
        self.settle(session, self.ranks[-2])
        time.sleep(0.5)  # for what was evicted to be freed
        assert session.resident_ranks == self.ranks[-3:], session.resident_ranks
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
        status = Path("/proc/self/status").read_text()
        rss_mb, anonymous_mb = (
            int(re.search(rf"^{key}:\s+(\d+) kB", status, re.M)[1]) / 1e3 for key in ("VmRSS", "RssAnon")
        )  # type: ignore[index]
        self.checkpoints.append(
            {"at_s": at_s, "rss_mb": rss_mb, "anonymous_mb": anonymous_mb, "threads": threading.active_count()}
        )
        for idle in self.idle:
            idle.clear()
        chaos.on = True
        governor.start()
        self.going.set()

    def settle(self, session: EdgeSession, rank: int) -> None:
        """Switch there and answer something, so that the rung's memory is touched."""
        session.switch(rank).result(PATIENCE_S)
        for done in session.preload([rank]):  # behind what the loader still has to do
            done.result(PATIENCE_S)
        for request in self.requests:
            session.run(request, rank=rank)

    def client(self, server: Server, number: int) -> None:
        draw = random.Random(self.seed * 1000 + number)
        while not self.stop.is_set():
            if not self.going.is_set():
                self.idle[number].set()
                self.going.wait()
                continue
            self.one_request(server, draw)
            time.sleep(draw.expovariate(1.0 / 0.005))
        self.idle[number].set()

    def one_request(self, server: Server, draw: random.Random) -> None:
        index = draw.randrange(len(self.requests))
        inputs, expects = self.requests[index], "an answer"
        deadline_ms = rank = None
        dice = draw.random()
        if dice < 0.01:
            inputs, expects = {**inputs, "input_ids": inputs["input_ids"][0]}, "InputError"
        elif dice < 0.02:
            inputs, expects = {**inputs, "input_ids": np.full_like(inputs["input_ids"], 10**6)}, "EngineError"
        elif dice < 0.3:
            deadline_ms = draw.choice([1.0, 20.0, 200.0, 5000.0])
        elif dice < 0.4:
            rank = draw.choice(self.ranks)
        self.count("sent")
        try:
            future = server.submit(inputs, deadline_ms=deadline_ms, rank=rank)
        except QueueFullError:
            self.count("rejected")
            return
        if dice > 0.98 and future.cancel():
            self.count("cancelled")
            return
        self.judge(future, index, expects, deadline_ms)

    def judge(self, future: Future[Answer], index: int, expects: str, deadline_ms: float | None) -> None:
        try:
            answer = future.result(PATIENCE_S)
        except InputError as error:
            self.outcome("refused" if expects == "InputError" else "lost", error)
        except DeadlineError as error:
            self.outcome("expired" if deadline_ms is not None else "lost", error)
        except EngineError as error:
            self.outcome("refused" if expects == "EngineError" else "lost", error)
        except (Exception, CancelledError) as error:
            self.outcome("lost", error)
        else:
            right = np.array_equal(answer.outputs[self.output], self.alone[answer.rank][index])
            if expects != "an answer" or not right:
                self.outcome("wrong", ValueError(f"rank {answer.rank}, request {index}, expected {expects}"))
            with self.lock:
                self.counts["answered"] += 1
                self.counts["degraded"] += answer.degraded
                self.ranks_seen[answer.rank] += 1

    def outcome(self, name: str, error: BaseException) -> None:
        with self.lock:
            self.counts[name] += 1
            if name in ("lost", "wrong"):
                self.lost.append(f"{name}: {type(error).__name__}: {error}")
                print(self.lost[-1], file=sys.stderr)

    def count(self, name: str) -> None:
        with self.lock:
            self.counts[name] += 1

    def count_event(self, event: SessionEvent) -> None:
        with self.lock:
            self.events[event.kind] += 1


def tame_malloc() -> None:
    """No holes: blocks of 64 KiB and more are mapped one by one, the others lie in one heap. Only glibc has these."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 64 * 1024)  # M_MMAP_THRESHOLD: a fixed one; by default it grows with what is freed
        mallopt(-8, 1)  # M_ARENA_MAX


def questions(bundle: Bundle) -> tuple[list[Inputs], dict[int, list[np.ndarray]]]:
    """Short real requests, and what each rung alone answers to them."""
    sentences = documentation_corpus().held_out
    output = bundle.manifest.outputs[0].name
    with EdgeSession.open(bundle) as session:
        embedder = TextEmbedder(session)
        requests = [embedder.tokenize([" ".join(text.split()[:6])]) for text in sentences[:8]]
        alone = {
            rank: [session.run(request, rank=rank).outputs[output] for request in requests]
            for rank in bundle.manifest.ladder.ranks
        }
    return requests, alone


def guessed_costs(bundle: Bundle) -> RungCosts:
    """Rising with the rank: enough for deadlines to choose rungs."""
    ladder = bundle.manifest.ladder
    return RungCosts(
        tuple(
            RungCost(rank, 20.0 * ladder.flops_fraction(rank), 60.0 * ladder.flops_fraction(rank))
            for rank in ladder.ranks
        )
    )


def summary(results: dict[str, Any]) -> Table:
    table = Table(title="Soak", title_justify="left")
    for heading in ("what", "n"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for name, count in results["requests"].items():
        table.add_row(f"requests {name}", str(count))
    table.add_row("switches of the rung", str(results["switches"]))
    faults = dict(results["faults"])
    for name, count in faults.pop("telemetry").items():
        table.add_row(f"readings spoiled: {name}", str(count))
    for name, count in faults.items():
        table.add_row(f"faults: {name}", str(count))
    first, last = results["memory"]["checkpoints"][0], results["memory"]["checkpoints"][-1]
    table.add_row("resident memory, first and last checkpoint, MB", f"{first['rss_mb']:.1f}, {last['rss_mb']:.1f}")
    return table


if __name__ == "__main__":
    main()
