"""A trace through a policy, alone and with queries answered meanwhile."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsn_edge.errors import EngineError, UsageError
from nsn_edge.ladder import RankLadder, uniform_ladder
from nsn_edge.runtimes.data import DEFAULT_POLICY, FIELD_SHIFT_TRACE
from nsn_edge.runtimes.engines import OnnxRuntimeEngine
from nsn_edge.runtimes.engines.faulty import FaultyEngine, fail_on
from nsn_edge.runtimes.policy import RungPolicy, load_policy
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.simulation import SessionQueries, SimulationResult, simulate
from nsn_edge.runtimes.telemetry import Reading, TelemetryTrace, load_trace

PLAIN = uniform_ladder([("a", 384, 384, 384)], align=8)
LADDER = PLAIN.with_rungs([PLAIN.rank_for_fraction(part) for part in (0.25, 0.35, 0.5, 0.75)], dense_top=True)


def policy(ladder: RankLadder = LADDER) -> RungPolicy:
    return RungPolicy(load_policy(DEFAULT_POLICY), ladder)


def trace(*rows: tuple[float, float | None, bool | None, float | None]) -> TelemetryTrace:
    return TelemetryTrace("scripted", tuple(Reading(*row) for row in rows))


class FakeQueries:
    """Switches one answer late, as a session that loads in the background; fails where it is told to."""

    def __init__(self, fail_answers: tuple[int, ...] = (), fail_switch_to: int | None = None) -> None:
        self.rank = self.asked = 384
        self.log: list[str] = []
        self.answers = 0
        self._fail_answers = fail_answers
        self._fail_switch_to = fail_switch_to

    def switch(self, rank: int) -> None:
        self.log.append(f"switch {rank}")
        self.asked = rank

    def answer(self, index: int) -> tuple[int, float]:
        self.answers += 1
        self.log.append(f"answer {index} at {self.rank}")
        if self.answers in self._fail_answers:
            raise RuntimeError("the engine broke")
        return self.rank, self.rank / 10.0

    def settle(self) -> None:
        self.log.append("settle")
        if self.asked == self._fail_switch_to:
            raise EngineError("no such graph")
        self.rank = self.asked


def test_the_shipped_trace_visits_every_rung_for_every_kind_of_reason() -> None:
    result = simulate(load_trace(FIELD_SHIFT_TRACE), policy(), LADDER)
    assert set(result.time_at_rung_s) == set(LADDER.ranks)
    assert all(seconds > 0 for seconds in result.time_at_rung_s.values())
    reasons = " ".join(switch.reason for switch in result.switches)
    for word in ("battery 20 %", "temperature", "on mains", "unknown", "one rung up"):
        assert word in reasons
    assert 5 <= len(result.switches) <= 30
    assert result.queries == 0


def test_time_at_rungs_switches_and_rates() -> None:
    result = simulate(
        trace((0, 90, False, 40), (30, 90, False, 40), (60, 9, False, 40), (90, 9, True, 40), (120, 9, True, 40)),
        policy(),
        LADDER,
    )
    assert [moment.rank for moment in result.timeline] == [384, 384, 48, 48, 64]
    assert result.time_at_rung_s == {48: 60.0, 64: 0.0, 96: 0.0, 144: 0.0, 384: 60.0}
    assert [(s.time_s, s.from_rank, s.to_rank) for s in result.switches] == [(60.0, 384, 48), (120.0, 48, 64)]
    assert result.switches_per_minute == 1.0
    assert result.switches[0].reason == "battery 9 % is at or below 10 %: at most 25 % of FLOPs"


def test_one_row_is_a_simulation_too() -> None:
    result = simulate(trace((5, 90, False, 40)), policy(), LADDER)
    assert result.duration_s == 0.0
    assert result.switches_per_minute == 0.0
    assert sum(result.time_at_rung_s.values()) == 0.0


rows = st.tuples(
    st.floats(0, 1e5),
    st.none() | st.floats(0, 100),
    st.none() | st.booleans(),
    st.none() | st.floats(-20, 110),
)


@given(data=st.lists(rows, min_size=1, max_size=40))
@settings(max_examples=50)
def test_what_holds_for_every_trace(data: list[tuple[float, float | None, bool | None, float | None]]) -> None:
    result = simulate(trace(*sorted(data, key=lambda row: row[0])), policy(), LADDER)
    assert sum(result.time_at_rung_s.values()) == pytest.approx(result.duration_s)
    ranks = [moment.rank for moment in result.timeline]
    assert [(s.from_rank, s.to_rank) for s in result.switches] == [
        (a, b) for a, b in itertools.pairwise(ranks) if a != b
    ]
    assert json.loads(json.dumps(result.to_json(), allow_nan=False)) == result.to_json()


def test_json_has_the_documented_keys() -> None:
    data = simulate(
        trace((0, 90, False, 40), (60, None, None, None)), policy(), LADDER, queries=FakeQueries()
    ).to_json()
    assert (data["schema_version"], data["kind"]) == (1, "simulation")
    assert data["trace"] == {"name": "scripted", "rows": 2, "duration_s": 60.0}
    assert data["policy"]["name"] == "default"
    assert data["ladder"][-1] == {"rank": 384, "dense": True, "flops_fraction": 1.0}
    assert data["timeline"][1] == {
        "time_s": 60.0,
        "battery_pct": None,
        "on_mains": None,
        "temperature_c": None,
        "rank": 48,
        "latency_ms": 38.4,
        "answered_by_rank": 384,
    }
    assert set(data["switches"][0]) == {"time_s", "from_rank", "to_rank", "reason"}
    assert data["summary"] == {
        "time_at_rung_s": {"48": 0.0, "64": 0.0, "96": 0.0, "144": 0.0, "384": 60.0},
        "switches": 1,
        "switches_per_minute": 1.0,
        "queries": 2,
        "failed_queries": 0,
        "failed_switches": 0,
        "first_failure": None,
    }


def test_queries_run_while_the_switch_is_under_way() -> None:
    queries = FakeQueries()
    result = simulate(
        trace((0, 90, False, 40), (5, 9, False, 40), (10, 9, False, 40)),
        policy(),
        LADDER,
        queries=queries,
        queries_per_row=2,
    )
    assert queries.log == [
        *("switch 384", "answer 0 at 384", "answer 1 at 384", "settle"),
        *("switch 48", "answer 0 at 384", "answer 1 at 384", "settle"),
        *("answer 0 at 48", "answer 1 at 48"),
    ]
    assert [(m.rank, m.answered_by_rank, m.latency_ms) for m in result.timeline] == [
        (384, 384, 38.4),
        (48, 384, 38.4),
        (48, 48, 4.8),
    ]
    assert result.median_latency_ms(48) == 4.8
    assert result.median_latency_ms(96) is None


def test_failed_queries_are_counted_and_the_replay_goes_on() -> None:
    queries = FakeQueries(fail_answers=(2, 3))
    result = simulate(
        trace((0, 90, False, 40), (5, 90, False, 40), (10, 90, False, 40)), policy(), LADDER, queries=queries
    )
    assert (result.queries, result.failed_queries) == (3, 2)
    assert [moment.latency_ms for moment in result.timeline] == [38.4, None, None]
    assert result.first_failure == "RuntimeError: the engine broke"


def test_a_rung_that_cannot_be_loaded_leaves_the_old_one_answering() -> None:
    queries = FakeQueries(fail_switch_to=48)
    result = simulate(
        trace((0, 90, False, 40), (5, 9, False, 40), (10, 9, False, 40)), policy(), LADDER, queries=queries
    )
    assert result.failed_switches == 1
    assert result.failed_queries == 0
    assert result.first_failure == "no such graph"
    assert [moment.answered_by_rank for moment in result.timeline] == [384, 384, 384]


def test_progress_hears_of_every_row() -> None:
    heard: list[tuple[str, int, int]] = []
    simulate(
        trace((0, 90, False, 40), (5, 9, False, 40)),
        policy(),
        LADDER,
        progress=lambda stage, done, total: heard.append((stage, done, total)),
    )
    assert heard == [("simulate", 1, 2), ("simulate", 2, 2)]


def test_senseless_numbers_of_queries_are_refused() -> None:
    with pytest.raises(UsageError, match="1 or more, not 0"):
        simulate(trace((0, 90, False, 40)), policy(), LADDER, queries_per_row=0)


def run_session(path: Path, engine: FaultyEngine | OnnxRuntimeEngine, texts: list[str]) -> SimulationResult:
    with EdgeSession.open(path, engine=engine) as session:
        ladder = session.bundle.manifest.ladder
        return simulate(
            trace((0, 90, False, 40), (5, 9, False, 40), (10, 9, False, 40), (15, 9, True, 40), (40, 9, True, 40)),
            policy(ladder),
            ladder,
            queries=SessionQueries.for_bundle(session, texts),
            queries_per_row=3,
        )


@pytest.mark.parametrize("kind", ["text_bundle", "tiny_bundle"])
def test_a_real_session_answers_every_query_at_the_rungs_asked_for(kind: str, request: pytest.FixtureRequest) -> None:
    path, model = request.getfixturevalue(kind)
    result = run_session(path, OnnxRuntimeEngine(), ["the loop exits", "a file opens"])
    assert (result.queries, result.failed_queries, result.failed_switches) == (15, 0, 0)
    lowest, *_, top = model.ladder.ranks
    settled = result.timeline[2]
    assert (result.timeline[0].answered_by_rank, settled.rank, settled.answered_by_rank) == (top, lowest, lowest)
    assert all(moment.latency_ms is not None and moment.latency_ms > 0 for moment in result.timeline)


def test_a_real_session_outlives_a_rung_that_cannot_be_loaded(text_bundle: tuple[Path, object]) -> None:
    path, _ = text_bundle
    engine = FaultyEngine(OnnxRuntimeEngine(), before_load=fail_on("rank-002.onnx"))
    result = run_session(path, engine, ["the loop exits"])
    assert result.failed_queries == 0
    assert result.failed_switches == 1
    assert "rank-002.onnx" in result.first_failure


def test_a_session_needs_something_to_ask(text_bundle: tuple[Path, object]) -> None:
    with EdgeSession.open(text_bundle[0]) as session, pytest.raises(UsageError, match="no queries"):
        SessionQueries.for_bundle(session, [])
