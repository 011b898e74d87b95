"""From a graph of a bundle to the engine that was built from it, by form and rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nsn_edge.bundle import Artifact, Bundle, Manifest, TensorSpec
from nsn_edge.bundle.engine_record import PRECISIONS, EngineDevice
from nsn_edge.bundle.engines import (
    StoredEngine,
    build_command,
    check_usable,
    engine_folders,
    engine_stem,
    find_engine,
    record_path,
)
from nsn_edge.bundle.manifest import RANK_INPUT
from nsn_edge.errors import EngineError, StaleEngineError, UsageError
from nsn_edge.runtimes.engines.tensorrt.graph import Signature

_KINDS = {"static": "rung", "sliced": "dynamic"}
"""By the form of a graph: the kind of engine that is built from it."""


@dataclass(frozen=True)
class Wanted:
    """A graph whose engine is looked for."""

    manifest: Manifest
    """Of its bundle."""
    artifact: Artifact
    """Itself."""
    kind: str
    """`rung` or `dynamic`."""
    library: str
    """That shall run it, by the module's name."""
    library_version: str
    """In full."""
    device: EngineDevice
    """Where it shall run."""

    @classmethod
    def of(cls, graph_path: Path, library: str, library_version: str, device: EngineDevice) -> Wanted:
        """Look a graph up in its bundle's manifest.

        Raises:
            EngineError: it is no graph of a bundle.
            UsageError: no engines are built from its form.
            BundleError: the manifest is damaged.
        """
        manifest = Bundle.open(graph_path.parent, check_hashes=False).manifest
        for artifact in manifest.artifacts:
            if artifact.kind == "graph" and artifact.path == graph_path.name:
                break
        else:
            raise EngineError(
                f"{graph_path} is no graph of its bundle", "TensorRT engines are found by the bundle's manifest"
            )
        if artifact.form not in _KINDS:
            raise UsageError(
                f"no TensorRT engines are built from the form {artifact.form}",
                "take static, an engine per rung, or sliced, one for every rank",
            )
        return cls(manifest, artifact, _KINDS[artifact.form], library, library_version, device)

    @property
    def signature(self) -> Signature:
        """What the graph takes and gives."""
        rank = (TensorSpec(RANK_INPUT, "int64", ()),) if self.kind == "dynamic" else ()
        return Signature((*self.manifest.inputs, *rank), self.manifest.outputs)

    @property
    def build_command(self) -> str:
        """What makes the engine."""
        return build_command(self.library) + (" --kind dynamic" if self.kind == "dynamic" else "")

    def find(self, root: Path, precision: str | None) -> StoredEngine:
        """The engine, by its record alone.

        Args:
            root: holds the devices' folders.
            precision: None for the most exact that was built.

        Raises:
            StaleEngineError: there is none for this device and library version, or its record makes no sense.
        """
        if precision is None:
            folders = engine_folders(root, self.library, self.library_version, self.device)
            files = {p: [folder / f"{self._stem(p)}.engine" for folder in folders] for p in PRECISIONS}
            built = [p for p in PRECISIONS if any(record_path(file).is_file() for file in files[p])]
            precision = built[0] if built else PRECISIONS[0]
        with self._command_in_full():
            return find_engine(root, self.library, self.library_version, self.device, self._stem(precision))

    def check(self, stored: StoredEngine, *, check_hash: bool) -> None:
        """Refuse what is stale, foreign or damaged.

        Raises:
            StaleEngineError: with the reason and the command that mends it.
        """
        record, artifact = stored.record, self.artifact
        if (record.kind, record.form, record.rank) != (self.kind, artifact.form, artifact.rank):
            made_from = f"of rank {record.rank}" if record.kind == "rung" else f"of the form {record.form}"
            raise StaleEngineError(
                f"{stored.path.name} is the engine {made_from}, by its record", f"build it again: {self.build_command}"
            )
        with self._command_in_full():
            check_usable(stored, self.manifest, self.device, self.library, self.library_version, check_hash=check_hash)

    def _stem(self, precision: str) -> str:
        return engine_stem(self.kind, self.artifact.form or "", self.artifact.rank, precision)

    @contextlib.contextmanager
    def _command_in_full(self) -> Iterator[None]:
        """Hints name the command that builds rungs, which would not build the dynamic engine."""
        try:
            yield
        except StaleEngineError as error:
            if self.kind == "rung":
                raise
            raise StaleEngineError(error.message, f"{error.hint} --kind dynamic") from error
