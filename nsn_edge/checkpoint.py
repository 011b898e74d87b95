"""A nested model on disk, complete: it loads without the original model, the hub or the network.

    checkpoint/
      nsn.json              this package's: schema version, class, task, every nested layer with its curve, provenance
      model.safetensors     every parameter and buffer once; tied tensors under their first name
      config.json           transformers' configuration (absent for a plain module)
      tokenizer.json ...    tokenizer files

Nothing is unpickled, and the class is looked up in transformers alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nsn_edge.atomic import atomic_folder
from nsn_edge.bundle import TaskSpec, is_bundle_folder
from nsn_edge.convert import dense_weight
from nsn_edge.errors import CheckpointError, NsnEdgeError, UsageError
from nsn_edge.ladder import NestedLayer, RankLadder
from nsn_edge.layers import NSNLinear, ladder_of, nsn_layers, replace_module_
from nsn_edge.progress import Progress, silent

SCHEMA_VERSION = 1
MANIFEST_NAME = "nsn.json"
WEIGHTS_NAME = "model.safetensors"

ASSET_NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "generation_config.json", "preprocessor_config.json"),
)
"""What is copied beside the weights where the original has it."""

_AGAIN = "adapt the model again: nsn-edge adapt MODEL -o CHECKPOINT"


@dataclass(frozen=True)
class Checkpoint:
    """A nested model with what it is for and where it came from."""

    model: nn.Module
    """Holds `NSNLinear` layers."""
    task: TaskSpec
    """What it is for."""
    name: str
    """A name for people."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: plain JSON values."""
    assets: Path | None = None
    """The folder with its tokenizer files; None where there are none."""

    @property
    def ladder(self) -> RankLadder:
        """The model's ladder, without rungs."""
        return ladder_of(self.model)

    @property
    def trained_ranks(self) -> tuple[int, ...]:
        """The ranks that training took, rising; none where the factors are as they were cut."""
        training = self.provenance.get("training")
        ranks = training.get("ranks", ()) if isinstance(training, Mapping) else ()
        return tuple(int(rank) for rank in ranks)

    def save(self, path: Path | str) -> None:
        """Write the checkpoint in one step; an older checkpoint there is replaced, anything else is refused.

        Raises:
            UnsupportedModelError: the model has no nested layers.
            UsageError: `path` holds something that is not a checkpoint.
            NsnEdgeError: the disk is full or cannot be written.
        """
        manifest = self._manifest()
        with atomic_folder(Path(path), is_checkpoint_folder) as folder:
            save_tensors(tensors_of(self.model), folder / WEIGHTS_NAME)
            (folder / WEIGHTS_NAME).chmod(folder.stat().st_mode & 0o666)  # safetensors gives it to its owner alone
            if _is_transformers(self.model):
                self.model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
            self._copy_assets(folder)
            text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
            (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str, model: nn.Module | None = None, progress: Progress = silent) -> Checkpoint:
        """Read a checkpoint; every tensor comes back bit for bit, in its own dtype, on the CPU.

        Args:
            path: the checkpoint's folder.
            model: for a checkpoint of a plain module: a fresh module of the same architecture, as it was before it was
                nested. It is changed in place. None for transformers models.
            progress: hears of the steps.

        Raises:
            UsageError: there is no such folder, or a plain module's checkpoint was asked for without `model`.
            CheckpointError: it is not a checkpoint, it is damaged, or it is of an unknown version.
        """
        path = Path(path)
        manifest = _Manifest.read(path)
        if model is None:
            if manifest.custom:
                raise UsageError(
                    f"{path} holds a plain {manifest.architecture}, which only your own code can build",
                    "give a fresh one: Checkpoint.load(path, model=...)",
                )
            model = _empty_transformer(path, manifest.architecture)
        progress("load", 1, 3)
        for layer, form in zip(manifest.ladder.layers, manifest.forms, strict=True):
            _nest(path, model, layer, form)
        progress("load", 2, 3)
        _fill(model, path / WEIGHTS_NAME)
        progress("load", 3, 3)
        return cls(model.eval(), manifest.task, manifest.name, manifest.provenance, path)

    def _manifest(self) -> _Manifest:
        layers = nsn_layers(self.model).values()
        return _Manifest(
            name=self.name,
            architecture=type(self.model).__name__,
            custom=not _is_transformers(self.model),
            task=self.task,
            ladder=self.ladder,
            forms=tuple(_Form(bias=layer.bias is not None, dense=layer.weight is not None) for layer in layers),
            provenance=self.provenance,
        )

    def _copy_assets(self, folder: Path) -> None:
        """Copy the tokenizer. One that transformers has to build on loading (from `vocab.txt`, say) is written out as
        `tokenizer.json` too, which is what a device without transformers reads."""
        if self.assets is None:
            return
        for name in ASSET_NAMES:
            if (self.assets / name).is_file():
                shutil.copyfile(self.assets / name, folder / name)
        if (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(folder)


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder looks like a checkpoint, so that another may replace it."""
    return (path / MANIFEST_NAME).is_file()


@dataclass(frozen=True)
class _Form:
    """Which tensors a nested layer has besides its factors."""

    bias: bool
    dense: bool


@dataclass(frozen=True)
class _Manifest:
    """The contents of `nsn.json`."""

    name: str
    architecture: str
    custom: bool  # a plain module; otherwise `architecture` is a class of transformers
    task: TaskSpec
    ladder: RankLadder
    forms: tuple[_Form, ...]  # one per layer of the ladder
    provenance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "architecture": self.architecture,
            "custom": self.custom,
            "task": asdict(self.task),
            "ladder": self.ladder.to_json(),
            "forms": [asdict(form) for form in self.forms],
            "provenance": dict(self.provenance),
        }

    @classmethod
    def read(cls, path: Path) -> _Manifest:
        file = path / MANIFEST_NAME
        if path.is_file():
            raise UsageError(
                f"{path} is a file, and a checkpoint is a folder", f"name the one that holds {MANIFEST_NAME}"
            )
        if is_bundle_folder(path):
            raise UsageError(f"{path} is a bundle, not a checkpoint", "name the checkpoint that it was exported from")
        if not path.is_dir():
            raise UsageError(f"no checkpoint at {path}", "make one with: nsn-edge adapt MODEL -o CHECKPOINT")
        if not file.is_file():
            raise CheckpointError(
                f"{path} is not a checkpoint: it has no {MANIFEST_NAME}",
                "make one with: nsn-edge adapt MODEL -o CHECKPOINT",
            )
        try:
            data = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} is not readable JSON: {error}", _AGAIN) from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise CheckpointError(
                f"{path} has schema version {version!r}; this nsn-edge reads version {SCHEMA_VERSION}",
                "adapt the model again, or install the nsn-edge that wrote it",
            )
        try:
            manifest = cls(
                name=str(data["name"]),
                architecture=str(data["architecture"]),
                custom=bool(data["custom"]),
                task=TaskSpec.from_json(data["task"]),
                ladder=RankLadder.from_json(data["ladder"]),
                forms=tuple(_Form(bool(form["bias"]), bool(form["dense"])) for form in data["forms"]),
                provenance=dict(data["provenance"]),
            )
        except NsnEdgeError as error:
            raise CheckpointError(f"{file} is not sound: {error.message}", _AGAIN) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{file} is not sound: {error!r}", _AGAIN) from error
        if len(manifest.forms) != len(manifest.ladder.layers):
            raise CheckpointError(f"{file} is not sound: it describes some layers and not others", _AGAIN)
        return manifest


def _is_transformers(model: nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def _is_model_class(kind: object) -> bool:
    from transformers import PreTrainedModel

    return isinstance(kind, type) and issubclass(kind, PreTrainedModel)


def _empty_transformer(path: Path, architecture: str) -> nn.Module:
    """The architecture as transformers builds it from the configuration, its weights not initialised."""
    import transformers
    from transformers.modeling_utils import no_init_weights

    kind: Any = getattr(transformers, architecture, None)
    if not _is_model_class(kind):
        raise CheckpointError(
            f"{path} holds a {architecture!r}, which is no model of transformers {transformers.__version__}",
            "install the version of transformers that it was adapted with",
        )
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"config.json is missing from {path}", "copy the checkpoint again, or adapt the model again"
        )
    try:
        config = kind.config_class.from_pretrained(path)
        with no_init_weights():
            model = kind(config)
        model.tie_weights()
    except Exception as error:  # a configuration that was altered fails in as many ways as there are architectures
        raise CheckpointError(f"cannot build {architecture} from {path / 'config.json'}: {error}", _AGAIN) from error
    assert isinstance(model, nn.Module)
    return model


def _nest(path: Path, model: nn.Module, layer: NestedLayer, form: _Form) -> None:
    """Put an empty nested layer where the fresh model has the dense one."""
    try:
        dense = model.get_submodule(layer.name)
        weight = dense_weight(dense, layer.name)
    except (AttributeError, NsnEdgeError) as error:
        raise CheckpointError(
            f"{path} has a layer {layer.name!r}, and the model has none such: {error}", _AGAIN
        ) from error
    if tuple(weight.shape) != (layer.d_out, layer.d_in):
        raise CheckpointError(
            f"layer {layer.name!r} is {layer.d_in} -> {layer.d_out} in {path} and "
            f"{weight.shape[1]} -> {weight.shape[0]} in the model",
            _AGAIN,
        )
    empty = NSNLinear(layer.d_in, layer.d_out, layer.curve, bias=form.bias, keep_dense=form.dense, device="meta")
    replace_module_(model, dense, empty)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer once, contiguous, sharing no memory."""
    state = model.state_dict()
    unique: dict[str, Tensor] = {}
    storages: set[int] = set()
    for first, _ in _tied_names(model):
        tensor = state[first].contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # Views of one another (not the same tensor): safetensors wants each to stand alone.
        unique[first] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return unique


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file. That library reports a full disk as its own error, with the number in the text.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), file, metadata={"format": "pt"})
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
        raise


