"""What training is tried on: a dense model, its data, and how good an answer is. Used by `training.py`.

Each arena makes the dense model of a seed once, and cuts it once in every way; every recipe begins with a copy.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import ROOT
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

from nsn_edge.bundle import TaskSpec
from nsn_edge.calibration import collect_covariances, ordered_text_batches
from nsn_edge.convert import NSNConfig, nsnify_
from nsn_edge.evaluation import embed_texts
from nsn_edge.ladder import RankLadder
from nsn_edge.metrics import spearman
from nsn_edge.pretrained import load_pretrained
from nsn_edge.sensitivity import allocate_
from nsn_edge.training.batches import Rows, text_rows
from nsn_edge.training.config import TrainConfig
from nsn_edge.training.data import Examples
from nsn_edge.training.dense import dense_copy, nest_like_
from nsn_edge.training.heads import with_new_head
from nsn_edge.training.objectives import LabelLoss, LogitDistillation, Mixed, VariantLoss
from nsn_edge.training.safe_trainer import SafeTrainer
from nsn_edge.training.tasks import loss_for

sys.path.insert(0, str(ROOT / "tests" / "support"))

DATA = Path(os.environ.get("NSN_EDGE_DATA", ROOT.parent / "shared" / "data"))


SECONDS, MINUTE, MINUTES = "seconds", "a minute", "minutes"


@dataclass
class Arena:
    """A dense model with its layers to cut, and what it is judged by."""

    name: str
    unit: str
    """Of the scores."""
    dense: nn.Module
    ladder: RankLadder
    rows: Rows
    calibration: Sequence[Any]
    """Model inputs, as `collect_covariances` takes them."""
    spec: TaskSpec
    score: Callable[[nn.Module], float]
    """At whatever rank the model stands."""
    has_labels: bool = True
    higher_is_better: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of every recipe here."""
    loss_function: Callable[[Any, Any], Tensor] | None = None
    """The label loss of a plain module."""
    align: int = 8
    """Ranks of layers are multiples of this."""
    probes: Sequence[Any] = ()
    """Model inputs to measure sensitivity on."""
    cut: dict[tuple[str, str], nn.Module] = field(default_factory=dict)
    """What `nested` made already."""

    def nested(self, method: str, allocate: str) -> nn.Module:
        """A copy, cut by `whitened` or `svd`, its ranks by layer `uniform` or by `sensitivity`."""
        if (method, allocate) not in self.cut:
            model = dense_copy(self.dense, frozen=False).eval()
            names = {layer.name for layer in self.ladder.layers}
            covariances = None
            if method == "whitened":
                covariances = collect_covariances(model, self.calibration, lambda _, name: name in names)
            nest_like_(model, self.ladder, covariances)
            self.cut[method, "uniform"] = model
            if allocate == "sensitivity":
                model = copy.deepcopy(model)
                allocate_(model, self.probes, self.spec, self.align)
                self.cut[method, allocate] = model
        return copy.deepcopy(self.cut[method, allocate])

    def loss(self, config: TrainConfig) -> VariantLoss:
        """The loss of a rank."""
        if self.loss_function is None:
            return loss_for(self.spec, config)
        labels, distillation = LabelLoss(self.loss_function), LogitDistillation(config.temperature)
        share = config.distill_weight
        mixed = Mixed(((1 - share, labels), (share, distillation)))
        return {"labels": labels, "distill": distillation, "mixed": mixed}[config.objective]


def digits(seed: int, quick: bool, kept: Path) -> Arena:
    """Scikit-learn's digits and a network of three layers: no data to fetch, seconds."""
    from digits import Digits, accuracy, trained_reader

    train, held_out = Digits(held_out=False), Digits(held_out=True)
    torch.manual_seed(seed)
    dense = trained_reader(train)
    ladder = _ladder(dense, NSNConfig("svd", align=1))
    return Arena(
        name="digits",
        unit="accuracy, %",
        dense=dense,
        ladder=ladder,
        rows=Rows([train[i] for i in range(len(train))], torch.utils.data.default_collate),
        calibration=[train.pixels],
        spec=TaskSpec("custom"),
        score=lambda model: 100 * accuracy(model, held_out),
        settings={"steps": 60 if quick else 150, "batch_size": 64, "learning_rate": 1e-2},
        align=1,
        probes=[train.pixels[:256]],
        loss_function=lambda outputs, batch: cross_entropy(outputs, batch["labels"]),
    )


def clinc(seed: int, quick: bool, kept: Path) -> Arena:
    """CLINC150 intents with MiniLM: the dense model is fine-tuned first, with its new head."""
    data = json.loads((DATA / "clinc150" / "data_full.json").read_bytes())
    pretrained = load_pretrained()
    train, test = data["train"], data["test"]
    labels = sorted({label for _, label in train})
    ids = {label: number for number, label in enumerate(labels)}
    body = pretrained.model
    nsnify_(body, NSNConfig("svd"))
    dense, ladder = with_new_head(body, "text-classification", labels, seed)
    examples = Examples("clinc150", [text for text, _ in train], labels=[label for _, label in train])
    rows = text_rows(pretrained.tokenizer, examples, ids, 64)
    file = kept / f"clinc-{seed}.safetensors"
    if file.is_file():
        load_model(dense, file)
        dense.eval()
    else:
        _fine_tune(dense, rows, seed, steps=40 if quick else 2 * 469, learning_rate=5e-4)
        save_model(dense, str(file))
    judged = test[:: 15 if quick else 2]
    batches = ordered_text_batches(pretrained.tokenizer, [text for text, _ in judged], 64, 64)
    truth = [ids[label] for _, label in judged]
    return Arena(
        name="CLINC150",
        unit="accuracy, %",
        dense=dense,
        ladder=ladder,
        rows=rows,
        calibration=rows.batches(32, 100 if quick else 1000),
        probes=rows.batches(32, 64),
        spec=TaskSpec("text-classification"),
        score=lambda model: _accuracy(model, batches, truth),
        settings={"steps": 15 if quick else 469, "batch_size": 32, "learning_rate": 5e-4},
    )


