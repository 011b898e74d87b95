"""Reads the verbs' result JSONs: of the right kind and version, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nsn_edge.errors import NsnEdgeError

VERSIONS = {"profile": (1, 2), "simulation": (1,), "verification": (1,), "search": (1,)}
"""Schema versions that can be read, by kind."""

_View = TypeVar("_View")


def read_as(kind: str, data: Mapping[str, Any], read: Callable[[Mapping[str, Any]], _View]) -> _View:
    """A document as `read` makes it.

    Raises:
        NsnEdgeError: it is of another kind, too new, or lacks a key.
    """
    try:
        if data["kind"] != kind or data["schema_version"] not in VERSIONS[kind]:
            raise NsnEdgeError(
                f"the report needs a {kind} of schema version {' or '.join(map(str, VERSIONS[kind]))}, "
                f"not {data['kind']!r} of version {data['schema_version']!r}",
                f"run nsn-edge again to get a new {kind}",
            )
        return read(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NsnEdgeError(f"the {kind} for the report is not readable: {error!r}") from error


def quality_of(data: Mapping[str, Any]) -> dict[str, float]:
    """Quality by metric."""
    return {str(name): float(value) for name, value in data.items()}


def optional(value: Any) -> float | None:
    """A number, or None."""
    return None if value is None else float(value)