def _tied_names(model: nn.Module) -> list[tuple[str, list[str]]]:
    """Each tensor of the state with its first name and all its names."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [(group[0], group) for group in names.values()]


def _fill(model: nn.Module, file: Path) -> None:
    """Give the model the file's tensors, strictly: none missing, none left over, every shape right, ties kept."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise CheckpointError(f"{file} is missing", "copy the checkpoint again, or adapt the model again")
    try:
        with safe_open(file, framework="pt") as opened:
            stored = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged: {error}", "copy the checkpoint again, or adapt the model again"
        ) from error
    groups = _tied_names(model)
    current = model.state_dict(keep_vars=True)
    expected = {first: current[first].shape for first, _ in groups}
    if strays := sorted(set(expected) ^ set(stored)):
        problem = "lacks" if strays[0] in expected else "has the unknown"
        raise CheckpointError(f"{file} {problem} tensor {strays[0]!r} ({len(strays)} do not match)", _AGAIN)
    for name, shape in expected.items():
        if stored[name] != list(shape):
            raise CheckpointError(
                f"{file}: {name!r} has shape {stored[name]}, and the model needs {list(shape)}", _AGAIN
            )
    state: dict[str, Tensor] = {}
    for first, group in groups:
        # One object under all its names: `assign` then leaves tied tensors tied.
        # A copy: the file's tensors are mapped at odd addresses, where BLAS rounds differently, and die with the file.
        # The file is opened for each: pages stay in memory as long as the mapping that they were read through.
        with safe_open(file, framework="pt") as opened:
            tensor = opened.get_tensor(first).clone()
        if isinstance(current[first], nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        state.update(dict.fromkeys(group, tensor))
    model.load_state_dict(state, strict=True, assign=True)
