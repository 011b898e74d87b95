"""Rules and their files: what is refused, by which key and on which line, and how certain an answer is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from tiny_bundle import TinyModel

from nsn_edge.errors import NsnEdgeError, PolicyError, RankError, UsageError
from nsn_edge.runtimes.difficulty import MEASURES, DifficultyRule, RuleError, certainty, load_rule, save_rule
from nsn_edge.runtimes.policy import load_policy

LOGITS = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 9)), elements=st.floats(-50, 50, width=32))
SHA = "0123456789abcdef" * 4


@given(logits=LOGITS)
def test_certainty_is_that_of_the_softmax(logits: np.ndarray) -> None:
    p = softmax(logits.astype(np.float64), axis=1)
    ordered = np.sort(p, axis=1)
    expected = {
        "margin": ordered[:, -1] - ordered[:, -2],
        "max_probability": ordered[:, -1],
        "entropy": 1 - scipy_entropy(p, axis=1) / np.log(p.shape[1]),
    }
    assert set(expected) == set(MEASURES)
    for measure, values in expected.items():
        found = certainty(logits, measure)
        assert ((found >= 0) & (found <= 1)).all()
        np.testing.assert_allclose(found, values, atol=1e-9)


@given(logits=arrays(np.float32, (6, 2), elements=st.floats(-5, 5, width=32)))
def test_of_two_classes_every_measure_puts_answers_in_one_order(logits: np.ndarray) -> None:
    margins = certainty(logits, "margin")
    for measure in MEASURES:
        in_order = certainty(logits, measure)[np.argsort(margins)]
        assert (np.diff(in_order) >= -1e-9).all()


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_not_finite_is_not_certain(measure: str) -> None:
    logits = np.array([[9, 0, 0], [np.nan, 9, 0], [np.inf, 0, 0], [-np.inf, 9, 0]], np.float32)
    found = certainty(logits, measure)
    assert found[0] > 0.9
    assert found[1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("logits", "measure"), [(np.zeros((2, 1)), "margin"), (np.zeros(3), "margin")])
def test_certainty_needs_classes(logits: np.ndarray, measure: str) -> None:
    with pytest.raises(UsageError, match=r"two classes or more"):
        certainty(logits, measure)


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown measure 'doubt' \(choose one of margin"):
        certainty(np.zeros((1, 2)), "doubt")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"ranks": [2, 16]}, "", "the key thresholds is missing"),
    ({"thresholds": [0.5], "ranks": [2, 16], "measure": "doubt"}, "measure", "unknown measure 'doubt'"),
    ({"thresholds": [0.5]}, "ranks", "names no rungs"),
    ({"thresholds": [0.5], "ranks": [2, 16], "flops": [0.2, 1]}, "ranks", "named twice"),
    ({"thresholds": [0.5], "ranks": [16, 2]}, "ranks", "must rise"),
    ({"thresholds": [0.5], "ranks": [2, 2]}, "ranks", "must rise"),
    ({"thresholds": [0.5], "ranks": [0, 2]}, "ranks", "1 or more, not 0"),
    ({"thresholds": [0.5], "ranks": [True, 2]}, "ranks", "not True"),
    ({"thresholds": [], "ranks": [2]}, "ranks", "one rung cannot"),
    ({"thresholds": [0.5], "flops": [0, 1]}, "flops", "no fraction"),
    ({"thresholds": [0.5], "flops": [0.5, 1.5]}, "flops", "no fraction"),
    ({"thresholds": [0.5, 0.6], "ranks": [2, 16]}, "thresholds", "2 rungs and 2 thresholds"),
    ({"thresholds": [1.5], "ranks": [2, 16]}, "thresholds", "outside 0..1"),
    ({"thresholds": ["a"], "ranks": [2, 16]}, "thresholds", "outside 0..1"),
    ({"thresholds": [float("nan")], "ranks": [2, 16]}, "thresholds", "outside 0..1"),
    ({"thresholds": 0.5, "ranks": [2, 16]}, "thresholds", "not a list"),
    ({"thresholds": [0.5], "ranks": [2, 16], "treshold": 1}, "treshold", "unknown key"),
    ({"thresholds": [0.5], "ranks": [2, 16], "bundle_sha256": "abc"}, "bundle_sha256", "not a SHA-256"),
]


@pytest.mark.parametrize(("table", "key", "message"), BAD)
def test_what_makes_no_sense_is_refused_by_its_key(table: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        DifficultyRule.from_table(table)
    assert caught.value.key == key
    assert message in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "rule",
    [
        DifficultyRule((0.5,), ranks=(2, 16)),
        DifficultyRule((0.25, 0.75), flops=(0.1, 0.5, 1.0), measure="entropy", bundle_sha256=SHA),
    ],
)
def test_a_rule_survives_its_file(rule: DifficultyRule, tmp_path: Path) -> None:
    file = tmp_path / "rule.toml"
    save_rule(rule, file, ["two\nlines = 'of a note'"])
    assert load_rule(file) == rule
    assert file.read_text().startswith("# two lines = 'of a note'\n")
    assert DifficultyRule.from_table(rule.to_json()) == rule


def test_a_policy_file_may_hold_the_rule(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        "schema_version = 2\nunknown_max_flops = 0.5\nmin_dwell_s = 1\n[[battery]]\nenter_pct = 5\nleave_pct = 6\n"
        "max_flops = 0.3\n[difficulty]\nflops = [0.25, 1]\nthresholds = [0.5]\n[throttling]\nmax_flops = 0.3\n"
    )
    assert load_rule(file) == load_policy(file).difficulty == DifficultyRule((0.5,), flops=(0.25, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[difficulty]\nranks = [2, 16]\nthresholds = [0.5]\n", "schema_version is missing"),
        ("schema_version = 3\n[difficulty]\n", "unknown schema_version 3"),
        ("schema_version = true\n[difficulty]\n", "unknown schema_version True"),
        ("schema_version = 1\n", "has no table [difficulty]"),
        ("schema_version = 1\ndifficulty = 3\n", "has no table [difficulty]"),
        ("schema_version = 1\n[difficulty\n", "is not TOML"),
        (
            "schema_version = 1\n\n[difficulty]\nranks = [2, 16]\nthresholds = [7]\n",
            "line 5: [difficulty] the threshold 7",
        ),
        (
            "schema_version = 1\n[x]\nranks = 1\n[difficulty]\nranks = 3\nthresholds = []\n",
            "line 5: [difficulty] ranks is",
        ),
        ("schema_version = 1\n[difficulty]\nranks = [1, 2]\n", "line 2: [difficulty] the key thresholds is missing"),
        ("schema_version = 1\n[difficulty]\nrank = 3\n", "line 3: [difficulty] unknown key 'rank'"),
    ],
)
def test_a_bad_file_is_refused_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rule.toml"
    file.write_text(text)
    with pytest.raises(PolicyError) as caught:
        load_rule(file)
    assert str(file) in caught.value.message
    assert message in caught.value.message


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot read the difficulty rule .*No such file"):
        load_rule(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(PolicyError, match="is not TOML"):
        load_rule(tmp_path / "latin.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(PolicyError, match="far too large"):
        load_rule(tmp_path / "large.toml")


def test_rungs_are_found_by_rank_and_by_flops() -> None:
    ladder = TinyModel.random().ladder
    assert DifficultyRule((0.5,), ranks=(2, 16)).rungs(ladder) == (2, 16)
    shares = [ladder.flops_fraction(rank) for rank in ladder.ranks]
    assert DifficultyRule((0.5,), flops=(shares[1], 1.0)).rungs(ladder) == (5, 16)
    with pytest.raises(RankError, match=r"no rung at rank 3 \(the rungs are 2, 5, 8, 16\)"):
        DifficultyRule((0.5,), ranks=(3, 16)).rungs(ladder)
    with pytest.raises(RuleError, match="are both rung 2 of this bundle") as caught:
        DifficultyRule((0.5,), flops=(shares[0], shares[0] + 1e-6)).rungs(ladder)
    assert isinstance(caught.value, NsnEdgeError)
