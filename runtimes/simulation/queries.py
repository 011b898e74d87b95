"""Real queries for a simulation: a session that is asked the same things at every moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.engines import Array
from nsn_edge.runtimes.profiling.inputs import PAST_LENGTH, dimension_names, synthesise_inputs, vocabulary_size
from nsn_edge.runtimes.session import EdgeSession, Switch
from nsn_edge.runtimes.text import TextEmbedder

_MADE_UP_TOKENS = 32


class Queries(Protocol):
    """Something that answers, at a rung that can be switched without blocking it."""

    def switch(self, rank: int) -> None:
        """Ask for a rung. Returns at once; until it is there the old one answers."""

    def answer(self, index: int) -> tuple[int, float]:
        """Ask query `index` at the current rung: the rank that answered and the latency in milliseconds.

        Raises:
            Exception: the query failed.
        """
        ...

    def settle(self) -> None:
        """Wait until the rung asked for last is there.

        Raises:
            Exception: it cannot be loaded.
        """


class SessionQueries:
    """A session and a few requests, asked in turn."""

    def __init__(self, session: EdgeSession, requests: Sequence[Mapping[str, Array]]) -> None:
        """
        Args:
            session: stays the caller's to close.
            requests: inputs of the bundle's graphs. Of one size, if latencies are to differ by the rung alone.

        Raises:
            UsageError: there are no requests.
        """
        if not requests:
            raise UsageError("no queries to ask: give at least one")
        self._session = session
        self._requests = tuple(requests)
        self._asked: Future[Switch] | None = None

    @classmethod
    def for_bundle(cls, session: EdgeSession, texts: Sequence[str]) -> SessionQueries:
        """Ask about `texts` where the bundle takes text, and with made-up inputs of batch 1 where it does not.

        Raises:
            UsageError: the inputs can neither be made from text nor made up.
            BundleError: the bundle's tokenizer cannot be read.
            MissingDependencyError: the package `tokenizers` is not installed.
        """
        manifest = session.bundle.manifest
        if manifest.task.name == "feature-extraction":
            embedder = TextEmbedder(session)
            return cls(session, [embedder.tokenize([text]) for text in texts])
        names = dimension_names(manifest.inputs)
        tokens = min(_MADE_UP_TOKENS, manifest.task.max_length or _MADE_UP_TOKENS)
        if PAST_LENGTH in names:  # a decoder: one part stands in its cache, the other is new
            tokens = max(tokens // 2, 1)
        sizes = {name: 1 if "batch" in name else tokens for name in names}
        return cls(session, [synthesise_inputs(manifest.inputs, sizes, vocabulary=vocabulary_size(session.bundle))])

    def switch(self, rank: int) -> None:
        """Ask the session for a rung."""
        self._asked = self._session.switch(rank)

    def answer(self, index: int) -> tuple[int, float]:
        """Run request `index`, counted round and round, at the session's current rung.

        Raises:
            EngineError: as `EdgeSession.run`.
        """
        answer = self._session.run(self._requests[index % len(self._requests)])
        return answer.rank, answer.latency_ms

    def settle(self) -> None:
        """Wait for the rung asked for last.

        Raises:
            EngineError: it cannot be loaded; the old rung goes on answering.
        """
        if self._asked is not None:
            asked, self._asked = self._asked, None
            asked.result()
