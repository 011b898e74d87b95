"""Text to labels: against numpy, at a rank and by a rule, and bundles that cannot do it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from tiny_bundle import ALL_RUNGS, LABELS, WORDS, TinyModel, sign, write_text_bundle

from nsn_edge.errors import BundleError, UsageError
from nsn_edge.runtimes.classification import TextClassifier, label_names
from nsn_edge.runtimes.difficulty import Cascade, DifficultyRule
from nsn_edge.runtimes.session import EdgeSession

ClassifierBundle = tuple[Path, TinyModel]
TEXTS = ["the loop ends", "a file", "break it", "ends with a loop", "opens"]


def reference(model: TinyModel, text: str, rank: int) -> np.ndarray:
    """The logits by hand: of the first word."""
    word = text.split()[0]
    return model(model.table[WORDS.index(word) if word in WORDS else 1], rank)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_labels_are_those_of_each_text_alone(classifier_bundle: ClassifierBundle, batch_size: int) -> None:
    path, model = classifier_bundle
    with EdgeSession.open(path) as session:
        classifier = TextClassifier(session)
        for rank in ALL_RUNGS:
            logits = np.stack([reference(model, text, rank) for text in TEXTS])
            np.testing.assert_allclose(
                classifier.logits(TEXTS, rank, batch_size=batch_size), logits, rtol=1e-3, atol=1e-3
            )
            found = classifier.classify(TEXTS, rank=rank, batch_size=batch_size)
            assert [item.text for item in found] == TEXTS
            assert [item.label for item in found] == [LABELS[number] for number in logits.argmax(axis=1)]
            assert {(item.rank, item.asked, item.why) for item in found} == {(rank, (rank,), "")}
            np.testing.assert_allclose(
                [item.probability for item in found], softmax(logits, axis=1).max(axis=1), atol=1e-3
            )


def test_the_current_rank_answers_unless_told_otherwise(classifier_bundle: ClassifierBundle) -> None:
    with EdgeSession.open(classifier_bundle[0]) as session:
        classifier = TextClassifier(session)
        session.switch(5).result()
        assert classifier.classify(["a"])[0].rank == 5
        document = classifier.classify(["a"])[0].to_json()
        assert (document["kind"], document["rank"], document["asked"], document["why"]) == (
            "classification",
            5,
            [5],
            None,
        )


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_rule_asks_uncertain_texts_again(classifier_bundle: ClassifierBundle, batch_size: int) -> None:
    path, model = classifier_bundle
    margins = [np.diff(np.sort(softmax(reference(model, text, 2)))[-2:])[0] for text in TEXTS]
    threshold = float(np.median(margins)) + 1e-3
    with EdgeSession.open(path) as session:
        classifier = TextClassifier(session)
        cascade = Cascade(session, DifficultyRule((threshold,), ranks=(2, 16)))
        found = classifier.classify(TEXTS, cascade=cascade, batch_size=batch_size)
        for item, margin in zip(found, margins, strict=True):
            assert item.rank == (2 if margin >= threshold else 16)
            assert item.asked == ((2,) if margin >= threshold else (2, 16))
            assert item.label == LABELS[int(reference(model, item.text, item.rank).argmax())]
            assert f"margin {margin:.2f} at rank 2 is" in item.why
        assert cascade.counts.answers == len(TEXTS)
        assert {item.rank for item in found} == {2, 16}


def test_names_that_the_bundle_lacks_are_numbers(classifier_bundle: ClassifierBundle) -> None:
    path, _ = classifier_bundle
    generic = {"id2label": {str(number): f"LABEL_{number}" for number in range(8)}}
    (path / "config.json").write_text(json.dumps(generic))
    sign(path)
    with EdgeSession.open(path) as session:
        classifier = TextClassifier(session)
        assert classifier.label_names == ()
        assert classifier.classify(["a"])[0].label in {str(number) for number in range(8)}
        assert classifier.number_of("3") == 3
        assert classifier.number_of("north") is None


def test_labels_have_numbers(classifier_bundle: ClassifierBundle) -> None:
    with EdgeSession.open(classifier_bundle[0]) as session:
        assert label_names(session.bundle) == LABELS
        classifier = TextClassifier(session)
        assert [classifier.number_of(name) for name in ("north", "out", "3", "nowhere")] == [0, 7, None, None]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", BundleError, "config.json in .* is not readable"),
        ('{"id2label": {"a": "b"}}', BundleError, "config.json in .* is not readable"),
        ("[]", BundleError, "config.json in .* is not readable"),
        ('{"problem_type": "multi_label_classification"}', UsageError, "no one class to answer with"),
        ('{"problem_type": "regression"}', UsageError, "no one class to answer with"),
    ],
)
def test_configurations_that_cannot_label_are_refused(
    classifier_bundle: ClassifierBundle, content: str, error: type[Exception], message: str
) -> None:
    (classifier_bundle[0] / "config.json").write_text(content)
    sign(classifier_bundle[0])
    with EdgeSession.open(classifier_bundle[0]) as session, pytest.raises(error, match=message):
        TextClassifier(session)


def test_bundles_of_other_tasks_are_refused(tmp_path: Path) -> None:
    write_text_bundle(tmp_path / "text")
    with (
        EdgeSession.open(tmp_path / "text") as session,
        pytest.raises(UsageError, match="for feature-extraction, not for text-classification"),
    ):
        TextClassifier(session)


@pytest.mark.parametrize(
    ("texts", "batch_size", "message"),
    [([], 1, "nothing to classify"), ("a", 1, "nothing to classify"), ([3], 1, "not 3"), (["a"], 0, "not 0")],
)
def test_what_is_no_text_is_refused(
    classifier_bundle: ClassifierBundle, texts: list[str], batch_size: int, message: str
) -> None:
    with EdgeSession.open(classifier_bundle[0]) as session, pytest.raises(UsageError, match=message):
        TextClassifier(session).classify(texts, batch_size=batch_size)
