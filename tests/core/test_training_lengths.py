"""The order of examples: every one once, alike in length within a batch, the same for the same seed and epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import TrainingArguments

from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.training.batches import Rows
from nsn_edge.training.lengths import LengthGroupedSampler
from nsn_edge.training.objectives import LabelLoss
from nsn_edge.training.trainer import NSNTrainer


@given(st.lists(st.integers(1, 64), min_size=1, max_size=400), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_every_example_comes_once_and_the_order_is_that_of_seed_and_epoch(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    def order(epoch: int) -> list[int]:
        sampler = LengthGroupedSampler(lengths, batch_size, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(epoch)) == list(range(len(lengths)))
    assert order(epoch) == order(epoch)


def test_epochs_and_seeds_differ() -> None:
    lengths = [1 + i % 40 for i in range(300)]
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = LengthGroupedSampler(lengths, 8, seed)
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
    assert len(set(orders)) == 3


def test_a_batch_holds_texts_of_like_length_and_batches_come_in_random_order() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 60, (3200,), generator=generator).tolist()
    order = list(LengthGroupedSampler(lengths, 32))
    batches = [[lengths[i] for i in order[at : at + 32]] for at in range(0, len(order), 32)]
    assert sum(max(batch) for batch in batches) * 32 < 1.05 * sum(lengths)
    longest = [max(batch) for batch in batches[:50]]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


class _MeanOfTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.linear = nn.Linear(16, 16)
        self.seen: list[int] = []

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids.shape[1])
        return self.linear(self.embedding(input_ids)).mean(1)


@pytest.mark.usefixtures("one_thread")
def test_the_trainer_takes_the_order_where_it_is_asked_to_and_rows_differ(tmp_path: Path) -> None:
    items = [{"input_ids": torch.arange(1 + i % 20), "labels": torch.tensor(i % 4)} for i in range(160)]

    def collate(rows: object) -> dict[str, torch.Tensor]:
        assert isinstance(rows, list)
        ids = nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True)
        return {"input_ids": ids, "labels": torch.stack([row["labels"] for row in rows])}

    padded = {}
    for grouped in (False, True):
        model = _MeanOfTokens()
        nsnify_(model, NSNConfig("svd", align=1))
        NSNTrainer(
            model,
            TrainingArguments(
                str(tmp_path),
                max_steps=10,
                per_device_train_batch_size=16,
                group_by_length=grouped,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            ),
            loss=LabelLoss(lambda outputs, batch: nn.functional.cross_entropy(outputs, batch["labels"])),
            train_dataset=Rows(items, collate),
            data_collator=collate,
        ).train()
        padded[grouped] = sum(model.seen)
    assert padded[True] < 0.7 * padded[False]


def test_rows_without_lengths_or_all_alike_need_no_order() -> None:
    def collate(rows: object) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    assert Rows([{"pixels": torch.zeros(3)}], collate).lengths is None
    assert Rows([{"input_ids": [1, 2]}, {"input_ids": [3, 4]}], collate).lengths is None
    assert Rows([{"input_ids": [1]}, {"input_ids": [3, 4]}], collate).lengths == [1, 2]
