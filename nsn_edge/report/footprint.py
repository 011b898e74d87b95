"""What a bundle takes on disk, and what separate exports would."""

from __future__ import annotations

from dataclasses import dataclass

from nsn_edge.bundle import Bundle


@dataclass(frozen=True)
class Footprint:
    """What the bundle takes on disk, and what one export per rung would take."""

    bundle_bytes: int
    """Every file of the bundle."""
    weights_bytes: int
    """The shared weights file."""
    separate_bytes: int
    """The weights of every rung, each in a file of its own."""
    rungs: int
    """How many rungs."""

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Footprint:
        """Read from the manifest."""
        artifacts = bundle.manifest.artifacts
        static = [artifact for artifact in artifacts if artifact.form == "static"]
        return cls(
            bundle_bytes=bundle.size_bytes,
            weights_bytes=sum(artifact.size_bytes for artifact in artifacts if artifact.kind == "weights"),
            separate_bytes=sum(artifact.size_bytes + (artifact.weight_bytes or 0) for artifact in static),
            rungs=len(static),
        )
