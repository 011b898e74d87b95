"""The cascade on real graphs: every row as its rung alone answers it, the ceiling, costs, and rungs that fail."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import ALL_RUNGS, TinyModel, sign, write_text_bundle, write_tiny_bundle

from nsn_edge.errors import RankError, UsageError
from nsn_edge.runtimes.difficulty import MEASURES, Cascade, CascadeAnswer, DifficultyRule, certainty
from nsn_edge.runtimes.session import EdgeSession

COUNT = 64


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyModel]:
    path = tmp_path_factory.mktemp("cascade") / "bundle"
    return path, write_tiny_bundle(path)


@pytest.fixture
def session(bundle: tuple[Path, TinyModel]) -> Iterator[EdgeSession]:
    with EdgeSession.open(bundle[0]) as session:
        yield session


def questions(count: int = COUNT, seed: int = 1) -> dict[str, np.ndarray]:
    """Small numbers, so that not every answer is certain."""
    x = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32) * np.float32(0.2)
    return {"x": x}


def ask(session: EdgeSession, rule: DifficultyRule, count: int = COUNT) -> CascadeAnswer:
    return Cascade(session, rule, logits="y").run(questions(count))


def alone(session: EdgeSession, rank: int, count: int = COUNT) -> np.ndarray:
    return session.run(questions(count), rank).outputs["y"]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("ranks", "thresholds"), [((2, 16), (0.3,)), ((2, 5, 8), (0.4, 0.2)), (ALL_RUNGS, (0.5,) * 3)])
def test_each_row_is_answered_as_its_rung_alone_answers_it(
    session: EdgeSession, measure: str, ranks: tuple[int, ...], thresholds: tuple[float, ...]
) -> None:
    thresholds = tuple(float(np.quantile(certainty(alone(session, ranks[0]), measure), t)) for t in thresholds)
    rule = DifficultyRule(thresholds, ranks=ranks, measure=measure)
    answer = ask(session, rule)
    by_rank = {rank: alone(session, rank) for rank in ranks}
    wanted = np.full(COUNT, ranks[-1])
    for rank, threshold in reversed(list(zip(ranks, thresholds, strict=False))):
        wanted[certainty(by_rank[rank], measure) >= threshold] = rank
    assert answer.ranks.tolist() == wanted.tolist()
    assert len(set(wanted)) > 1, "the case must ask some rows again and some not"
    for row, rank in enumerate(wanted):
        np.testing.assert_allclose(answer.outputs["y"][row], by_rank[rank][row], rtol=1e-4, atol=1e-5)
    expected = certainty(answer.outputs["y"], measure)
    np.testing.assert_allclose(answer.certainty, expected, rtol=1e-3, atol=1e-5)


@given(low=st.floats(0, 1), high=st.floats(0, 1), measure=st.sampled_from(MEASURES))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_higher_threshold_never_asks_less(session: EdgeSession, low: float, high: float, measure: str) -> None:
    low, high = min(low, high), max(low, high)
    answers = [ask(session, DifficultyRule((t,), ranks=(2, 8), measure=measure), 24) for t in (low, high)]
    assert set(np.flatnonzero(answers[0].ranks == 8)) <= set(np.flatnonzero(answers[1].ranks == 8))
    assert answers[0].flops_fraction <= answers[1].flops_fraction


def test_an_answer_costs_every_run_it_took(session: EdgeSession, bundle: tuple[Path, TinyModel]) -> None:
    share = bundle[1].ladder.flops_fraction
    cascade = Cascade(session, DifficultyRule((0.3,), ranks=(2, 16)), logits="y")
    assert cascade.counts.mean_flops_fraction is None
    answer = cascade.run(questions())
    again = int((answer.ranks == 16).sum())
    assert 0 < again < COUNT
    assert answer.flops_fraction == pytest.approx(share(2) + again / COUNT * share(16))
    cascade.run(questions())
    counts = cascade.counts
    assert (counts.answers, counts.passed_on) == (2 * COUNT, 2 * again)
    assert counts.mean_flops_fraction == pytest.approx(answer.flops_fraction)
    assert counts.share_passed_on == pytest.approx(again / COUNT)
    assert counts.by_rank == {2: 2 * (COUNT - again), 16: 2 * again}
    assert counts.to_json()["by_rank"] == {"2": 2 * (COUNT - again), "16": 2 * again}
    assert [run.rank for run in answer.asked] == [2, 16]
    assert answer.latency_ms == sum(run.latency_ms for run in answer.asked)


@pytest.mark.parametrize("ceiling", ALL_RUNGS)
@pytest.mark.parametrize("ranks", [(2, 16), (5, 8), (5, 8, 16), (8, 16)])
def test_nothing_is_asked_above_the_session_s_rank(session: EdgeSession, ceiling: int, ranks: tuple[int, ...]) -> None:
    session.switch(ceiling).result()
    answer = ask(session, DifficultyRule((1.0,) * (len(ranks) - 1), ranks=ranks))
    asked = [run.rank for run in answer.asked]
    assert asked == sorted({min(rank, ceiling) for rank in ranks}), "the session's rank stands in for what is above it"
    assert set(answer.ranks) == {asked[-1]}
    why = answer.why(0)
    assert ("allows no more" in why) == (ceiling < ranks[-1]), why
    np.testing.assert_allclose(answer.outputs["y"], alone(session, asked[-1]), rtol=1e-4, atol=1e-5)
    assert session.rank == ceiling


def test_a_sure_answer_says_so_even_under_a_ceiling(session: EdgeSession) -> None:
    session.switch(2).result()
    rule = DifficultyRule((0.0,), ranks=(2, 16))
    assert ask(session, rule).why(3).endswith("at rank 2 is certain enough (0.00)")
    session.switch(16).result()
    (first, second) = ask(session, DifficultyRule((1.0,), ranks=(2, 16)), 1).why(0).split("; ")
    assert first.startswith("margin 0.")
    assert first.endswith("at rank 2 is uncertain (below 1.00)")
    assert second == "rank 16 was asked"


def test_where_a_higher_rung_fails_the_answer_before_stands(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    with EdgeSession.open(tmp_path / "b", rank=8) as session:
        (tmp_path / "b" / "rank-005.onnx").write_bytes(b"no graph")
        answer = ask(session, DifficultyRule((1.0,), ranks=(2, 5)))
        assert set(answer.ranks) == {2}
        assert "rank 5 failed: " in answer.why(0)
        np.testing.assert_allclose(answer.outputs["y"], alone(session, 2), rtol=1e-4, atol=1e-5)


def test_where_the_first_rung_fails_another_stands_in(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    with EdgeSession.open(tmp_path / "b", rank=2) as session:
        (tmp_path / "b" / "rank-005.onnx").write_bytes(b"no graph")
        session.switch(8).result()
        answer = ask(session, DifficultyRule((1.0,), ranks=(5, 8)))
        assert [run.rank for run in answer.asked] == [2, 8]
        assert set(answer.ranks) == {8}


def test_threads_share_a_cascade(session: EdgeSession) -> None:
    cascade = Cascade(session, DifficultyRule((0.3,), ranks=(2, 16)), logits="y")
    expected = cascade.run(questions())
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: cascade.run(questions()), range(40)))
    for answer in answers:
        assert answer.ranks.tolist() == expected.ranks.tolist()
        np.testing.assert_allclose(answer.outputs["y"], expected.outputs["y"], rtol=1e-4, atol=1e-5)
    assert cascade.counts.answers == 41 * COUNT


@pytest.mark.parametrize("form", ["sliced", "masked"])
def test_a_graph_of_every_rank_answers_too(bundle: tuple[Path, TinyModel], form: str) -> None:
    with EdgeSession.open(bundle[0], form=form) as session:
        session.switch(7).result()
        answer = ask(session, DifficultyRule((1.0,), ranks=(2, 16)))
        assert [run.rank for run in answer.asked] == [2, 7]
        assert answer.flops_fraction == pytest.approx(sum(bundle[1].ladder.flops_fraction(rank) for rank in (2, 7)))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"x": np.zeros((0, 16), np.float32)},
        {"x": np.float32(1)},
        {"x": np.zeros((2, 16), np.float32), "z": np.zeros((3, 16), np.float32)},
    ],
)
def test_what_is_no_batch_is_refused(session: EdgeSession, inputs: dict[str, np.ndarray]) -> None:
    cascade = Cascade(session, DifficultyRule((0.5,), ranks=(2, 16)), logits="y")
    with pytest.raises(UsageError, match="a batch is the first axis"):
        cascade.run(inputs)


def test_bundles_without_classes_are_refused(session: EdgeSession, tmp_path: Path) -> None:
    rule = DifficultyRule((0.5,), ranks=(2, 16))
    with pytest.raises(UsageError, match="is a bundle for custom, and difficulty is seen in the logits"):
        Cascade(session, rule)
    with pytest.raises(UsageError, match=r"has no output z of the shape .* it has y float32 \['batch_size', 8\]"):
        Cascade(session, rule, logits="z")
    write_text_bundle(tmp_path / "text")
    with EdgeSession.open(tmp_path / "text") as encoder:
        with pytest.raises(UsageError, match="is a bundle for feature-extraction"):
            Cascade(encoder, rule)
        with pytest.raises(UsageError, match="no output last_hidden_state of the shape"):
            Cascade(encoder, rule, logits="last_hidden_state")


def test_a_batch_that_is_fixed_is_refused(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    fixed = [{"name": "x", "dtype": "float32", "shape": [4, 16]}]
    sign(tmp_path / "b", inputs=fixed, outputs=[{"name": "y", "dtype": "float32", "shape": [4, 8]}])
    with (
        EdgeSession.open(tmp_path / "b") as session,
        pytest.raises(UsageError, match="does not take rows of a batch apart"),
    ):
        Cascade(session, DifficultyRule((0.5,), ranks=(2, 16)), logits="y")


def test_a_rule_of_other_weights_or_rungs_is_refused(session: EdgeSession) -> None:
    (weights,) = [item for item in session.bundle.manifest.artifacts if item.kind == "weights"]
    Cascade(session, DifficultyRule((0.5,), ranks=(2, 16), bundle_sha256=weights.sha256), logits="y")
    with pytest.raises(UsageError, match="calibrated on other weights"):
        Cascade(session, DifficultyRule((0.5,), ranks=(2, 16), bundle_sha256="0" * 64), logits="y")
    with pytest.raises(RankError, match="no rung at rank 3"):
        Cascade(session, DifficultyRule((0.5,), ranks=(3, 16)), logits="y")
