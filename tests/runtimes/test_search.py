"""Semantic search: the nearest passage comes first, at whatever rank the query is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_bundle import ALL_RUNGS, TOP, write_text_bundle

from nsn_edge.bundle import Bundle
from nsn_edge.corpus import Passage
from nsn_edge.errors import RankError, UsageError
from nsn_edge.runtimes.search import SearchIndex
from nsn_edge.runtimes.session import EdgeSession
from nsn_edge.runtimes.text import TextEmbedder

PASSAGES = [
    Passage("", "the loop exits with break"),
    Passage("", "a file opens"),
    Passage("", "the file ends not"),
    Passage("", "a loop a loop a loop"),
]


@pytest.fixture
def embedder(tmp_path: Path) -> Iterator[TextEmbedder]:
    write_text_bundle(tmp_path / "bundle")
    with EdgeSession.open(tmp_path / "bundle") as session:
        yield TextEmbedder(session)


@pytest.mark.parametrize("rank", ALL_RUNGS[1:])  # at the lowest the vectors all lie on one line
def test_a_passage_finds_itself_in_an_index_of_its_own_rank(embedder: TextEmbedder, rank: int) -> None:
    index = SearchIndex.build(embedder, PASSAGES, rank=rank)
    assert index.rank == rank
    for passage in PASSAGES:
        result = index.query(passage.text, top_k=4, rank=rank)
        assert result.hits[0].passage == passage
        assert result.hits[0].score == pytest.approx(1.0, abs=1e-5)
        assert [hit.score for hit in result.hits] == sorted((hit.score for hit in result.hits), reverse=True)
        assert result.rank == rank
        assert result.latency_ms > 0


def test_scores_are_cosines_between_ranks(embedder: TextEmbedder) -> None:
    index = SearchIndex.build(embedder, PASSAGES)
    assert index.rank == TOP, "the top rung by default"
    result = index.query("a loop", top_k=99, rank=5)
    vectors = embedder.embed([passage.text for passage in PASSAGES], rank=TOP)
    expected = vectors @ embedder.embed(["a loop"], rank=5)[0]
    assert len(result.hits) == len(PASSAGES)
    for hit in result.hits:
        assert hit.score == pytest.approx(expected[PASSAGES.index(hit.passage)], abs=1e-5)


def test_queries_follow_the_session(embedder: TextEmbedder) -> None:
    index = SearchIndex.build(embedder, PASSAGES)
    assert index.query("break").rank == TOP
    embedder.session.switch(2).result()
    assert index.query("break").rank == 2


def test_titles_are_searched_too(embedder: TextEmbedder) -> None:
    index = SearchIndex.build(embedder, [Passage("break", "a file"), Passage("", "a file")])
    scores = {hit.passage.title: hit.score for hit in index.query("a file", top_k=2).hits}
    assert scores[""] == pytest.approx(1.0, abs=1e-5)
    assert scores["break"] < 0.999


def test_equal_passages_keep_their_order(embedder: TextEmbedder) -> None:
    passages = [Passage(title="", text="a loop") for _ in range(20)]
    index = SearchIndex.build(embedder, [*passages, Passage("", "a file")])
    hits = index.query("a loop", top_k=21).hits
    assert [hit.passage for hit in hits] == [*passages, Passage("", "a file")]


def test_json_is_that_of_a_search(embedder: TextEmbedder) -> None:
    data = SearchIndex.build(embedder, PASSAGES).query("break", top_k=2, rank=8).to_json()
    assert {key: data[key] for key in ("schema_version", "kind", "query", "rank")} == {
        "schema_version": 1,
        "kind": "search",
        "query": "break",
        "rank": 8,
    }
    assert [set(result) for result in data["results"]] == [{"score", "title", "text"}] * 2


def test_a_small_budget_indexes_at_what_fits(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write_text_bundle(path)
    budget_mb = (Bundle.open(path).graph(5).weight_bytes or 0) / 1e6
    with EdgeSession.open(path, memory_budget_mb=budget_mb) as session:
        index = SearchIndex.build(TextEmbedder(session), PASSAGES)
        assert index.rank == 5
        score = index.query(PASSAGES[1].text, top_k=1).hits[0].score
    assert score == pytest.approx(1.0, abs=1e-5)


def test_what_cannot_be_searched(embedder: TextEmbedder) -> None:
    with pytest.raises(UsageError, match="no passages"):
        SearchIndex.build(embedder, [])
    with pytest.raises(RankError, match="no rung at rank 3"):
        SearchIndex.build(embedder, PASSAGES, rank=3)
    index = SearchIndex.build(embedder, PASSAGES)
    with pytest.raises(UsageError, match="the query is empty"):
        index.query("  ")
    with pytest.raises(UsageError, match="top_k is 1 or more, not 0"):
        index.query("loop", top_k=0)
    with pytest.raises(RankError, match="no rung at rank 3"):
        index.query("loop", rank=3)
