"""Where a profile is kept while it is being measured, so that neither Ctrl-C nor a power cut takes what there is.

    profile.json.partial     written in one step after each configuration; the same command goes on from there
    profile.json             written in one step at the end; until then an older one stands

The partial file is a profile like any other, with `complete` false: it can be read, drawn and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsn_edge.bundle import Bundle
from nsn_edge.bundle.engines import bundle_hash
from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.runtimes.profiling.device import default_profile_path
from nsn_edge.runtimes.profiling.document import DeviceProfile
from nsn_edge.runtimes.profiling.host import Host

_RESTART = "--restart forgets what it has, or name another file with -o"


class Keeper:
    """Keeps a profile beside the file that it will become."""

    def __init__(self, target: Path, *, restart: bool = False) -> None:
        """
        Args:
            target: the file at the end.
            restart: forget what an earlier run kept.

        Raises:
            UsageError: `target` is a folder.
            NsnEdgeError: what was kept cannot be removed.
        """
        if target.is_dir():
            raise UsageError(f"{target} is a folder", "name a file with -o")
        self.target = target
        self.partial = target.with_name(f"{target.name}.partial")
        if restart:
            self._remove()

    def resume(self, wanted: DeviceProfile) -> DeviceProfile | None:
        """What an earlier run of the same plan kept; None if there is nothing.

        Args:
            wanted: what this run is about to measure: its bundle, device and plan are compared.

        Raises:
            UsageError: an earlier run was of another bundle, device or plan.
            NsnEdgeError: what it kept is not readable.
        """
        if not self.partial.is_file():
            return None
        try:
            kept = DeviceProfile.load(self.partial)
        except NsnEdgeError as error:
            raise NsnEdgeError(error.message, _RESTART) from error
        different = [
            what
            for what, theirs, ours in (
                ("bundle", kept.bundle_hash, wanted.bundle_hash),
                ("device or engine", kept.device, wanted.device),
            )
            if theirs != ours
        ] or _changed(kept.plan or {}, wanted.plan or {})
        if different:
            raise UsageError(
                f"{self.partial} is of an interrupted run that differs in {', '.join(different)}", _RESTART
            )
        return kept

    def keep(self, profile: DeviceProfile) -> None:
        """Write what there is so far, in one step.

        Raises:
            NsnEdgeError: the disk is full or the folder cannot be written.
        """
        profile.save(self.partial)

    def finish(self, profile: DeviceProfile) -> None:
        """Write the whole profile in one step, and forget the partial one.

        Raises:
            NsnEdgeError: the disk is full or the folder cannot be written; the partial one stands.
        """
        profile.save(self.target)
        self._remove()

    def _remove(self) -> None:
        try:
            self.partial.unlink(missing_ok=True)
        except OSError as error:
            raise NsnEdgeError(f"cannot remove {self.partial}: {error.strerror}", "remove it by hand") from error


def stored_profile(bundle: Bundle, host: Mapping[str, Any] | Host, engine: Mapping[str, Any]) -> DeviceProfile:
    """What the bundle keeps of this device with this engine: what `nsn-edge profile BUNDLE` left there.

    Args:
        bundle: opened.
        host: `describe_host()`.
        engine: `engine.describe()`.

    Raises:
        UsageError: there is none, and which there are; or it is of another export.
        NsnEdgeError: it is not readable.
    """
    path = default_profile_path(bundle.path, host, engine)
    again = f"measure it here: nsn-edge profile {bundle.path}"
    if not path.is_file():
        others = sorted(file.stem for file in path.parent.glob("*.json"))
        there = f"it has {', '.join(others)}" if others else "it has none at all"
        raise UsageError(f"{bundle.path} has no profile of {path.stem}; {there}", again)
    profile = DeviceProfile.load(path)
    if profile.bundle_hash != bundle_hash(bundle.manifest):
        raise UsageError(f"{path} is of another export of the bundle", again)
    return profile


def _changed(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys((*theirs, *ours)) if theirs.get(key) != ours.get(key)]
