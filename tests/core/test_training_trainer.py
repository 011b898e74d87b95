"""The Trainer on real data: it trains the small ranks, resumes exactly, and stops before a bad number is kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from digits import Digits, Reader, accuracy, trained_reader
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback, TrainingArguments

from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.errors import CheckpointError, NsnEdgeError, TrainingError, UsageError
from nsn_edge.layers import at_dense, at_rank, nsn_layers
from nsn_edge.training import saving
from nsn_edge.training.dense import dense_copy
from nsn_edge.training.objectives import LabelLoss, LogitDistillation, Mixed, UncertaintyWeights
from nsn_edge.training.ranks import RankSampler
from nsn_edge.training.safe_trainer import ProgressReport
from nsn_edge.training.trainer import NSNTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = LabelLoss(lambda outputs, batch: cross_entropy(outputs, batch["labels"]))


@pytest.fixture(scope="module")
def train_data() -> Digits:
    return Digits(held_out=False)


@pytest.fixture(scope="module")
def held_out() -> Digits:
    return Digits(held_out=True)


@pytest.fixture(scope="module")
def reader(train_data: Digits) -> Reader:
    return trained_reader(train_data)


@pytest.fixture
def nested(reader: Reader) -> Reader:
    model = copy.deepcopy(reader)
    nsnify_(model, NSNConfig("svd", align=1))
    return model


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    usual = {
        "max_steps": 12,
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-3,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(str(folder), **{**usual, **settings})


def trainer(
    model: nn.Module,
    data: Any,
    folder: Path,
    *,
    callbacks: Any = None,
    lowest: int = 2,
    highest: int = 32,
    **settings: Any,
) -> NSNTrainer:
    """The paper's weights over labels and distillation: everything that has a state."""
    return NSNTrainer(
        model,
        arguments(folder, **settings),
        sampler=RankSampler(tuple(range(lowest, highest + 1)), 64, "anchor", 1),
        loss=Mixed(((0.5, LABELS), (0.5, LogitDistillation()))),
        weights=UncertaintyWeights(2),
        teacher=dense_copy(model, frozen=True),
        trained="factors",
        train_dataset=data,
        callbacks=callbacks,
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_small_ranks_read_better_for_it_and_the_dense_original_is_as_it_was(
    nested: Reader, reader: Reader, train_data: Digits, held_out: Digits, tmp_path: Path
) -> None:
    def accuracies() -> dict[int, float]:
        found = {}
        for rank in (3, 4, 6):
            with at_rank(nested, rank):
                found[rank] = accuracy(nested, held_out)
        return found

    before = accuracies()
    heard: list[tuple[str, int, int]] = []
    report = ProgressReport(lambda *event: heard.append(event))
    settings = {"max_steps": 120, "per_device_train_batch_size": 64, "learning_rate": 1e-2}
    run = trainer(nested, train_data, tmp_path, lowest=3, highest=8, callbacks=[report], **settings)
    run.train()
    after = accuracies()
    for rank in before:
        assert after[rank] > before[rank] + 0.1, (before, after)
    assert after[6] > accuracy(reader, held_out) - 0.06
    with at_dense(nested):
        torch.testing.assert_close(nested(held_out.pixels), reader(held_out.pixels))
    assert heard[-1] == ("train", 120, 120)
    assert report.logged[-1]["loss"] < report.logged[0]["loss"]
    assert run.model.weights.log_variances.abs().min() > 1e-4  # they were in the optimiser


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(nested: Reader, train_data: Digits, tmp_path: Path) -> None:
    whole, broken = copy.deepcopy(nested), copy.deepcopy(nested)
    first = trainer(whole, train_data, tmp_path / "whole")
    first.train()

    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 9:
                raise KeyboardInterrupt

    saving_often = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}
    with pytest.raises(KeyboardInterrupt):
        trainer(broken, train_data, tmp_path / "broken", callbacks=[Interrupt()], **saving_often).train()
    last = saving.last_saved(tmp_path / "broken")
    assert last is not None
    assert last.name == "checkpoint-8"
    fresh = copy.deepcopy(nested)
    second = trainer(fresh, train_data, tmp_path / "broken", **saving_often)
    second.train(resume_from_checkpoint=str(last))
    assert second.state.global_step == 12
    expected, found = state(first.model), state(second.model)
    assert set(expected) == set(found)
    assert "weights.log_variances" in expected
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    # Only what is trained was saved, and no more than two states.
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == ["checkpoint-12", "checkpoint-8"]
    stored = load_file(tmp_path / "broken" / "checkpoint-12" / saving.WEIGHTS_NAME)
    assert {name.rsplit(".", 1)[1] for name in stored} == {"A", "B", "log_variances"}


