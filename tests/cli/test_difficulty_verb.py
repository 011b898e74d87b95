"""`nsn-edge difficulty` and `nsn-edge run --text`: a rule found, used, and one line for what is wrong."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from tiny_bundle import ALL_RUNGS, LABELS, TOP, WORDS, TinyModel, sign

from nsn_edge.runtimes.difficulty import DifficultyRule, certainty, load_rule

Classifier = tuple[Path, TinyModel]
WORDS_USED = WORDS[4:]


def logits(model: TinyModel, text: str, rank: int) -> np.ndarray:
    return model(model.table[WORDS.index(text.split()[0])], rank)


@pytest.fixture
def held_out(classifier_bundle: Classifier, tmp_path: Path) -> Path:
    """Texts of which rung 5 has the better half right, and the top rung the others."""
    _, model = classifier_bundle
    first = {word: logits(model, word, 5) for word in WORDS_USED}
    sure = {word: float(certainty(values[None], "margin")[0]) for word, values in first.items()}
    middle = np.median(list(sure.values()))
    lines = ["text,label"]
    for word, second, third in itertools.product(WORDS_USED, repeat=3):
        number = int((first[word] if sure[word] >= middle else logits(model, word, TOP)).argmax())
        lines.append(f"{word} {second} {third},{LABELS[number]}")
    file = tmp_path / "held-out.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_a_rule_is_found_and_used(classifier_bundle: Classifier, held_out: Path, tmp_path: Path, run: Run) -> None:
    bundle, model = classifier_bundle
    file = tmp_path / "difficulty.toml"
    found = run("difficulty", bundle, "--data", held_out, "-o", file, "--start-rank", 5, "--json").document
    assert (found["schema_version"], found["kind"]) == (1, "difficulty")
    assert (found["examples"], found["labelled"], found["max_loss_points"]) == (1000, True, 0.5)
    assert [rung["rank"] for rung in found["rungs"]] == [5, TOP]
    chosen = found["chosen"]
    assert chosen["ranks"] == [5, TOP]
    assert 0 < chosen["on_held_out"]["passed_on"] < 1
    assert chosen["on_held_out"]["flops_fraction"] < 1
    assert chosen["loss_bound_points"] <= 0.5
    assert found["path"] == str(file)
    rule = load_rule(file)
    assert rule.to_json() == {key: chosen[key] for key in ("thresholds", "ranks", "measure", "bundle_sha256")}
    assert file.read_text().startswith("# At 95% confidence at most 0.")

    texts = [f"{word} ends" for word in WORDS_USED]
    shown = run("run", bundle, "--difficulty", file, *itertools.chain(*(("--text", text) for text in texts)))
    assert shown.code == 0, shown.err
    blocks = shown.out.splitlines()
    assert len(blocks) == 2 * len(texts)
    asked_again = 0
    for text, first, second in zip(texts, blocks[::2], blocks[1::2], strict=True):
        sure = float(certainty(logits(model, text, 5)[None], "margin")[0])
        rank = 5 if sure >= rule.thresholds[0] else TOP
        asked_again += rank == TOP
        assert first.split()[0] == LABELS[int(logits(model, text, rank).argmax())]
        assert second.strip().startswith(f"rank {rank}, ")
        assert f"margin {sure:.2f} at rank 5 is {'certain enough' if rank == 5 else 'uncertain'}" in second
    assert 0 < asked_again < len(texts)
    assert f"{len(texts)} answers, {asked_again / len(texts):.0%} passed on to a higher rung" in shown.err


def test_the_tables_are_for_people(classifier_bundle: Classifier, held_out: Path, run: Run) -> None:
    shown = run("difficulty", classifier_bundle[0], "--data", held_out, "--max-loss", 40)
    assert shown.code == 0, shown.err
    assert "Every rung alone, 1000 texts" in shown.out
    assert "Low rungs that keep within 40 points" in shown.out
    assert "At 95% confidence at most" in shown.out


def test_without_labels_the_top_rung_is_what_counts(
    classifier_bundle: Classifier, held_out: Path, tmp_path: Path, run: Run
) -> None:
    plain = tmp_path / "texts.txt"
    plain.write_text("\n".join(line.split(",")[0] for line in held_out.read_text().splitlines()[1:]) + "\n")
    options = ("--max-loss", 60, "--measure", "entropy", "--measure", "margin", "--start-flops", 0.5, "--json")
    unlabelled = run("difficulty", classifier_bundle[0], "--data", plain, *options).document
    same = run("difficulty", classifier_bundle[0], "--data", held_out, "--unlabelled", *options).document
    assert not unlabelled["labelled"]
    assert unlabelled["rungs"][-1]["right"] == 1
    assert unlabelled["chosen"] == same["chosen"]
    assert {item["measure"] for item in unlabelled["found"]} <= {"entropy", "margin"}


def test_a_lower_rank_is_the_ceiling(classifier_bundle: Classifier, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "rule.toml"
    file.write_text("schema_version = 1\n[difficulty]\nranks = [2, 16]\nthresholds = [1.0]\n")
    found = run("run", classifier_bundle[0], "--difficulty", file, "--rank", 8, "--text", "a file", "--json").document
    assert (found["rank"], found["asked"]) == (8, [2, 8])
    assert found["why"].endswith("the session's rank, 8, allows no more")


def test_the_rule_of_a_policy_is_used(classifier_bundle: Classifier, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        "schema_version = 2\nunknown_max_flops = 1.0\nmin_dwell_s = 1\n"
        "[difficulty]\nranks = [2, 16]\nthresholds = [1.0]\n"
    )
    outcome = run("run", classifier_bundle[0], "--policy", file, "--text", "a file")
    assert outcome.code == 0, outcome.err
    assert "rank 16 was asked" in outcome.out
    assert "margin" in outcome.out


def test_texts_are_labelled_at_a_rank(classifier_bundle: Classifier, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, model = classifier_bundle
    for rank in ALL_RUNGS:
        found = run("run", bundle, "--rank", rank, "--text", "loop [red]", "--json").document
        assert found["label"] == LABELS[int(logits(model, "loop", rank).argmax())]
        assert (found["kind"], found["rank"], found["why"]) == ("classification", rank, None)
    monkeypatch.setattr("sys.stdin", io.StringIO("loop\n\nfile opens\n"))
    shown = run("run", bundle, "--rank", 5)
    assert [line.split("  ")[-1] for line in shown.out.splitlines()[::2]] == ["loop", "file opens"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-loss", 0), "a loss is above 0 and below 100 points, not 0"),
        (("--confidence", 1), "a confidence is at least 0.5 and below 1, not 1"),
        (("--start-rank", 3), "no rung at rank 3"),
        (("--start-rank", 16), "the first rung, 16, is not below the one with the last word, 16"),
        (("--start-flops", 2), "--start-flops is a fraction above 0"),
        (("--top-rank", 2), "there is no rung below 2 to begin at"),
        (("--text-column", "words"), "has no column 'words'"),
        (("--label-column", "words"), "has no column 'words'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    classifier_bundle: Classifier, held_out: Path, run: Run, options: tuple[object, ...], message: str
) -> None:
    outcome = run("difficulty", classifier_bundle[0], "--data", held_out, *options)
    assert outcome.code == 2
    assert message in outcome.message


def test_data_that_shows_nothing_is_refused(
    classifier_bundle: Classifier, held_out: Path, tmp_path: Path, run: Run
) -> None:
    file = tmp_path / "rule.toml"
    few = run("difficulty", classifier_bundle[0], "--data", held_out, "--examples", 100, "-o", file)
    assert (few.code, file.exists()) == (1, False)
    assert "100 held-out examples cannot show a loss of at most 0.5 points" in few.message
    hard = run("difficulty", classifier_bundle[0], "--data", held_out, "--unlabelled", "--start-rank", 2, "-o", file)
    assert (hard.code, file.exists()) == (1, False)
    assert "no rung saves work at a loss of at most 0.5 points" in hard.message
    strange = tmp_path / "strange.csv"
    strange.write_text("text,label\na loop,north\na file,nowhere\n")
    unknown = run("difficulty", classifier_bundle[0], "--data", strange)
    assert unknown.code == 2
    assert "strange.csv, line 3: the model has no label 'nowhere'; it has 8: north, east" in unknown.message
    (tmp_path / "words.csv").write_text("word\na\n")
    nameless = run("difficulty", classifier_bundle[0], "--data", tmp_path / "words.csv")
    assert "has no column named text or" in nameless.message


def test_what_does_not_fit_is_refused(
    classifier_bundle: Classifier, text_bundle: Classifier, held_out: Path, tmp_path: Path, run: Run
) -> None:
    bundle = classifier_bundle[0]
    file = tmp_path / "rule.toml"
    file.write_text("schema_version = 1\n[difficulty]\nranks = [2, 16]\nthresholds = [0.5]\n")
    for arguments, message in (
        (("run", bundle, "--text", "a", "--query", "b"), "--text labels a text"),
        (("run", bundle, "--difficulty", file, "--query", "b"), "--difficulty decides about texts to label"),
        (("run", bundle, "--query", "b"), "classify a text with --text"),
        (("run", bundle, "--difficulty", tmp_path / "none.toml"), "cannot read the difficulty rule"),
        (("run", text_bundle[0], "--text", "a"), "is a bundle for feature-extraction, not for text-classification"),
        (("difficulty", text_bundle[0], "--data", held_out), "difficulty is seen in the logits of classes"),
        (("run", text_bundle[0], "--text", "a", "--difficulty", file), "difficulty is seen in the logits of classes"),
    ):
        outcome = run(*arguments)
        assert outcome.code == 2, arguments
        assert message in outcome.message
    sha = DifficultyRule((0.5,), ranks=(2, 16), bundle_sha256="0" * 64)
    file.write_text(
        f'schema_version = 1\n[difficulty]\nranks = [2, 16]\nthresholds = [0.5]\nbundle_sha256 = "{"0" * 64}"\n'
    )
    assert load_rule(file) == sha
    assert "calibrated on other weights" in run("run", bundle, "--difficulty", file, "--text", "a").message
    (bundle / "config.json").write_text('{"problem_type": "multi_label_classification"}')
    sign(bundle)
    assert "has no one class to answer with" in run("run", bundle, "--text", "a").message
