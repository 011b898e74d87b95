"""Real data that lies beside the repository, or where NSN_EDGE_DATA points; tests that need it skip without it."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """Where the data is looked for."""
    named = os.environ.get("NSN_EDGE_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"


def shared_data(name: str) -> Path:
    """A folder of the data; skips the test where it is absent."""
    import pytest  # benchmarks look for data too, without it

    folder = data_root() / name
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set NSN_EDGE_DATA to the folder that holds {name}")
    return folder
