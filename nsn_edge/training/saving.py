"""The state of a run on disk: a folder per saved step, whole or absent.

run/
  .saving/checkpoint-30/    being written; what a killed process leaves of it is thrown away
  checkpoint-20/            what is trained, optimiser, schedule, random generators; renamed to here when complete
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from nsn_edge.atomic import fsync_path, named_disk_errors
from nsn_edge.checkpoint import save_tensors
from nsn_edge.errors import CheckpointError, NsnEdgeError

STAGING = ".saving"
WEIGHTS_NAME = "model.safetensors"

_FOLDER = re.compile(r"checkpoint-(\d+)")
_TORCH_WRITER = re.compile(r"inline_container|PytorchStreamWriter|file write failed|iostream error|basic_ios")
_RESTART = "begin the run again without its folder"


def last_saved(run: Path) -> Path | None:
    """The folder of the last step that was saved whole; None where there is none."""
    if not run.is_dir():
        return None
    steps = {int(match[1]): path for path in run.iterdir() if (match := _FOLDER.fullmatch(path.name))}
    return steps[max(steps)] if steps else None


def publish(run: Path, name: str) -> None:
    """Move a complete folder out of the staging one, in one step, flushed to disk."""
    staged = run / STAGING / name
    for file in staged.rglob("*"):
        fsync_path(file)
    fsync_path(staged)
    target = run / name
    if target.exists():  # the same step, saved before an interruption
        shutil.rmtree(target)
    staged.rename(target)
    fsync_path(run)
    discard_staged(run)


def discard_staged(run: Path) -> None:
    """Throw away what an interrupted save left behind."""
    shutil.rmtree(run / STAGING, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk in one line of ours; torch's writer reports one as a RuntimeError without a number.

    Raises:
        NsnEdgeError: the disk is full, or cannot be written.
    """
    with named_disk_errors(path):
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, NsnEdgeError) or not _TORCH_WRITER.search(str(error)):
                raise
            free = shutil.disk_usage(path if path.exists() else path.parent).free / 1e6
            raise NsnEdgeError(
                f"cannot write {path}: the disk is full, or the file too large; the last checkpoint stands",
                f"{free:.0f} MB are free there: make room, and run the same command again to go on",
            ) from error


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: every trained parameter, and every buffer of the state (running means)."""
    tensors = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    tensors.update((name, value) for name, value in module.state_dict().items() if name not in parameters)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save_trained(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / WEIGHTS_NAME)


def load_trained_(module: nn.Module, folder: Path) -> None:
    """Give a module what `trained_tensors` took from it, strictly.

    Raises:
        CheckpointError: the file is absent or damaged, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS_NAME
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is missing or damaged: {error}", _RESTART) from error
    expected = trained_tensors(module)
    if strays := sorted(set(stored) ^ set(expected)):
        raise CheckpointError(
            f"{file} does not fit the model: {strays[0]!r} is in one of them only ({len(strays)} differ)", _RESTART
        )
    for name, tensor in expected.items():
        if stored[name].shape != tensor.shape:
            raise CheckpointError(
                f"{file}: {name!r} has shape {list(stored[name].shape)}, and the model needs {list(tensor.shape)}",
                _RESTART,
            )
    module.load_state_dict(stored, strict=False)
