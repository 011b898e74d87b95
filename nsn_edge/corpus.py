"""Text that every Python ships: the language reference in `pydoc_data.topics`.

    topics --> sections --> prose paragraphs --> sentences --> calibration | held out     split by topic
                                        \\-----> passages                                  for semantic search

Nothing is downloaded and the same interpreter always gives the same text. Whole topics go to one side of the split, in
the order of their names' SHA-256, and a sentence that nearly repeats an earlier one is dropped, so a model is never
measured on what it was calibrated on. The reference grows a little with every Python: compare numbers within one.
"""

from __future__ import annotations

import hashlib
import math
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

HELD_OUT_SENTENCES = 600
"""How many sentences are held out; at least 500 are needed for a steady rank correlation."""

_PASSAGE_CHARS = 600  # about 150 tokens: well inside what sentence encoders read
_NEAR_DUPLICATE = 0.8  # Jaccard similarity of the sets of words
_UNDERLINE = re.compile(r"^([*=\-~^\"'#+])\1{2,}$")
_BULLET = re.compile(r"^(?:[*+\-•]|\d+\.|\(?[a-z]\))\s+")
_BOILERPLATE = re.compile(r"^(?:Changed in|New in|Added in|Deprecated|Removed in|See also|\*\*PEP|Footnotes)")
_LABEL = re.compile(r"^(?:Note|Warning|CPython implementation detail|Availability):\s*")
_CODE = re.compile(
    r"::=|>>>|\.\.\. |[=|<>]{2}|\w\(\)?:$|^\s*(?:def|class|import|from|return|print|try|else)\b[^.]*[:(]"
)
_SENTENCE_END = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?:(?<=[.!?])|(?<=[.!?][”’\")]))\s+(?=[\"“(]?[A-Z])")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Passage:
    """A piece of documentation to search for."""

    title: str
    """The headings it stands under, outermost first."""
    text: str
    """One or more paragraphs of prose, about 600 characters at most."""


@dataclass(frozen=True)
class Corpus:
    """Sentences to calibrate on, others to measure on, and passages to search in."""

    calibration: tuple[str, ...]
    """What is not held out, about 1,100 sentences."""
    held_out: tuple[str, ...]
    """600 sentences of other topics; none nearly repeats a calibration sentence or another."""
    passages: tuple[Passage, ...]
    """The whole reference in pieces, repeated ones once."""


@cache
def documentation_corpus() -> Corpus:
    """The corpus of this interpreter: the same on every call and every machine with this Python."""
    from pydoc_data.topics import topics

    return corpus_from_topics(topics)


def corpus_from_topics(topics: Mapping[str, str], held_out_sentences: int = HELD_OUT_SENTENCES) -> Corpus:
    """Build a corpus from named texts in the layout of `pydoc_data.topics`.

    Args:
        topics: text by topic name.
        held_out_sentences: topics are held out until they hold this many sentences; fewer when there are fewer.
    """
    # A large topic repeats small ones whole ("specialnames" holds "customization"); a sentence belongs to the smallest.
    by_topic: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        by_topic[name] = []
        for paragraph in (paragraph for _, body in _sections(topics[name]) for paragraph in body):
            for sentence in _sentences(paragraph):
                if sentence not in seen:
                    seen.add(sentence)
                    by_topic[name].append(sentence)
    held_out: list[str] = []
    calibration: list[str] = []
    is_near_duplicate = _NearDuplicates(seen)
    for name in sorted(by_topic, key=lambda name: hashlib.sha256(name.encode()).digest()):
        # Decided once per topic: what is left of the last held-out topic is dropped, not calibrated on.
        side, room = (held_out, held_out_sentences) if len(held_out) < held_out_sentences else (calibration, len(seen))
        for sentence in by_topic[name]:
            if len(side) < room and not is_near_duplicate(sentence):
                side.append(sentence)
    return Corpus(tuple(calibration), tuple(held_out), tuple(_passages(topics)))


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """`(title, prose paragraphs)` of each section. Underline characters reveal the depth of a heading."""
    depths: list[str] = []
    titles: list[str] = []
    body: list[str] = []
    for block in re.split(r"\n[ \t]*\n", text.strip("\n")):
        lines = block.strip("\n").splitlines()
        if len(lines) >= 2 and _UNDERLINE.match(lines[1].strip()) and not lines[0].startswith(" "):
            if body:
                yield " › ".join(titles), body
            mark = lines[1].strip()[0]
            depth = depths.index(mark) if mark in depths else len(depths)
            depths, titles, body = [*depths[:depth], mark], [*titles[:depth], lines[0].strip()], []
            lines = lines[2:]
        paragraph = _prose(lines)
        if paragraph:
            body.append(paragraph)
    if body:
        yield " › ".join(titles), body


def _prose(lines: list[str]) -> str:
    """A block as one line of prose, or nothing if it is code, grammar, a table or boilerplate."""
    lines = textwrap.dedent("\n".join(lines)).splitlines()
    if not lines or any(_CODE.search(line) or line.lstrip().startswith(("|", "+-", ">>>", "@")) for line in lines):
        return ""
    text = " ".join(word for line in lines for word in line.split())
    # A line broken inside a hyphenated word: "built- in" was "built-in".
    text = re.sub(r"(?<=[a-z])- (?=[a-z])", "-", text)
    text = _LABEL.sub("", _BULLET.sub("", text)).strip()
    if _BOILERPLATE.match(text) or not re.match(r"[\"“‘(]?[A-Za-z]", text):
        return ""
    letters = sum(char.isalpha() or char.isspace() for char in text)
    is_text = letters >= 0.85 * len(text) and len(text.split()) >= 5 and text[-1] in '.:!?)”"'
    return text if is_text else ""


def _sentences(paragraph: str) -> Iterator[str]:
    """Whole sentences of 6 to 50 words."""
    for sentence in _SENTENCE_END.split(paragraph):
        sentence = sentence.strip()
        if (
            re.match(r"[\"“(]?[A-Z]", sentence)
            and sentence.rstrip('”’")')[-1:] in (".", "!", "?")
            and 6 <= len(sentence.split()) <= 50
        ):
            yield sentence


class _NearDuplicates:
    """Says whether a sentence shares most of its words with one that was asked about before.

    Two sets of words can only reach the similarity if they share one of their rarest words, a short prefix of each
    set when sorted by rarity (prefix filtering: Bayardo et al., "Scaling up all pairs similarity search", 2007).
    """

    def __init__(self, sentences: Iterable[str]) -> None:
        self._frequency = Counter(word for sentence in sentences for word in _words(sentence))
        self._kept: defaultdict[str, list[frozenset[str]]] = defaultdict(list)

    def __call__(self, sentence: str) -> bool:
        words = _words(sentence)
        rarest = sorted(words, key=lambda word: (self._frequency[word], word))
        prefix = rarest[: len(words) - math.ceil(_NEAR_DUPLICATE * len(words)) + 1]
        for other in (other for word in prefix for other in self._kept[word]):
            if len(words & other) >= _NEAR_DUPLICATE * len(words | other):
                return True
        for word in prefix:
            self._kept[word].append(words)
        return False


def _words(sentence: str) -> frozenset[str]:
    return frozenset(_WORD.findall(sentence.lower()))


def _passages(topics: Mapping[str, str]) -> Iterator[Passage]:
    """Neighbouring paragraphs of a section together, up to a length that an encoder reads whole."""
    seen: set[str] = set()
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        for title, body in _sections(topics[name]):
            piece = ""
            for paragraph in [*body, ""]:
                if piece and (not paragraph or len(piece) + len(paragraph) > _PASSAGE_CHARS):
                    if piece not in seen and len(piece.split()) >= 12:
                        seen.add(piece)
                        yield Passage(title, piece)
                    piece = ""
                piece = f"{piece} {paragraph}".strip()
