"""`python killed_train.py WHEN ARGUMENTS...`: `nsn-edge train ARGUMENTS`, killed without a word while it saves.

WHEN is `written N` or `published N` of the nested run's checkpoint of step N: when all its files are
written and none has its final name, or just after it has.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Run the verb, or die."""
    import torch

    from nsn_edge.cli import main as verbs
    from nsn_edge.cli.common import run_main
    from nsn_edge.training import saving

    torch.set_num_threads(1)
    moment, _, step = sys.argv[1].partition(" ")
    publish = saving.publish

    def killed(run: Path, name: str) -> None:
        mine = run.name == "nested" and name == f"checkpoint-{step}"
        if mine and moment == "written":
            os.kill(os.getpid(), signal.SIGKILL)
        publish(run, name)
        if mine and moment == "published":
            os.kill(os.getpid(), signal.SIGKILL)

    saving.publish = killed
    sys.exit(run_main(verbs, ["train", *sys.argv[2:]]))


if __name__ == "__main__":
    main()
