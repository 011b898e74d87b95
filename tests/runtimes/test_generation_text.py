"""Text as it comes: whole characters only, and never a stop string, however the tokens cut the text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.runtimes.generation import TextStream, TokenizerCodec

TEXTS = st.text(alphabet="ab\n é€𝄞", max_size=30)


class Utf8:
    """Every byte is a token: the worst case for characters."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class Chunks:
    """Token `i` is the `i`-th piece of a text that was cut anywhere."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = pieces

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.pieces[token] for token in tokens)


def streamed(stream: TextStream, tokens: Sequence[int]) -> list[str]:
    pieces = []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()]


def cut_at_first_complete(text: str, stops: Sequence[str]) -> str:
    """What is left of a text that is read character by character until a stop string is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(TEXTS, st.text(alphabet="ab é𝄞", max_size=8))
def test_pieces_are_whole_characters_and_make_the_text(text: str, prompt: str) -> None:
    codec = Utf8()
    pieces = streamed(TextStream(codec, codec.encode(prompt), ()), codec.encode(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.lists(TEXTS, max_size=8), st.lists(st.text(alphabet="ab\n é", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(chunks: list[str], stops: list[str]) -> None:
    stream = TextStream(Chunks(chunks), (), stops)
    found = "".join(streamed(stream, range(len(chunks))))
    whole = "".join(chunks)
    assert found == cut_at_first_complete(whole, stops)
    assert stream.stopped == any(stop in whole for stop in stops)


def test_what_may_begin_a_stop_string_waits() -> None:
    stream = TextStream(Chunks(["one E", "N", "x EN", "D two"]), (), ["END"])
    assert [stream.push(0), stream.push(1), stream.push(2), stream.push(3)] == ["one ", "", "ENx ", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_half_a_character_at_the_end_shows_as_such() -> None:
    stream = TextStream(Utf8(), (), ())
    assert [stream.push(byte) for byte in "a€".encode()[:-1]] == ["a", "", ""]
    assert stream.finish() == "\ufffd"


def test_half_a_stop_string_at_the_end_is_text() -> None:
    stream = TextStream(Utf8(), (), ["\n\n"])
    assert [stream.push(byte) for byte in b"a\n"] == ["a", ""]
    assert stream.finish() == "\n"


def test_bytes_that_never_become_a_character_do_not_block() -> None:
    stream = TextStream(Utf8(), (), ())
    assert stream.push(0xFF) == ""
    assert stream.push(ord("a")) == "\ufffda"


def test_the_space_before_the_first_new_word_is_kept() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"\u2581one": 0, "\u2581two": 1, "<s>": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.enable_padding(length=9, pad_id=2)
    tokenizer.enable_truncation(1)
    codec = TokenizerCodec(tokenizer)
    assert codec.encode("one two one") == [0, 1, 0]
    assert codec.decode([1, 2, 0]) == "two one"
    stream = TextStream(codec, codec.encode("one"), ())
    assert stream.push(1) == " two"
