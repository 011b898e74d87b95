"""A checkpoint's model for another task: its body, with a new head for the labels of the data.

nested BertModel --dense--> BertForSequenceClassification(151 labels, head at random) --trained, cut--> nested
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nsn_edge.convert import is_conv1d
from nsn_edge.errors import UnsupportedModelError, UsageError
from nsn_edge.ladder import RankLadder
from nsn_edge.layers import ladder_of
from nsn_edge.training.data import Examples
from nsn_edge.training.dense import dense_copy, inside

_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}


def label_names(examples: Examples) -> tuple[str, ...]:
    """Each label once: by number where all are numbers, by name otherwise.

    Raises:
        UsageError: less than two.
    """
    unique = set(examples.labels or ())
    if len(unique) < 2:
        raise UsageError(
            f"{examples.source} has {len(unique)} label, and there is nothing to tell apart", "give it two or more"
        )
    return tuple(sorted(unique, key=int) if all(label.isdecimal() for label in unique) else sorted(unique))


def label_ids_of(model: nn.Module) -> dict[str, int]:
    """The labels that a model's head knows, by name; by number as well where they have no names of their own."""
    config: Any = model.config
    names = {str(name): int(number) for number, name in config.id2label.items()}
    if all(name.startswith("LABEL_") for name in names):
        return {str(number): number for number in names.values()}
    return names


def with_new_head(model: nn.Module, task: str, labels: Sequence[str], seed: int) -> tuple[nn.Module, RankLadder]:
    """A dense model for a classification task, and the ladder of the layers to cut in it.

    Args:
        model: nested, of transformers: a body, or a body with another head.
        task: `text-classification` or `image-classification`.
        labels: the names of the classes, two or more.
        seed: of the head.

    Raises:
        UsageError: a task without such a head.
        UnsupportedModelError: transformers has no such head for the architecture.
    """
    import transformers

    if task not in _CLASSES:
        raise UsageError(f"no head can be made for {task}", "adapt the model for this task: nsn-edge adapt --task")
    body: Any = getattr(model, "base_model", model)
    config = copy.deepcopy(body.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = getattr(transformers, _CLASSES[task]).from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise UnsupportedModelError(f"transformers has no {task} head for {type(body).__name__}") from error
    prefix = fresh.base_model_prefix
    inner = getattr(fresh, prefix)
    wanted = inner.state_dict()
    state = {name: value for name, value in dense_copy(body, frozen=False).state_dict().items() if name in wanted}
    for name, module in inner.named_modules():
        if is_conv1d(module) and f"{name}.weight" in state:  # GPT-2's layers keep their weights the other way round
            state[f"{name}.weight"] = state[f"{name}.weight"].T
    inner.load_state_dict(state, strict=False)  # a pooler that the body lacks stays at random, like the head
    if fresh.config.pad_token_id is None and task == "text-classification":
        fresh.config.pad_token_id = 0  # decoders look for the last token that is no padding
    return fresh.train(), inside(ladder_of(body), prefix)
