"""Energies against brute force, measures against the libraries, and the frontier of a real checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification

from nsn_edge.adaptation import CalibrationText, adapt
from nsn_edge.bundle import TaskSpec
from nsn_edge.calibration import collect_covariances
from nsn_edge.checkpoint import Checkpoint
from nsn_edge.convert import NSNConfig, default_filter, nsnify_
from nsn_edge.errors import NsnEdgeError, RankError, UsageError
from nsn_edge.evaluation import embed_texts
from nsn_edge.frontier.energy import decay_of, energy_kept, layer_weights, mean_kept
from nsn_edge.frontier.measures import Columns, Perplexity, measure_for
from nsn_edge.frontier.measuring import measure_frontier, ranks_between
from nsn_edge.frontier.record import csv_text, fingerprint, qualities, read_evaluation
from nsn_edge.layers import at_dense, at_rank, ladder_of, nsn_layers
from nsn_edge.metrics import spearman
from nsn_edge.pretrained import load_pretrained

TEXT = CalibrationText(["the cat sat on the mat", "a dog ran", "she saw the red house", "it"], "four lines")
POOLED = TaskSpec("feature-extraction", pooling="mean", normalize=True, max_length=12)


@pytest.fixture(scope="module")
def embedder(embedder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frontier") / "checkpoint"
    adapt(embedder_folder, text=TEXT).save(path)
    return path


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    subjects, ends = ("the cat", "a dog", "she", "they", "it"), ("sat", "ran on the mat", "saw the red house")
    file.write_text("".join(f"{subject} {end}\n" for subject in subjects for end in ends))
    return file


def test_energies_are_those_of_the_layers_real_outputs(bert, batch) -> None:
    """Of factors that training has mixed: nothing is diagonal any more."""
    nsnify_(bert, NSNConfig("svd", keep_dense=False))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in nsn_layers(bert).values():
            layer.A += 0.1 * torch.randn(layer.A.shape, generator=generator)
    kept = energy_kept(bert, [batch])
    seen: dict[str, torch.Tensor] = {}
    name, layer = list(nsn_layers(bert).items())[-1]
    hook = layer.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad(), at_rank(bert, ladder_of(bert).max_rank):
        bert(**batch)
    hook.remove()
    x = seen["x"][batch["attention_mask"].bool()].double()
    h = x @ layer.A.detach().double().T
    whole = h @ layer.B.detach().double()
    for rank in (1, 7, 31):
        error = (whole - h[:, :rank] @ layer.B[:rank].detach().double()).pow(2).sum() / whole.pow(2).sum()
        assert kept[name][rank - 1] == pytest.approx(1 - float(error), abs=1e-9)
    assert kept[name][-1] == pytest.approx(1.0)


def test_fresh_whitened_factors_keep_what_their_spectrum_says(bert, batch) -> None:
    nsnify_(bert, covariances=collect_covariances(bert, [batch], default_filter))
    for name, curve in energy_kept(bert, [batch]).items():
        assert (np.diff(curve) > -1e-6).all(), name
        assert 0 < curve[0] <= curve[-1] == pytest.approx(1.0)


def test_energies_are_averaged_with_weights() -> None:
    kept = {"a": np.array([0.5, 1.0]), "b": np.array([0.9, 0.95, 1.0])}
    assert mean_kept(kept, {"a": 1, "b": 1}) == pytest.approx(0.7)
    assert mean_kept(kept, {"a": 1, "b": 2}, {"a": 3.0, "b": 1.0}) == pytest.approx((1.5 + 0.95) / 4)
    assert mean_kept(kept, {"a": 2, "b": 3}, {"a": 0.0, "b": 0.0}) == 1.0


def test_decay_tells_an_exponential_from_a_power_law() -> None:
    def kept(energy):
        return np.cumsum(energy) / energy.sum()

    k = np.arange(1, 65)
    exponential = decay_of({"l": kept(np.exp(-k / 10.0))})
    power = decay_of({"l": kept(k**-2.0)})
    assert exponential.exponential_r2 == pytest.approx(1.0)
    assert power.power_r2 == pytest.approx(1.0)
    assert exponential.power_r2 < 0.9
    assert power.exponential_r2 < 0.9
    assert exponential.energy_kept[-1] == pytest.approx(1.0)


def test_a_layer_that_hardly_matters_weighs_little() -> None:
    class TwoRoads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.loud, self.quiet = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.loud(x) + 1e-2 * self.quiet(x)

    model, x = TwoRoads(), [torch.randn(64, 16, generator=torch.Generator().manual_seed(1))]
    nsnify_(model, NSNConfig("svd"))
    kept = energy_kept(model, x)
    weights = layer_weights(model, kept, x, TaskSpec("custom"))
    assert 0 < weights["quiet"] < 1e-3 * weights["loud"]


def test_the_frontier_of_an_embedder(embedder: Path, sentences: Path, tokenizer) -> None:
    checkpoint = Checkpoint.load(embedder)
    measure = measure_for(checkpoint.model, tokenizer, checkpoint.task, sentences)
    assert (measure.metric.name, measure.examples) == ("spearman", 15)
    found = measure_frontier(checkpoint, measure, [24, 8], between=2)
    by_rank = {point.rank: point for point in found.points}
    assert [point.rank for point in found.points if point.rung] == [8, 24, 32]
    assert found.points[-1].dense
    assert found.points[-1].quality == pytest.approx(1.0)
    assert found.points[-1].loss == pytest.approx(0.0)
    assert found.reference == "dense"
    with at_dense(checkpoint.model):
        dense = embed_texts(checkpoint.model, tokenizer, measure.texts, checkpoint.task)
    with at_rank(checkpoint.model, 8):
        small = embed_texts(checkpoint.model, tokenizer, measure.texts, checkpoint.task)
    above = np.triu_indices(15, k=1)
    assert by_rank[8].quality == pytest.approx(spearman((dense @ dense.T)[above], (small @ small.T)[above]))
    assert by_rank[8].loss == pytest.approx(100 - 100 * by_rank[8].quality)
    between = [point for point in found.points if not point.rung]
    assert between
    assert all(point.off_line is not None for point in between)
    assert by_rank[8].energy_kept < by_rank[24].energy_kept < 1
    assert by_rank[8].trained is None
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["points"][0]["rank"] == 8


def test_without_the_dense_weights_full_rank_is_the_reference(embedder_folder, sentences, tokenizer) -> None:
    checkpoint = adapt(embedder_folder, config=NSNConfig(keep_dense=False), text=TEXT)
    measure = measure_for(checkpoint.model, tokenizer, checkpoint.task, sentences)
    found = measure_frontier(checkpoint, measure, [8, 32], between=0)
    assert found.reference == "full rank"
    assert [(point.rank, point.dense) for point in found.points] == [(8, False), (32, False)]
    assert found.points[-1].loss == pytest.approx(0.0)


def test_trained_ranks_are_marked(embedder: Path, sentences: Path, tokenizer) -> None:
    loaded = Checkpoint.load(embedder)
    checkpoint = Checkpoint(loaded.model, loaded.task, "trained", {"training": {"ranks": [8, 24]}}, loaded.assets)
    found = measure_frontier(checkpoint, measure_for(loaded.model, tokenizer, loaded.task, sentences), [8, 24])
    assert {point.rank: point.trained for point in found.points} == {8: True, 16: False, 24: True, 32: None}


def test_ranks_between_are_other_models(embedder: Path) -> None:
    ladder = Checkpoint.load(embedder).ladder
    assert ranks_between(ladder, [8, 24, 32], 1) == [16]
    assert ranks_between(ladder, [8, 16], 3) == []  # alignment makes them all the model of rank 8
    assert ranks_between(ladder, [8], 3) == []


def test_scores_of_pairs(embedder: Path, tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("the cat sat,a cat sat,4.5\nthe dog ran,she saw the house,0.5\nit,they ran,2\nhe,she,3\n")
    checkpoint = Checkpoint.load(embedder)
    columns = Columns(names=("sentence1", "sentence2", "score"))
    measure = measure_for(checkpoint.model, tokenizer, checkpoint.task, file, columns)
    assert (measure.metric.name, measure.examples) == ("sts_spearman", 4)
    first = embed_texts(checkpoint.model, tokenizer, measure.first, checkpoint.task)
    second = embed_texts(checkpoint.model, tokenizer, measure.second, checkpoint.task)
    assert measure(checkpoint.model) == pytest.approx(spearman((first * second).sum(1), np.array([4.5, 0.5, 2, 3])))
    assert measure_for(checkpoint.model, tokenizer, checkpoint.task, file, columns, 2).scores == [4.5, 2.0]


def classifier(labels: dict[int, str]) -> BertForSequenceClassification:
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=40,
        max_position_embeddings=24, id2label=labels, label2id={name: number for number, name in labels.items()},
        initializer_range=0.5,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def test_accuracy_is_that_of_the_library(tokenizer, tmp_path: Path) -> None:
    model = classifier({0: "calm", 1: "angry", 2: "sad"})
    texts = ["the cat sat", "a dog ran", "she saw the red house", "they ran on the mat", "it"]
    labels = ["calm", "angry", "sad", "calm", "calm"]
    file = tmp_path / "labelled.jsonl"
    file.write_text(
        "".join(json.dumps({"sentence": t, "intent": n}) + "\n" for t, n in zip(texts, labels, strict=True))
    )
    measure = measure_for(model, tokenizer, TaskSpec("text-classification"), file)
    with torch.no_grad():
        chosen = [model.config.id2label[int(model(**tokenizer(t, return_tensors="pt")).logits.argmax())] for t in texts]
    right = sum(a == b for a, b in zip(chosen, labels, strict=True))
    assert measure(model) == right / 5
    assert 0 < right < 5


def test_numbers_stand_for_labels_without_names(tokenizer, tmp_path: Path) -> None:
    model = classifier({0: "LABEL_0", 1: "LABEL_1"})
    file = tmp_path / "a.csv"
    file.write_text("text,label\nthe cat,1\na dog,LABEL_0\n")
    assert measure_for(model, tokenizer, TaskSpec("text-classification"), file).numbers == [1, 0]


def test_perplexity_is_that_of_the_library(gpt2, tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("the cat sat on the mat\nand she saw the red house\n" * 5)
    measure = measure_for(gpt2, tokenizer, TaskSpec("text-generation", max_length=16), file)
    assert max(map(len, measure.windows)) == 16
    losses, tokens = 0.0, 0
    with torch.no_grad():
        for window in measure.windows:
            ids = window.unsqueeze(0)
            losses += float(gpt2(input_ids=ids, labels=ids).loss) * (len(window) - 1)
            tokens += len(window) - 1
    assert measure(gpt2) == pytest.approx(math.exp(losses / tokens), rel=1e-5)
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"text": "the cat sat"}\n{"text": "she ran on the mat"}\n')
    assert measure_for(gpt2, tokenizer, TaskSpec("text-generation"), rows).examples == 2


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.csv", "text,label\nthe cat,calm\na dog,happy\n", Columns(), r"line 3: the model has no label 'happy'"),
        ("a.csv", "text,label\nthe cat,calm\n", Columns(label="mood"), "no column 'mood'; it has 'text', 'label'"),
        ("a.csv", "body,label\nthe cat,calm\n", Columns(), "no column named text or .*--text-column"),
        ("a.csv", "text,label\n", Columns(), "holds no rows"),
    ],
)
def test_labelled_data_that_does_not_fit_is_refused(tokenizer, tmp_path, name, content, columns, message) -> None:
    model = classifier({0: "calm", 1: "angry"})
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        measure_for(model, tokenizer, TaskSpec("text-classification"), tmp_path / name, columns)


def test_what_cannot_be_measured_is_refused(bert, gpt2, tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="labelled texts"):
        measure_for(classifier({0: "a", 1: "b"}), tokenizer, TaskSpec("text-classification"))
    with pytest.raises(UsageError, match="no measure for the task 'image-classification'"):
        measure_for(bert, tokenizer, TaskSpec("image-classification"))
    with pytest.raises(UsageError, match="no measure for a task without pooling"):
        measure_for(bert, tokenizer, TaskSpec("feature-extraction"))
    (tmp_path / "two.txt").write_text("the cat\nthe cat\na dog\n")
    with pytest.raises(UsageError, match="2 distinct texts"):
        measure_for(bert, tokenizer, POOLED, tmp_path / "two.txt")
    (tmp_path / "same.csv").write_text("sentence1,sentence2,score\na cat,a dog,1\nshe,he,1\n")
    with pytest.raises(UsageError, match="the scores are all 1"):
        measure_for(bert, tokenizer, POOLED, tmp_path / "same.csv")
    (tmp_path / "one.txt").write_text("cat\n")
    with pytest.raises(UsageError, match=r"no text of 2 tokens or more"):
        measure_for(gpt2, lambda *_, **__: {"input_ids": [3]}, TaskSpec("text-generation"), tmp_path / "one.txt")
    with pytest.raises(UsageError, match="token 99, and the model knows 40"):
        measure_for(gpt2, lambda *_, **__: {"input_ids": [3, 99]}, TaskSpec("text-generation"), tmp_path / "one.txt")
    gpt2.transformer.ln_f.weight.data.fill_(math.nan)
    with pytest.raises(NsnEdgeError, match="not finite"):
        Perplexity([torch.tensor([1, 2, 3])])(gpt2)


def test_ranks_outside_are_refused(embedder: Path, sentences: Path, tokenizer) -> None:
    checkpoint = Checkpoint.load(embedder)
    measure = measure_for(checkpoint.model, tokenizer, checkpoint.task, sentences)
    with pytest.raises(RankError, match=r"rank 33 is outside 1\.\.32"):
        measure_frontier(checkpoint, measure, [8, 33])
    with pytest.raises(UsageError, match="without rungs"):
        measure_frontier(checkpoint, measure, [])
    with pytest.raises(UsageError, match="0 or more, not -1"):
        measure_frontier(checkpoint, measure, [8], between=-1)


def document(checkpoint: Path, **more: object) -> dict[str, object]:
    points = [{"rank": 8, "dense": False, "quality": 0.5}, {"rank": 32, "dense": True, "quality": 1.0}]
    return {
        "schema_version": 1, "kind": "evaluation", "metric": "spearman", "points": points,
        "checkpoint_sha256": fingerprint(checkpoint), **more,
    }  # fmt: skip


def test_a_bundles_rungs_take_what_was_measured_at_them(embedder: Path, tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(document(embedder)))
    ladder = Checkpoint.load(embedder).ladder
    rungs = ladder.with_rungs([8, 16], dense_top=True)
    assert qualities(file, embedder, rungs) == {8: {"spearman": 0.5}, 32: {"spearman": 1.0}}
    # The factors at full rank are not the dense original.
    assert qualities(file, embedder, ladder.with_rungs([8, 32], dense_top=False)) == {8: {"spearman": 0.5}}
    with pytest.raises(UsageError, match="measured ranks 8, 32, and the bundle's are 16"):
        qualities(file, embedder, ladder.with_rungs([16], dense_top=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint_sha256": "0" * 64}, "of another checkpoint"),
        ({"kind": "profile"}, "is not an evaluation"),
        ({"schema_version": 2}, "schema version 2"),
        ({"points": [{"rank": 8, "dense": False, "quality": None}]}, "not a sound evaluation"),
        ({"points": None}, "not a sound evaluation"),
    ],
)
def test_another_evaluation_is_refused(embedder: Path, tmp_path: Path, change, message) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(document(embedder, **change)))
    with pytest.raises(NsnEdgeError, match=message):
        qualities(file, embedder, Checkpoint.load(embedder).ladder.with_rungs([8], dense_top=True))
    with pytest.raises(UsageError, match="cannot read"):
        read_evaluation(tmp_path / "absent.json")


def test_csv_has_a_line_per_point(embedder: Path) -> None:
    lines = csv_text(document(embedder)).splitlines()
    assert lines[0].startswith("rank,dense,rung,trained,flops_fraction")
    assert lines[1].startswith("8,False,")
    assert len(lines) == 3


def test_a_pretrained_embedder_measures_as_itself(embedder_folder: Path, sentences: Path) -> None:
    pretrained = load_pretrained(embedder_folder)
    measure = measure_for(pretrained.model, pretrained.tokenizer, pretrained.task, sentences, most=5)
    assert measure.examples == 5
    assert measure(pretrained.model) == 1.0
