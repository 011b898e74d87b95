"""The corpus: clean prose, split so that nothing measured on was calibrated on."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from nsn_edge.corpus import Corpus, corpus_from_topics, documentation_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return documentation_corpus()


def test_sizes_are_enough_to_calibrate_measure_and_search(corpus: Corpus) -> None:
    assert len(corpus.held_out) == 600
    assert len(corpus.calibration) >= 800
    assert len(corpus.passages) >= 300


def test_sentences_are_whole_and_prose(corpus: Corpus) -> None:
    for sentence in corpus.calibration + corpus.held_out:
        assert 6 <= len(sentence.split()) <= 50
        assert re.match(r"[\"“(]?[A-Z]", sentence), sentence
        assert re.search(r"[.!?][”’\")]*$", sentence), sentence
        assert not re.search(r">>>|::=|\*\*\*|====|\n|  ", sentence), sentence


def test_no_sentence_nearly_repeats_another(corpus: Corpus) -> None:
    # The plain definition, against the inverted index that the corpus uses.
    words = [frozenset(re.findall(r"[^\W_]+", s.lower())) for s in corpus.held_out + corpus.calibration]
    for i, first in enumerate(words[: len(corpus.held_out)]):
        for second in words[i + 1 :]:
            assert len(first & second) < 0.8 * len(first | second), (first, second)


def test_passages_are_titled_distinct_and_short_enough_to_read_whole(corpus: Corpus) -> None:
    assert len({passage.text for passage in corpus.passages}) == len(corpus.passages)
    assert all(passage.title for passage in corpus.passages)
    assert sorted(len(passage.text) for passage in corpus.passages)[len(corpus.passages) * 9 // 10] <= 620
    titles = {passage.title for passage in corpus.passages}
    assert any(title == 'The "with" statement' for title in titles)
    assert any(" › " in title for title in titles)


def test_the_split_does_not_depend_on_the_process() -> None:
    script = (
        "import hashlib; from nsn_edge.corpus import documentation_corpus;"
        "print(hashlib.sha256(repr(documentation_corpus()).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


TOPIC = """The "loop" statement
********************

The loop statement repeats its suite until the condition turns
false at last.  It is built-
in and needs no import.

   loop_stmt ::= "loop" condition ":" suite

   for x in y:
       loop(x)

* A bullet that tells a whole story in one sentence.

Changed in version 3.9: Nobody remembers why this was changed.

+-----+-----+
| one | two |
+-----+-----+

Details of it
=============

Details are explained here, e.g. the exit and the entry of loops.
"""


def test_prose_is_kept_and_code_grammar_tables_and_boilerplate_are_not() -> None:
    corpus = corpus_from_topics({"loop": TOPIC})
    assert corpus.held_out == (
        "The loop statement repeats its suite until the condition turns false at last.",
        "It is built-in and needs no import.",
        "A bullet that tells a whole story in one sentence.",
        "Details are explained here, e.g. the exit and the entry of loops.",
    )
    assert [passage.title for passage in corpus.passages] == [
        'The "loop" statement',
        'The "loop" statement › Details of it',
    ]


def test_a_topic_is_never_on_both_sides() -> None:
    letters = "abcdefghijklmnopqrst"
    topics = {
        f"topic{a}": "\n\n".join(f"Word{a}a{b} word{a}b{b} word{a}c{b} stands in topic{a}." for b in letters[:10])
        for a in letters
    }
    corpus = corpus_from_topics(topics, held_out_sentences=25)
    assert len(corpus.held_out) == 25

    def topics_of(sentences: tuple[str, ...]) -> set[str]:
        return {sentence.rsplit(" ", 1)[1] for sentence in sentences}

    assert topics_of(corpus.held_out).isdisjoint(topics_of(corpus.calibration))
    assert len(topics_of(corpus.calibration)) == 17


def test_no_topics_give_an_empty_corpus() -> None:
    assert corpus_from_topics({}) == Corpus((), (), ())
