"""Everything that was measured of a bundle on one device: a grid of configurations, in one document.

DeviceProfile        bundle, device, host, plan
  configurations     a `Profile` each: form x batch size x sequence length, every rung in it
  failed             configurations that the engine could not run, and why
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsn_edge.errors import NsnEdgeError
from nsn_edge.runtimes.profiling.result import (
    KIND,
    SCHEMA_VERSION,
    Profile,
    all_configurations,
    configuration_name,
    read_document,
    write_document,
)


@dataclass(frozen=True)
class Failed:
    """A configuration that could not be measured."""

    configuration: Mapping[str, Any]
    """`form`, `batch_size`, `sequence_length`, `dimensions`."""
    error: str
    """Why, in a line."""


@dataclass(frozen=True)
class DeviceProfile:
    """A bundle's profile on one device."""

    bundle_path: str
    """Where the bundle was."""
    model: str
    """The model's name, from the manifest."""
    host: Mapping[str, Any]
    """`Host.to_json()`, when measuring began."""
    configurations: tuple[Profile, ...]
    """In the order measured. The first is what `Profile.load` gives."""
    bundle_hash: str | None = None
    """Of the bundle's graphs and weights; None in a document of version 1."""
    device: str | None = None
    """The key of device and engine."""
    plan: Mapping[str, Any] | None = None
    """What was asked for: ranks, configurations, settings, engine. A run that shall go on must ask for the same."""
    failed: tuple[Failed, ...] = ()
    complete: bool = True
    """Whether every configuration of the plan was measured, or has failed."""

    @property
    def first(self) -> Profile | None:
        """The first configuration; None as long as there is none."""
        return self.configurations[0] if self.configurations else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, keys in a fixed order."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "bundle": {"path": self.bundle_path, "model": self.model, "hash": self.bundle_hash},
            "device": self.device,
            "host": dict(self.host),
            "plan": None if self.plan is None else dict(self.plan),
            "complete": self.complete,
            "configurations": [profile.configuration_json() for profile in self.configurations],
            "failed": [{**item.configuration, "error": item.error} for item in self.failed],
        }

    @classmethod
    def of(cls, profile: Profile) -> DeviceProfile:
        """A document of one configuration."""
        return cls(
            bundle_path=profile.bundle_path,
            model=profile.model,
            host=profile.host,
            configurations=(profile,),
            bundle_hash=profile.bundle_hash,
            device=profile.device,
        )

    @classmethod
    def from_json(cls, data: Any) -> DeviceProfile:
        """The reverse of `to_json`, checked; documents of version 1 have one configuration.

        Raises:
            NsnEdgeError: it is not a profile, its version is unknown, a key is missing or has the wrong type.
        """
        configurations = all_configurations(data)
        if data["schema_version"] == 1:
            return cls.of(configurations[0])
        try:
            return cls(
                bundle_path=str(data["bundle"]["path"]),
                model=str(data["bundle"]["model"]),
                host=dict(data["host"]),
                configurations=configurations,
                bundle_hash=data["bundle"].get("hash"),
                device=data.get("device"),
                plan=data.get("plan"),
                failed=tuple(
                    Failed({key: value for key, value in item.items() if key != "error"}, str(item["error"]))
                    for item in data["failed"]
                ),
                complete=bool(data["complete"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NsnEdgeError(f"the profile is not readable: {error!r}", "profile the bundle again") from error

    def save(self, path: Path) -> None:
        """Write the JSON in one step.

        Raises:
            NsnEdgeError: the disk is full or the folder cannot be written.
        """
        write_document(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> DeviceProfile:
        """Read what `save` wrote.

        Raises:
            UsageError: there is no such file.
            NsnEdgeError: it is not readable, or not a profile.
        """
        data = read_document(path)
        try:
            return cls.from_json(data)
        except NsnEdgeError as error:
            raise type(error)(f"{path}: {error.message}", error.hint) from error

    def names(self) -> str:
        """Its configurations for people."""
        return "; ".join(configuration_name(profile.configuration) for profile in self.configurations)
