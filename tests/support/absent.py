"""Make packages absent in a fresh Python process: nothing finds them, as on a device where they are not installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

_ABSENT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

assert not {absent!r} & set(sys.modules)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run_without(absent: Collection[str], code: str, cwd: Path | None = None) -> str:
    """What the code prints in a process that lacks the packages; it must end well."""
    program = _ABSENT.format(absent=set(absent)) + code
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
