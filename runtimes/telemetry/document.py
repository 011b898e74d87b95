"""A reading as plain JSON types: what `nsn-edge monitor --json` prints, a line each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nsn_edge.runtimes.telemetry.base import FIELDS, Reading

SCHEMA_VERSION = 1


def reading_to_json(reading: Reading) -> dict[str, Any]:
    """The document of kind `reading`: every field of a `Reading` by its name, null for what is unknown."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "reading",
        "time_s": reading.time_s,
        "wall_s": reading.wall_s,
        "age_s": reading.age_s,
        **{name: getattr(reading, name) for name in FIELDS},
        "rails_mw": dict(reading.rails_mw),
        "work": None if reading.work is None else asdict(reading.work),
    }
