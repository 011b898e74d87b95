"""Which device a profile is of: a key for file names, and what differs between two.

    same_device(profile.host, describe_host())          ()  or  ("cpu 'Cortex-A78AE', here 'Xeon'", ...)
    same_engine(profile.settings, engine.describe())    likewise: what executes, its version, its threads

What one of the two does not know is no difference: an unreadable file must not make a profile foreign. A profile that
says nothing at all of its machine belongs to none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsn_edge.bundle.engine_record import slug
from nsn_edge.runtimes.profiling.host import Host

PROFILES_FOLDER = "profiles"
"""In the bundle, beside `engines`: `profiles/KEY.json`, a file for each device and engine."""

_DEVICE = ("machine", "cpu", "architecture", "cores", "gpu")
_ENGINE = ("engine", "version", "provider", "threads", "share_weights", "engine_precision", "cuda_graphs")
_LONGEST_KEY = 140


def same_device(there: Mapping[str, Any] | Host, here: Mapping[str, Any] | Host) -> tuple[str, ...]:
    """What tells the machine of a profile from this one, in words; nothing if it may be the same.

    Args:
        there: a profile's `host`.
        here: `describe_host()`, or another profile's `host`.
    """
    theirs, ours = _mapping(there), _mapping(here)
    if all(theirs.get(fact) is None for fact in _DEVICE):
        return ("it does not say what it was measured on",)
    return _differences(theirs, ours, _DEVICE)


def same_engine(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells the engine of a profile from this one, in words; nothing if it may be the same.

    Args:
        there: a profile's `settings`.
        here: `engine.describe()`, or another profile's `settings`.
    """
    return _differences(there, here, _ENGINE)


def device_key(host: Mapping[str, Any] | Host, engine: Mapping[str, Any]) -> str:
    """A name for this device with this engine, fit for a file: stable as long as neither changes, and readable.

    Args:
        host: `describe_host()`.
        engine: `engine.describe()`.
    """
    facts = _mapping(host)
    chip = facts.get("cpu") or facts.get("architecture") or "unknown"
    parts = [
        facts.get("machine") if facts.get("l4t") or not facts.get("cpu") else None,
        chip,
        f"{facts['cores']}c" if facts.get("cores") else None,
        facts.get("gpu") if runs_on_gpu(engine) else None,
        "-".join(str(engine[key]) for key in ("engine", "version") if engine.get(key)),
        f"{engine['threads']}t" if engine.get("threads") is not None else None,
        "shared" if engine.get("share_weights") else None,
        engine.get("engine_precision"),
    ]
    return slug("_".join(slug(str(part)) for part in parts if part))[:_LONGEST_KEY] or "unknown"


def default_profile_path(bundle: Path, host: Mapping[str, Any] | Host, engine: Mapping[str, Any]) -> Path:
    """Where a bundle keeps the profile of this device with this engine."""
    return bundle / PROFILES_FOLDER / f"{device_key(host, engine)}.json"


def runs_on_gpu(engine: Mapping[str, Any]) -> bool:
    """Whether an engine, by its own description, computes on a GPU."""
    return engine.get("provider") not in (None, "cpu", "CPUExecutionProvider") or "compute_capability" in engine


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], facts: tuple[str, ...]) -> tuple[str, ...]:
    pairs = [(fact, there.get(fact), here.get(fact)) for fact in facts]
    return tuple(
        f"{fact} {theirs!r}, here {ours!r}"
        for fact, theirs, ours in pairs
        if theirs is not None and ours is not None and theirs != ours
    )


def _mapping(host: Mapping[str, Any] | Host) -> Mapping[str, Any]:
    return host.to_json() if isinstance(host, Host) else host
