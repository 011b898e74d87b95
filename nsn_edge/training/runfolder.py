"""The folder of a run under way: what it is a run of, so that only the same one is continued.

OUTPUT.run/run.json     schema version, settings, digests of checkpoint and data
          /dense/       states of the dense part      (see saving)
          /start/       the checkpoint that the nested part begins with
          /nested/      states of the nested part
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.bundle.store import sha256_of
from nsn_edge.checkpoint import MANIFEST_NAME, WEIGHTS_NAME
from nsn_edge.errors import CheckpointError, UsageError
from nsn_edge.training.config import TrainConfig
from nsn_edge.training.data import Examples

SCHEMA_VERSION = 1
RUN_NAME = "run.json"


def run_folder(output: Path) -> Path:
    """Where the state of the run that makes `output` is."""
    return output.with_name(f"{output.name}.run")


def identity(checkpoint: Path, examples: Examples, task: str, new_head: bool, config: TrainConfig) -> dict[str, Any]:
    """What must be the same for a run to be continued; plain JSON types."""
    digest = hashlib.sha256()
    for item in (examples.texts, examples.pairs or (), examples.labels or ()):
        digest.update(json.dumps(list(item), ensure_ascii=False).encode())
    return {
        "checkpoint": [sha256_of(checkpoint / name) for name in (MANIFEST_NAME, WEIGHTS_NAME)],
        "task": task,
        "data": digest.hexdigest(),
        "new_head": new_head,
        "config": config.to_json(),
    }


def begin(folder: Path, mine: dict[str, Any]) -> None:
    """Make the folder of a new run.

    Raises:
        UsageError: it holds something else.
        NsnEdgeError: it cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} holds files of something else", "move it away, or choose another -o")
    document = {"schema_version": SCHEMA_VERSION, "kind": "training-run", **mine}
    atomic_write_bytes(folder / RUN_NAME, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")


def has_begun(folder: Path) -> bool:
    """Whether a run has left its folder."""
    return (folder / RUN_NAME).is_file()


def forget(folder: Path) -> None:
    """Throw a run's folder away; a folder that is not a run's is left alone."""
    if has_begun(folder):
        shutil.rmtree(folder)


def check_same(folder: Path, mine: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to continue another run.

    Raises:
        CheckpointError: it is damaged, or of another version.
        UsageError: its settings, data or checkpoint are others.
    """
    file = folder / RUN_NAME
    try:
        found = json.loads(file.read_bytes())
        version, settings = found["schema_version"], dict(found.get("config", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}", "begin anew with --restart") from error
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder} has schema version {version!r}; this nsn-edge reads version {SCHEMA_VERSION}",
            "go on with the nsn-edge that began it, or begin anew with --restart",
        )
    changed = config.differences(settings)
    changed += [f"another {name}" for name in mine if name != "config" and found.get(name) != mine[name]]
    if changed:
        raise UsageError(
            f"{folder} is of a run with other settings ({'; '.join(changed[:3])})",
            "repeat its settings to go on with it, or begin anew with --restart",
        )
