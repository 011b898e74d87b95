"""What `nsn-edge eval` leaves, as JSON and CSV, and how an exported bundle gets its qualities from it.

checkpoint --eval--> evaluation.json (with the checkpoint's SHA-256) --export --quality--> manifest.json, rung by rung
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsn_edge.checkpoint import MANIFEST_NAME, WEIGHTS_NAME
from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.frontier.curve import KIND, SCHEMA_VERSION
from nsn_edge.ladder import RankLadder

_AGAIN = "evaluate the checkpoint again: nsn-edge eval CHECKPOINT --json-file FILE"

COLUMNS = (
    *("rank", "dense", "rung", "trained", "flops_fraction", "energy_kept", "left_out", "quality", "loss"),
    *("off_line", "predicted", "fitted", "p50_ms", "p90_ms"),
)
"""Of the CSV file."""


def fingerprint(checkpoint: Path) -> str:
    """SHA-256 over a checkpoint's weights and what says how they are to be read.

    Raises:
        NsnEdgeError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for name in (MANIFEST_NAME, WEIGHTS_NAME):
        try:
            with (checkpoint / name).open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
        except OSError as error:
            raise NsnEdgeError(f"cannot read {checkpoint / name}: {error.strerror or error}") from error
    return digest.hexdigest()


def csv_text(document: Mapping[str, Any]) -> str:
    """The points of an evaluation as CSV, one a line; what is not known is empty."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: point.get(column) for column in COLUMNS} for point in document["points"])
    return stream.getvalue()


def read_evaluation(file: Path) -> dict[str, Any]:
    """An evaluation's JSON document, checked.

    Raises:
        UsageError: there is no such file, or it is of another kind.
        NsnEdgeError: it is not readable, its version is unknown, or it is not sound.
    """
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}", _AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise NsnEdgeError(f"{file} is not readable JSON: {error}", _AGAIN) from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise UsageError(f"{file} is not an evaluation", _AGAIN)
    if data.get("schema_version") != SCHEMA_VERSION:
        raise NsnEdgeError(
            f"{file} has schema version {data.get('schema_version')!r}; this nsn-edge reads version {SCHEMA_VERSION}",
            _AGAIN,
        )
    points = data.get("points")
    if not isinstance(points, list) or not all(map(_is_point, points)) or not isinstance(data.get("metric"), str):
        raise NsnEdgeError(f"{file} is not a sound evaluation", _AGAIN)
    return data


def qualities(
    file: Path, checkpoint: Path, rungs: RankLadder, precision: str | None = None
) -> dict[int, dict[str, float]]:
    """The measured quality of a bundle's rungs, by rank; of those that were measured.

    Args:
        file: an evaluation.
        checkpoint: what is exported.
        rungs: the ladder of the bundle, with its rungs.
        precision: of the bundle's weights; None for the checkpoint's own.

    Raises:
        UsageError: the evaluation is of another checkpoint or precision, or has none of the rungs.
        NsnEdgeError: see `read_evaluation`.
    """
    data = read_evaluation(file)
    if data.get("checkpoint_sha256") != fingerprint(checkpoint):
        raise UsageError(f"{file} is the evaluation of another checkpoint than {checkpoint}", _AGAIN)
    if precision not in (None, data.get("precision")):
        raise UsageError(
            f"{file} was measured in {data.get('precision')}, and the bundle is to be {precision}",
            "export without --quality, and measure the bundle itself: nsn-edge verify",
        )
    measured = {(point["rank"], point["dense"]): float(point["quality"]) for point in data["points"]}
    found = {
        rung.rank: {data["metric"]: measured[rung.rank, rung.dense]}
        for rung in rungs.rungs
        if (rung.rank, rung.dense) in measured
    }
    if not found:
        raise UsageError(
            f"{file} has no rung of this bundle: it measured ranks {_listed([rank for rank, _ in measured])}, and the "
            f"bundle's are {_listed(rungs.ranks)}",
            "evaluate with the same --flops and --rank as you export with",
        )
    return found


def _is_point(point: Any) -> bool:
    if not isinstance(point, dict):
        return False
    quality = point.get("quality")
    return (
        type(point.get("rank")) is int
        and type(point.get("dense")) is bool
        and isinstance(quality, (int, float))
        and math.isfinite(quality)
    )


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) or "none"