def test_micro_batches_of_a_step_share_its_ranks_and_add_up(nested: Reader, train_data: Digits, tmp_path: Path) -> None:
    whole, parts = copy.deepcopy(nested), copy.deepcopy(nested)
    trainer(whole, train_data, tmp_path / "a").train()
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    trainer(parts, train_data, tmp_path / "b", **split).train()
    for name, value in state(whole).items():
        torch.testing.assert_close(state(parts)[name], value, rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_the_weights_in_float32(nested: Reader, train_data: Digits, tmp_path: Path) -> None:
    run = trainer(nested, train_data, tmp_path, bf16=True, max_steps=3)
    before = state(nested)
    run.train()
    for layer in nsn_layers(nested).values():
        assert layer.A.dtype == torch.float32
    assert any(not torch.equal(value, before[name]) for name, value in state(nested).items())


def test_evaluate_gives_the_loss_of_each_rank(nested: Reader, held_out: Digits, tmp_path: Path) -> None:
    run = NSNTrainer(
        nested, arguments(tmp_path), loss=LABELS, evaluated_ranks=(64, 6), eval_dataset=held_out, train_dataset=held_out
    )
    metrics = run.evaluate()
    expected = {}
    for rank in (64, 6):
        with at_rank(nested, rank), torch.no_grad():
            expected[rank] = float(cross_entropy(nested(held_out.pixels), held_out.labels))
            assert metrics[f"eval_loss_rank_{rank}"] == pytest.approx(expected[rank], rel=1e-4)
    assert metrics["eval_loss"] == pytest.approx(sum(expected.values()) / 2, rel=1e-4)


class Poisoned(Digits):
    """One of its pixels is not a number."""

    def __init__(self) -> None:
        super().__init__(held_out=False)
        self.pixels[:] = torch.where(torch.arange(len(self)).unsqueeze(1) == 100, torch.nan, self.pixels)


def test_a_loss_that_is_not_a_number_ends_the_run(nested: Reader, tmp_path: Path) -> None:
    run = trainer(nested, Poisoned(), tmp_path, max_steps=90, save_strategy="steps", save_steps=2)
    with pytest.raises(TrainingError) as caught:
        run.train()
    step = run.state.global_step
    assert step >= 2
    largest = run.sampler.ranks_at(step)[0]
    last = saving.last_saved(tmp_path)
    assert last is not None
    assert f"the loss at rank {largest} became nan in step {step + 1}; the last good state is {last}" in str(
        caught.value
    )
    for value in saving.trained_tensors(run.model).values():
        assert bool(torch.isfinite(value).all())
    assert all(layer.weight is not None for layer in nsn_layers(nested).values())


def test_a_weight_that_is_not_finite_is_never_saved(nested: Reader, train_data: Digits, tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    model.model.body[0].A[0, 0] = torch.inf

    run = trainer(nested, train_data, tmp_path, callbacks=[Spoil()], save_strategy="steps", save_steps=2)
    with pytest.raises(TrainingError, match=r"'body\.0\.A' became NaN or infinite in step 4; .*checkpoint-2"):
        run.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_full_disk_while_saving_keeps_what_stands(
    nested: Reader, train_data: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(nested, train_data, tmp_path, save_strategy="steps", save_steps=2)
    real = torch.save

    def full(value: Any, path: Any, *rest: Any, **options: Any) -> None:
        if run.state.global_step == 4:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 502528 vs 502420")
        real(value, path, *rest, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(NsnEdgeError, match="the disk is full, or the file too large; the last checkpoint stands"):
        run.train()
    last = saving.last_saved(tmp_path)
    assert last is not None
    assert last.name == "checkpoint-2"
    assert json.loads((last / "trainer_state.json").read_text())["global_step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_state_of_another_model_is_refused(nested: Reader, train_data: Digits, tmp_path: Path) -> None:
    run = trainer(nested, train_data, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    run.train()
    weights = tmp_path / "checkpoint-2" / saving.WEIGHTS_NAME
    other = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        saving.load_trained_(other, weights.parent)
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        saving.load_trained_(run.model, weights.parent)


def test_what_does_not_go_together_is_refused(nested: Reader, train_data: Digits, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a teacher"):
        NSNTrainer(nested, arguments(tmp_path), loss=LogitDistillation(), train_dataset=train_data)
    best = arguments(tmp_path, save_strategy="steps", eval_strategy="steps", load_best_model_at_end=True)
    with pytest.raises(UsageError, match="no one best checkpoint"):
        NSNTrainer(nested, best, loss=LABELS, train_dataset=train_data)
