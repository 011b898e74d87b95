"""Semantic search: which passages mean what a query asks, by cosine similarity of embeddings.

The passages are embedded once, at the top rung by default; a query may be answered at any rank against them, as the
embeddings of all rungs live in one space.

Which rank to index at? Measured with MiniLM cut without training, 504 passages, queries at 25 % / 50 % of linear FLOPs:
for 20 short questions an index at the top rung gives the first hit of the full model in 70 % / 95 % of cases, one at
the query's own rank in 45 % / 80 %. For whole sentences of the passages it is the other way round: the right passage
comes first in 38 % / 69 % of cases against 54 % / 69 % (72 % at full power).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nsn_edge.corpus import Passage
from nsn_edge.errors import UsageError
from nsn_edge.progress import Progress, silent
from nsn_edge.runtimes.text import TextEmbedder


@dataclass(frozen=True)
class Hit:
    """A passage found."""

    score: float
    """Cosine similarity with the query, in `[-1, 1]`."""
    passage: Passage
    """What was found."""


@dataclass(frozen=True)
class SearchResult:
    """The passages nearest to a query."""

    query: str
    """As asked."""
    rank: int
    """That embedded the query."""
    latency_ms: float
    """From text to hits: tokenizer, inference and comparison."""
    hits: tuple[Hit, ...]
    """Best first."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, kind `search`."""
        return {
            "schema_version": 1,
            "kind": "search",
            "query": self.query,
            "rank": self.rank,
            "latency_ms": self.latency_ms,
            "results": [
                {"score": hit.score, "title": hit.passage.title, "text": hit.passage.text} for hit in self.hits
            ],
        }


class SearchIndex:
    """Passages and their embeddings; many threads may query one."""

    def __init__(
        self, embedder: TextEmbedder, passages: Sequence[Passage], vectors: npt.NDArray[np.float32], rank: int
    ) -> None:
        """Use `build`."""
        self.passages = tuple(passages)
        """What is searched."""
        self.rank = rank
        """At which the passages were embedded."""
        self._embedder = embedder
        self._vectors = vectors

    @classmethod
    def build(
        cls,
        embedder: TextEmbedder,
        passages: Sequence[Passage],
        *,
        rank: int | None = None,
        progress: Progress = silent,
    ) -> SearchIndex:
        """Embed the passages.

        Args:
            embedder: embeds them, and later the queries.
            passages: at least one.
            rank: to embed them at. None takes the session's top rank: passages are embedded once and searched often, so
                the best embeddings pay, and one index serves queries of every rank.
            progress: hears of the passages done.

        Raises:
            UsageError: there are no passages.
            RankError: as `EdgeSession.run`.
            EngineError: as `EdgeSession.run`.
        """
        if not passages:
            raise UsageError("nothing to search in: there are no passages")
        rank = embedder.session.top_rank if rank is None else rank
        texts = [f"{passage.title}. {passage.text}" if passage.title else passage.text for passage in passages]
        return cls(embedder, passages, _unit(embedder.embed(texts, rank=rank, progress=progress)), rank)

    def query(self, text: str, *, top_k: int = 3, rank: int | None = None) -> SearchResult:
        """The `top_k` passages most like a text.

        Args:
            text: what to look for.
            top_k: how many passages; all of them where there are fewer.
            rank: that embeds the query; None for the session's current one.

        Raises:
            UsageError: the query is empty, or `top_k` is below 1.
            RankError: as `EdgeSession.run`.
            EngineError: as `EdgeSession.run`.
        """
        if not text.strip():
            raise UsageError("the query is empty")
        if top_k < 1:
            raise UsageError(f"top_k is 1 or more, not {top_k}")
        start = time.perf_counter()
        answer = self._embedder.embed_one(text, rank=rank)
        scores = self._vectors @ _unit(answer.vector)
        # A stable sort: of equal scores the earlier passage comes first, whatever numpy's default does.
        best = np.argsort(-scores, kind="stable")[:top_k]
        hits = tuple(Hit(float(scores[index]), self.passages[index]) for index in best)
        return SearchResult(text, answer.rank, (time.perf_counter() - start) * 1e3, hits)


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scaled to length 1 along the last axis; a zero vector stays zero and is like nothing."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    unit: npt.NDArray[np.float32] = (vectors / lengths).astype(np.float32, copy=False)
    return unit
