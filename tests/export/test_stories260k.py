"""A real Llama, end to end: its author's published text, word for word, and what its rungs cost in quality."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from shared_data import shared_data
from stories260k import (
    BOS,
    load_model,
    load_tokenizer,
    nested_checkpoint,
    perplexity,
    published_text,
    read_pieces,
    told_stories,
)

from nsn_edge.export.exporter import ExportConfig, export_bundle
from nsn_edge.runtimes.generation import GenerationConfig, Generator
from nsn_edge.runtimes.session import EdgeSession

AUTHORS_TOKENS = 256
"""What his program writes unless told otherwise."""


@pytest.fixture(scope="module")
def folder() -> Path:
    return shared_data("stories260K")


@pytest.fixture(scope="module")
def sessions(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EdgeSession]]:
    """The model cut in both ways, exported, opened."""
    base = tmp_path_factory.mktemp("stories")
    told = told_stories(load_model(folder), stories=24, length=120, seed=0)
    opened = {}
    for method, text in (("whitened", told), ("svd", None)):
        checkpoint = nested_checkpoint(folder, base / "assets", method, text)
        bundle = export_bundle(checkpoint, base / method, ExportConfig(forms=("static",)))
        opened[method] = EdgeSession.open(bundle)
    yield opened
    for session in opened.values():
        session.close()


@pytest.fixture(scope="module")
def generator(sessions: dict[str, EdgeSession]) -> Generator:
    return Generator(sessions["whitened"])


def test_the_published_text_word_for_word(generator: Generator, folder: Path) -> None:
    published = published_text(folder)
    assert published.startswith("Once upon a time, there was a little girl named Lily.")
    assert published.endswith("We can help you.")
    found = generator.generate([[BOS]], GenerationConfig(max_new_tokens=AUTHORS_TOKENS))[0]
    assert found.text == published
    assert len(found.tokens) == AUTHORS_TOKENS


def test_the_published_text_continues_from_its_beginning_in_a_batch(generator: Generator, folder: Path) -> None:
    published = published_text(folder)
    beginnings = ["Once upon a time", "Once upon a time, there was a little girl named Lily. She loved to play"]
    found = generator.generate(beginnings, GenerationConfig(max_new_tokens=120))
    for beginning, generation in zip(beginnings, found, strict=True):
        assert published.startswith(beginning + generation.text)
        assert len(generation.text) > 200


def test_streaming_stops_at_the_end_of_the_paragraph(generator: Generator, folder: Path) -> None:
    stream = generator.stream([[BOS]], GenerationConfig(max_new_tokens=AUTHORS_TOKENS, stop=("\nLily",)))
    text = "".join(piece.text for piece in stream)
    assert text == published_text(folder).split("\nLily")[0] == stream.generations[0].text
    assert stream.generations[0].finish_reason == "stop"


def test_rungs_lose_quality_in_their_order_and_whitening_saves_some(
    sessions: dict[str, EdgeSession], folder: Path
) -> None:
    told = told_stories(load_model(folder), stories=8, length=120, seed=1).numpy()  # not those of the calibration
    perplexities = {}
    for method, session in sessions.items():
        decoder = Generator(session).decoder
        perplexities[method] = [perplexity(decoder, told, rank) for rank in session.ladder.ranks]
    for values in perplexities.values():
        *rungs, dense = values
        assert rungs == sorted(rungs, reverse=True)
        assert 1 < dense < rungs[-1]
    whitened, svd = np.array(perplexities["whitened"]), np.array(perplexities["svd"])
    assert whitened[-1] == svd[-1], "the dense rung is the original however the factors were made"
    assert (whitened[:-1] < svd[:-1]).all()


def test_the_tokenizer_is_that_of_the_authors_program(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    pieces = read_pieces(folder)
    texts = [published_text(folder), "One day, Tom saw 3 cats — naïve 😀!", "  two  spaces ", "\n\tZebra", "xyzzy QXZ"]
    for text in texts:
        assert tokenizer.encode(text).ids == [BOS, *_as_in_llama2c(text, pieces)]
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def _as_in_llama2c(text: str, pieces: list[tuple[bytes, float]]) -> list[int]:
    """`encode` of the author's run.c: characters or their bytes, then the best merge over and over."""
    ids = {piece: index for index, (piece, _) in reversed(list(enumerate(pieces)))}
    found: list[int] = []
    for character in " " + text:
        data = character.encode()
        found += [ids[data]] if data in ids else [byte + 3 for byte in data]
    while True:
        merges = [
            (-pieces[ids[both]][1], at, ids[both])
            for at, (left, right) in enumerate(itertools.pairwise(found))
            if (both := pieces[left][0] + pieces[right][0]) in ids
        ]
        if not merges:
            return found
        _, at, merged = min(merges)
        found[at : at + 2] = [merged]
