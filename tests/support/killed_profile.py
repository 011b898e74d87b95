"""`python killed_profile.py N ARGUMENTS...`: `nsn-edge profile ARGUMENTS`, killed without a word after its N-th
configuration was kept, while the next one is measured."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def main() -> None:
    """Run the verb, or die."""
    from nsn_edge.cli import main as verbs
    from nsn_edge.cli.common import run_main
    from nsn_edge.runtimes.profiling import device_profiler

    left = [int(sys.argv[1])]
    profile_bundle = device_profiler.profile_bundle

    def killed(*arguments: Any, **others: Any) -> Any:
        profile = profile_bundle(*arguments, **others)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return profile

    device_profiler.profile_bundle = killed
    sys.exit(run_main(verbs, ["profile", *sys.argv[2:]]))


if __name__ == "__main__":
    main()