def stsb(seed: int, quick: bool, kept: Path) -> Arena:
    """Sentence embeddings of MiniLM, distilled on STS-B's training sentences, judged on its test scores."""
    pretrained = load_pretrained()
    columns = ["sentence1", "sentence2", "score"]
    train, test = (_table(DATA / "stsb" / f"stsb-en-{split}.csv", columns) for split in ("train", "test"))
    texts = sorted({row[name] for row in train for name in columns[:2]})
    judged = test[:: 8 if quick else 1]
    scores = [float(row["score"]) for row in judged]

    def score(model: nn.Module) -> float:
        sides = [
            embed_texts(model, pretrained.tokenizer, [row[name] for row in judged], pretrained.task)
            for name in columns[:2]
        ]
        return 100 * spearman(scores, (sides[0] * sides[1]).sum(1))

    rows = text_rows(pretrained.tokenizer, Examples("stsb", texts), None, 64)
    return Arena(
        name="STS-B",
        unit="Spearman x 100",
        dense=pretrained.model,
        ladder=_ladder(pretrained.model, NSNConfig("svd")),
        rows=rows,
        calibration=rows.batches(32, 100 if quick else 1000),
        probes=rows.batches(32, 64),
        spec=pretrained.task,
        score=score,
        has_labels=False,
        settings={"objective": "distill", "steps": 10 if quick else 330, "batch_size": 32, "learning_rate": 5e-4},
    )


def stories(seed: int, quick: bool, kept: Path) -> Arena:
    """The Llama of 260,000 parameters on texts of its own: perplexity, less is better."""
    from stories260k import BOS
    from stories260k import load_model as load_stories

    model = load_stories(DATA / "stories260K")
    torch.manual_seed(seed)
    with torch.no_grad():
        samples = [
            model.generate(
                torch.full((64, 1), BOS),
                attention_mask=torch.ones(64, 1, dtype=torch.int64),
                do_sample=True,
                min_new_tokens=127,
                max_new_tokens=127,
                pad_token_id=BOS,
            )
            for _ in range(2 if quick else 12)
        ]
    blocks = torch.cat(samples)
    held_out = blocks[: 16 if quick else 64]
    items = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in blocks[64:]]
    rows = Rows(items, torch.utils.data.default_collate)

    def perplexity(model: nn.Module) -> float:
        with torch.no_grad():
            return math.exp(float(model(input_ids=held_out, labels=held_out, use_cache=False).loss))

    return Arena(
        name="stories260K",
        unit="perplexity",
        dense=model,
        ladder=_ladder(model, NSNConfig("svd", align=1)),
        rows=rows,
        calibration=rows.batches(32, 256),
        probes=rows.batches(16, 32),
        align=1,
        spec=TaskSpec("text-generation"),
        score=perplexity,
        higher_is_better=False,
        settings={"steps": 12 if quick else 200, "batch_size": 8, "learning_rate": 2e-3},
    )


@dataclass(frozen=True)
class ArenaKind:
    """How an arena is made, and what that takes."""

    make: Callable[[int, bool, Path], Arena]
    """From a seed, whether to be quick, and a folder that keeps what takes long."""
    folder: str | None
    """Of data that it needs."""
    one_recipe: str = SECONDS
    """How long one takes."""
    has_labels: bool = True


ARENAS = {
    "clinc": ArenaKind(clinc, "clinc150", MINUTES),
    "stsb": ArenaKind(stsb, "stsb", MINUTES, has_labels=False),
    "stories": ArenaKind(stories, "stories260K", MINUTE),
    "digits": ArenaKind(digits, None),
}
"""By name, the longest first."""


def _ladder(dense: nn.Module, config: NSNConfig) -> RankLadder:
    return nsnify_(dense_copy(dense, frozen=False), config)


def _fine_tune(dense: nn.Module, rows: Rows, seed: int, steps: int, learning_rate: float) -> None:
    with tempfile.TemporaryDirectory(prefix="nsn-edge-bench-") as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=learning_rate,
            warmup_ratio=0.06,
            seed=seed,
            group_by_length=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        SafeTrainer(dense, arguments, train_dataset=rows, data_collator=rows.collate).train()
    dense.cpu().eval()


def _accuracy(model: nn.Module, batches: Sequence[tuple[list[int], dict[str, Tensor]]], truth: Sequence[int]) -> float:
    right = 0
    with torch.no_grad():
        for positions, batch in batches:
            found = model(**batch).logits.argmax(-1).tolist()
            right += sum(answer == truth[at] for answer, at in zip(found, positions, strict=True))
    return 100 * right / len(truth)


def _table(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return [dict(zip(columns, row, strict=True)) for row in csv.reader(stream)]
