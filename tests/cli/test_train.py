"""`nsn-edge train` as a user meets it: from data to a bundle that answers, and every way it can go wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Run
from decoder_folder import write_decoder_folder
from families import IMAGE, family_model
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTImageProcessor

from nsn_edge.checkpoint import MANIFEST_NAME, WEIGHTS_NAME, Checkpoint
from nsn_edge.layers import at_dense, at_rank, nsn_layers
from nsn_edge.runtimes.session import EdgeSession

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = ("--steps", 4, "--batch-size", 4, "--save-every", 2)
TEXTS = {"open the file": "file", "a class of errors": "class", "the value is 3": "value", "close a file": "file"}


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / WEIGHTS_NAME)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of three classes, twelve of them."""
    path = tmp_path_factory.mktemp("data") / "train.csv"
    rows = [f"{text} {i},{label}" for i in range(3) for text, label in TEXTS.items()]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def test_a_classifier_from_an_encoder_to_a_bundle_that_answers(
    checkpoint: Path, labelled: Path, run: Run, tmp_path: Path
) -> None:
    out, bundle = tmp_path / "trained", tmp_path / "bundle"
    line = ("train", checkpoint, "-o", out, "--data", labelled, "--task", "text-classification", *FEW)
    done = run(*line, "--held-out", labelled, "--json")
    assert (done.code, done.complaints) == (0, []), done.err
    document = done.document
    assert (document["kind"], document["schema_version"]) == ("training", 1)
    assert (document["steps"], document["resumed_from"]) == (4, None)
    assert document["architecture"] == "BertForSequenceClassification"
    ranks = document["training"]["ranks"]
    assert ranks == sorted(set(ranks))
    assert 2 <= len(ranks) <= 8
    assert document["held_out"][0]["rank"] == 64
    assert all(row["loss_after"] > 0 and row["loss_before"] > 0 for row in document["held_out"])
    assert not (tmp_path / "trained.run").exists()

    trained = Checkpoint.load(out)
    assert list(trained.trained_ranks) == ranks
    assert trained.model.config.id2label == {0: "class", 1: "file", 2: "value"}
    assert Checkpoint.load(checkpoint).trained_ranks == ()
    assert trained.provenance["calibration_text"] == str(labelled)
    assert f"4 steps of 4 on {labelled} for text-classification, mixed; " in run("inspect", out).out.replace("\n", "")
    assert {name.split(".", 1)[0] for name in nsn_layers(trained.model)} == {"bert"}

    assert run("export", out, "-o", bundle).code == 0
    assert run("verify", bundle, out).code == 0
    ids = np.array([[2, 60, 70, 3]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with EdgeSession.open(bundle) as session:
        answer = session.run(inputs, rank=session.ladder.max_rank)
    with at_dense(trained.model), torch.no_grad():
        expected = trained.model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()
    np.testing.assert_allclose(answer.outputs["logits"], expected, rtol=1e-3, atol=1e-4)


def test_ranks_per_layer_follow_the_new_task_unless_they_are_kept(
    checkpoint: Path, labelled: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two layers of this encoder are alike, so whether sensitivity helps it is a matter of noise: it does here."""
    monkeypatch.setattr("nsn_edge.sensitivity.judged_damage", lambda *_: 1.0)
    line = ("train", checkpoint, "--data", labelled, "--task", "text-classification", *FEW)
    curves = {}
    for way in ("keep", "sensitivity"):
        assert run(*line, "-o", tmp_path / way, "--allocate", way).code == 0
        trained = Checkpoint.load(tmp_path / way)
        curves[way] = [layer.curve for layer in trained.ladder.layers]
        assert trained.provenance.get("allocation") == (None if way == "keep" else way)
    assert curves["keep"] == [layer.curve for layer in Checkpoint.load(checkpoint).ladder.layers]
    assert curves["sensitivity"] != curves["keep"]


def test_an_embedder_is_distilled_without_labels_and_its_original_stays(
    checkpoint: Path, run: Run, tmp_path: Path
) -> None:
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS) + "\n")
    out = tmp_path / "trained"
    done = run("train", checkpoint, "-o", out, "--data", data, *FEW, "--plan", "sandwich", "--draws", 1)
    assert done.code == 0, done.err
    assert "4 steps" in done.out
    assert f"next: nsn-edge export {out}" in done.out.replace("\n", "")
    before, after = tensors(checkpoint), tensors(out)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rsplit(".", 1)[1] for name in changed} == {"A", "B"}
    assert 64 in Checkpoint.load(out).trained_ranks


def test_pairs_and_a_head_that_is_there(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    data = tmp_path / "pairs.tsv"
    data.write_text("a file\tthe file\t1\nan error\ta value\t0\n" * 4)
    usual = ("--data", data, "--columns", "a,b,same", "--text-column", "a", "--pair-column", "b", *FEW)
    first, second = tmp_path / "first", tmp_path / "second"
    task = ("--task", "text-classification", "--label-column", "same")
    assert run("train", checkpoint, "-o", first, *usual, *task, "--dense-epochs", 0, "--objective", "labels").code == 0
    head = tensors(first)["classifier.weight"]
    # Now the head is there: no other is made, and the dense model teaches.
    done = run("train", first, "-o", second, *usual, "--label-column", "same", "--json")
    assert done.code == 0, done.err
    assert torch.equal(tensors(second)["classifier.weight"], head)
    assert done.document["training"]["dense_epochs"] == 0
    data.write_text("a file\tthe file\tmaybe\nan error\ta value\t0\n")
    done = run("train", first, "-o", second, *usual, "--label-column", "same")
    assert done.code == 2
    assert "example 1: the model has no label 'maybe'; its 2 are 0, 1" in done.message
    assert "--new-head" in done.message
    done = run("train", first, "-o", second, *usual, "--label-column", "same", "--new-head", "--json")
    assert done.code == 0, done.err
    assert Checkpoint.load(second).model.config.id2label == {0: "0", 1: "maybe"}


def test_the_papers_recipe_trains_everything_and_gives_the_original_up(
    checkpoint: Path, labelled: Path, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "trained"
    line = ("train", checkpoint, "-o", out, "--data", labelled, "--task", "text-classification", "--recipe", "paper")
    done = run(*line, *FEW)
    assert done.code == 0, done.err
    assert "export with --no-dense" in done.out
    trained = Checkpoint.load(out)
    assert all(layer.weight is None for layer in nsn_layers(trained.model).values())
    assert trained.ladder.max_rank in trained.trained_ranks
    assert run("export", out, "-o", tmp_path / "bundle", "--no-dense").code == 0
    assert run("verify", tmp_path / "bundle", out).code == 0


def test_a_decoder_on_text(run: Run, tmp_path: Path) -> None:
    model = write_decoder_folder(tmp_path / "model")
    adapted, out = tmp_path / "adapted", tmp_path / "trained"
    task = ("--task", "text-generation")
    assert run("adapt", model, "-o", adapted, *task, "--method", "svd").code == 0
    data = tmp_path / "book.txt"
    data.write_text("the object is in the class .\nif the value is a method , call the method .\n" * 20)
    line = ("train", adapted, "-o", out, "--data", data, "--max-length", 16, *FEW, "--gradient-checkpointing")
    done = run(*line, "--held-out", data, "--json")
    assert done.code == 0, done.err
    assert done.document["training"]["examples"] == 1
    assert run("export", out, "-o", tmp_path / "bundle").code == 0
    assert run("verify", tmp_path / "bundle", out).code == 0


def test_images_in_folders(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model, adapted, out = tmp_path / "model", tmp_path / "adapted", tmp_path / "trained"
    family_model("vit").save_pretrained(model)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": IMAGE, "width": IMAGE}}
    (model / "preprocessor_config.json").write_text(json.dumps(settings))
    task = ("--task", "image-classification")
    assert run("adapt", model, "-o", adapted, *task, "--method", "svd").code == 0
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for i in range(4):
            folder = tmp_path / "photos" / "train" / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    line = ("train", adapted, "-o", out, "--data", tmp_path / "photos", *FEW)
    done = run(*line)
    assert done.code == 2
    assert "no label 'cat'; its 5 are 0, 1, 2, 3, 4" in done.message
    done = run(*line, "--new-head", "--json")
    assert done.code == 0, done.err
    trained = Checkpoint.load(out)
    assert trained.model.config.id2label == {0: "cat", 1: "dog"}

    done = run("eval", out, "--data", tmp_path / "photos", "--split", "train", "--examples", 6, "--json")
    assert done.code == 0, done.err
    assert (done.document["metric"], done.document["examples"]) == ("accuracy", 6)
    measured = {point["rank"]: point["quality"] for point in done.document["points"] if not point["dense"]}
    rank = min(measured)
    photos = [tmp_path / "photos" / "train" / label / f"{i}.png" for label in ("cat", "dog") for i in range(4)]
    scaled = ViTImageProcessor.from_pretrained(out)([Image.open(photo) for photo in photos], return_tensors="pt")
    with at_rank(trained.model, rank), torch.no_grad():
        guesses = trained.model(**scaled).logits.argmax(-1).tolist()
    right = [guess == number // 4 for number, guess in enumerate(guesses)]
    assert measured[rank] == sum(right[i * 8 // 6] for i in range(6)) / 6
    assert "no split 'test'" in run("eval", out, "--data", tmp_path / "photos").message
    assert "labelled images" in run("eval", out).message
    assert run("export", out, "-o", tmp_path / "bundle").code == 0
    (adapted / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in run(*line, "--new-head").message


Mistake = tuple[Callable[[Path], Any], tuple[object, ...], int, str]


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


GOOD = "text,label\na file,x\nan error,y\n"
MISTAKES: dict[str, Mistake] = {
    "no file": (lambda _: None, ("--data", "DIR/none.csv"), 2, "no file DIR/none.csv"),
    "an empty split": (write("d.csv", "text,label\n"), ("--data", "DIR/d.csv"), 2, "DIR/d.csv holds no rows"),
    "no text column": (
        write("d.csv", "body,label\na,b\n"),
        ("--data", "DIR/d.csv"),
        2,
        "no column named text or sentence or sentence1 or content; it has body, label",
    ),
    "another text column": (
        write("d.csv", GOOD),
        ("--data", "DIR/d.csv", "--text-column", "body"),
        2,
        "has no column 'body'; it has 'text', 'label'",
    ),
    "no label column": (write("d.csv", "text,kind\na,b\n"), ("--data", "DIR/d.csv"), 2, "name it with --label-column"),
    "a blank label": (write("d.csv", "text,label\na,x\nb, \n"), ("--data", "DIR/d.csv"), 2, "line 3: label"),
    "one label": (write("d.csv", "text,label\na,x\nb,x\n"), ("--data", "DIR/d.csv"), 2, "nothing to tell apart"),
    "a rank above": (
        write("d.csv", GOOD),
        ("--data", "DIR/d.csv", "--highest", 65),
        2,
        "rank 65 is outside 1..64",
    ),
    "a rank below": (write("d.csv", GOOD), ("--data", "DIR/d.csv", "--lowest", 0), 2, "rank 0 is outside 1..64"),
    "a rung": (
        write("d.csv", GOOD),
        ("--data", "DIR/d.csv", "--ranks", "ladder", "--rungs", "8,99"),
        2,
        "rank 99 is outside 1..64",
    ),
    "no rungs": (write("d.csv", GOOD), ("--data", "DIR/d.csv", "--ranks", "ladder"), 2, "no rungs to train"),
    "odd rungs": (write("d.csv", GOOD), ("--data", "DIR/d.csv", "--rungs", "8;9"), 2, "commas between, not '8;9'"),
    "a rate": (write("d.csv", GOOD), ("--data", "DIR/d.csv", "--lr", -1), 2, "learning_rate is above 0"),
    "no teacher": (
        write("d.csv", GOOD),
        ("--data", "DIR/d.csv", "--dense-epochs", 0),
        2,
        "the dense model cannot teach",
    ),
    "another task": (
        write("d.csv", GOOD),
        ("--data", "DIR/d.csv", "--task", "text-generation"),
        2,
        "of a model for feature-extraction, not text-generation",
    ),
    "labels for features": (
        write("d.csv", GOOD),
        ("--data", "DIR/d.csv", "--task", "feature-extraction", "--objective", "labels"),
        2,
        "takes no labels",
    ),
    "a folder without data": (lambda _: None, ("--data", "DIR"), 1, "cannot load the data DIR"),
    "an output that is not ours": (
        lambda folder: (folder / "out").mkdir() or (folder / "out" / "thesis.tex").write_text("x"),
        ("--data", "DIR/d.csv"),
        2,
        "did not write",
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_is_one_line_and_leaves_nothing(mistake: str, checkpoint: Path, run: Run, tmp_path: Path) -> None:
    prepare, options, code, message = MISTAKES[mistake]
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    options = tuple(str(option).replace("DIR", str(tmp_path)) for option in options)
    task = () if "--task" in options else ("--task", "text-classification")
    done = run("train", checkpoint, "-o", tmp_path / "out", *task, *options)
    assert done.code == code, done.err
    assert message.replace("DIR", str(tmp_path)) in done.message
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_run_goes_on_and_guards_its_settings(
    checkpoint: Path, labelled: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nsn_edge.training import saving

    line = ("train", checkpoint, "--data", labelled, "--task", "text-classification", *FEW)
    assert run(*line, "-o", tmp_path / "whole").code == 0
    publish, folder = saving.publish, tmp_path / "out.run"

    def interrupt(run_folder: Path, name: str) -> None:
        publish(run_folder, name)
        if run_folder.name == "nested":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving, "publish", interrupt)
        assert run(*line, "-o", tmp_path / "out").code == 130
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["dense", "nested", "run.json", "start"]
    kept = sorted(folder.rglob("*"))

    other = run(*line, "-o", tmp_path / "out", "--lr", 1e-3)
    assert other.code == 2
    assert "is of a run with other settings (learning_rate: 0.0005, now 0.001)" in other.message
    more = tmp_path / "more.csv"
    more.write_text(labelled.read_text() + "another file,file\n")
    other = run("train", checkpoint, "-o", tmp_path / "out", "--data", more, "--task", "text-classification", *FEW)
    assert (other.code, "another data" in other.message) == (2, True)
    settings = (folder / "run.json").read_text()
    (folder / "run.json").write_text(settings.replace('"schema_version": 1', '"schema_version": 9'))
    newer = run(*line, "-o", tmp_path / "out")
    assert newer.code == 1
    assert "has schema version 9; this nsn-edge reads version 1" in newer.message
    (folder / "run.json").write_text(settings)
    assert sorted(folder.rglob("*")) == kept

    done = run(*line, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert (done.document["resumed_from"], done.document["steps"]) == (2, 4)
    assert not folder.exists()
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "out")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_restart_forgets_an_earlier_run(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS))
    folder = tmp_path / "out.run"
    folder.mkdir()
    (folder / "run.json").write_text("{")
    line = ("train", checkpoint, "-o", tmp_path / "out", "--data", data, *FEW)
    assert "is damaged" in run(*line).message
    assert run(*line, "--restart").code == 0
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    assert "holds files of something else" in run(*line).message
    assert (folder / "thesis.tex").exists()


def test_a_loss_that_is_not_a_number(checkpoint_copy: Path, run: Run, tmp_path: Path) -> None:
    """The rate is absurd, so the weights fly off within a few steps."""
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS))
    line = ("train", checkpoint_copy, "-o", tmp_path / "out", "--data", data, "--steps", 40, "--batch-size", 2)
    done = run(*line, "--save-every", 1, "--lr", 1e30, "--warmup", 0)
    assert done.code == 1
    assert "in step" in done.message
    assert "lower the learning rate" in done.message
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_a_newer_version(checkpoint_copy: Path, run: Run, tmp_path: Path) -> None:
    file = checkpoint_copy / MANIFEST_NAME
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    done = run("train", checkpoint_copy, "-o", tmp_path / "out", "--data", "x.csv")
    assert (done.code, "schema version 2" in done.message) == (1, True)


def test_a_hub_data_set_by_way_of_the_library(
    checkpoint: Path, labelled: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of the library's own is read by the same call as a data set of the hub."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = datasets.ClassLabel(names=["class", "file"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": names})
    folder = tmp_path / "set"
    folder.mkdir()
    rows = {"sentence": ["a class", "a file", "the file"], "label": [0, 1, 1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "train-0.parquet")
    line = ("train", checkpoint, "-o", tmp_path / "out", "--data", folder, "--task", "text-classification", *FEW)
    done = run(*line, "--json")
    assert done.code == 0, done.err
    assert Checkpoint.load(tmp_path / "out").model.config.id2label == {0: "class", 1: "file"}
    shutil.rmtree(tmp_path / "out")
    missing = run(*line, "--split", "test")
    assert (missing.code, "has no split 'test'" in missing.message) == (2, True)
    rows["label"] = [0, 1, -1]
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "train-0.parquet")
    assert "example 2: label -1 is no label" in run(*line).message
