"""A bundle on disk: open it, check it, find its files.

with atomic_folder(path, is_bundle_folder) as tmp:   # export writes the files into tmp ...
    Bundle.write_manifest(tmp, manifest)             # ... and the manifest last
bundle = Bundle.open(path)                           # reads and checks
bundle.graph(rank=96).path                           # where the rung's graph is
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.bundle.manifest import FORMS_OF_RUNGS, Artifact, Manifest
from nsn_edge.errors import BundleError, UsageError
from nsn_edge.ladder import check_rank
from nsn_edge.progress import Progress, silent

MANIFEST_NAME = "manifest.json"
_CHECKPOINT_MARK = "nsn.json"  # what `adapt` writes; whoever mixes the two up should hear so
_CHUNK = 1 << 22
_LARGEST_MANIFEST = 1 << 26  # a manifest is kilobytes; 64 MB is not one


def is_bundle_folder(path: Path) -> bool:
    """Whether a folder looks like a bundle, so that an export may replace it."""
    return (path / MANIFEST_NAME).is_file()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: a folder and its manifest."""

    path: Path
    """The folder."""
    manifest: Manifest
    """Its table of contents."""

    @classmethod
    def open(cls, path: Path | str, *, check_hashes: bool = True, progress: Progress = silent) -> Bundle:
        """Read the manifest and check that every file is there, whole and unaltered.

        Args:
            path: the bundle's folder.
            check_hashes: compare SHA-256 too, not presence and size alone (about a second per gigabyte).
            progress: hears of the hashing.

        Raises:
            UsageError: there is no such folder, or it is a checkpoint.
            BundleError: it is not a bundle, it is damaged, or it is of an unknown version.
        """
        path = Path(path)
        if path.is_file():
            raise UsageError(
                f"{path} is a file, and a bundle is a folder", f"name the folder that holds {MANIFEST_NAME}"
            )
        if not path.is_dir():
            raise UsageError(f"no bundle at {path}", "make one with: nsn-edge export CHECKPOINT -o BUNDLE")
        bundle = cls(path, cls._read_manifest(path))
        total = sum(artifact.size_bytes for artifact in bundle.manifest.artifacts)
        done = 0
        for artifact in bundle.manifest.artifacts:
            bundle._check_present(artifact)
        if check_hashes:
            for artifact in bundle.manifest.artifacts:
                if sha256_of(bundle.file(artifact)) != artifact.sha256:
                    raise BundleError(
                        f"{artifact.path} in {path} does not have the SHA-256 that the manifest names",
                        "copy the bundle again, or export it again",
                    )
                done += artifact.size_bytes
                progress("check", done, total)
        return bundle

    @staticmethod
    def _read_manifest(path: Path) -> Manifest:
        file = path / MANIFEST_NAME
        if not file.is_file() and (path / _CHECKPOINT_MARK).is_file():
            raise UsageError(
                f"{path} is a checkpoint, not a bundle", f"make one of it: nsn-edge export {path} -o BUNDLE"
            )
        if not file.is_file():
            raise BundleError(
                f"{path} is not a bundle: it has no {MANIFEST_NAME}",
                "make one with: nsn-edge export CHECKPOINT -o BUNDLE",
            )
        if file.stat().st_size > _LARGEST_MANIFEST:
            raise BundleError(f"{file} is far too large for a manifest", "do not use this bundle")
        try:
            data = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{file} is not readable JSON: {error}", "copy or export the bundle again") from error
        try:
            return Manifest.from_json(data)
        except BundleError as error:
            raise BundleError(f"{file}: {error.message}", error.hint) from error

    def _check_present(self, artifact: Artifact) -> None:
        file = self.file(artifact)
        if not file.is_file():
            raise BundleError(f"{artifact.path} is missing from {self.path}", "copy or export the bundle again")
        size = file.stat().st_size
        if size != artifact.size_bytes:
            raise BundleError(
                f"{artifact.path} in {self.path} has {size} bytes, not {artifact.size_bytes}",
                "it was cut or altered: copy or export the bundle again",
            )

    def file(self, artifact: Artifact) -> Path:
        """Where an artifact is.

        Raises:
            BundleError: a link leads out of the bundle.
        """
        file = self.path / artifact.path
        if not file.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{artifact.path} leads out of the bundle {self.path}", "do not use this bundle")
        return file

    def graph(self, rank: int | None = None, form: str = "static") -> Artifact:
        """The graph of a rung (`form="static"`) or the one that serves this rank (the other forms: the same for all,
        but for `bound`, which has one of its own for a dense rung).

        Raises:
            RankError: the rank is outside `1..R` or has no rung.
            UsageError: the bundle was exported without that form.
        """
        if form == "static":
            self.manifest.ladder.rung(self._known_rank(rank))
        graphs = {item.rank: item for item in self.manifest.artifacts if item.kind == "graph" and item.form == form}
        found = graphs.get(rank) or graphs.get(None)
        if found is not None:
            return found
        forms = sorted({artifact.form or "" for artifact in self.manifest.artifacts if artifact.kind == "graph"})
        raise UsageError(
            f"{self.path} holds no {form} graph" + (f" at rank {rank}" if form == "static" else ""),
            f"it holds {', '.join(forms) or 'no graphs'}; export it with --form {form}",
        )

    def answers_as_original(self, rank: int, form: str) -> bool:
        """Whether a form answers at a rung with the original weights.

        Raises:
            RankError: the rank has no rung.
            UsageError: the bundle was exported without that form.
        """
        dense = self.manifest.ladder.rung(rank).dense
        return dense and (form in FORMS_OF_RUNGS or self.graph(rank, form).rank is not None)

    def _known_rank(self, rank: int | None) -> int:
        if rank is None:
            raise UsageError("a static graph is one rung's: name its rank")
        check_rank(rank, self.manifest.ladder.max_rank)
        return rank

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of the bundle on disk, the manifest included."""
        manifest = (self.path / MANIFEST_NAME).stat().st_size
        return manifest + sum(artifact.size_bytes for artifact in self.manifest.artifacts)

    def record_quality(self, quality: dict[int, dict[str, float]]) -> Bundle:
        """Write measured quality, by rank, into the manifest (atomically) and return the updated bundle.

        Raises:
            RankError: a rank has no rung.
        """
        updated = replace(self, manifest=self.manifest.with_quality(quality))
        self.write_manifest(self.path, updated.manifest)
        return updated

    @staticmethod
    def write_manifest(path: Path, manifest: Manifest) -> None:
        """Write the manifest into a folder in one step."""
        text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write_bytes(path / MANIFEST_NAME, text.encode() + b"\n")
