"""How long work reports where it is, without knowing who listens.

Library code calls `progress(stage, done, total)`; the command line draws a bar on stderr; tests collect; the
default is silence. `total` is 0 when it is not known.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""
