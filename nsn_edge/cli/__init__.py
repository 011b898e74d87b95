"""The command line: `nsn-edge VERB`.

Thin by rule: a verb parses its options, calls one function of a room and prints the result. A verb's module is imported
when that verb runs, so `nsn-edge run` works on a device without torch and `--help` is instant.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from nsn_edge._version import __version__

VERBS = {
    "demo": "the main job on a real model, start to report",
    "adapt": "cut a pre-trained model into nested factors",
    "train": "train every rank of a checkpoint",
    "eval": "what every rank keeps, measured and foretold",
    "export": "write a bundle: every rung, one weights file",
    "verify": "compare every rung and form with torch",
    "build": "TensorRT engines of a bundle, on the device or ahead of time",
    "profile": "measure every rung on this machine",
    "report": "draw profiles as a page: which rank, in which precision",
    "difficulty": "how certain a low rung must be to answer alone",
    "run": "answer a query at a rank, or one chosen by policy",
    "policy": "check a policy file, and what it comes to",
    "simulate": "replay a telemetry trace through a policy",
    "monitor": "what this device's sensors say, live; or a trace",
    "inspect": "explain a bundle or a checkpoint",
    "doctor": "what this device has, and what to install",
}


_EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "optimum", "onnx", "onnx_ir", "safetensors"), "export"),
    **dict.fromkeys(("accelerate", "datasets", "PIL"), "train"),
    **dict.fromkeys(("onnxruntime", "tokenizers"), "ort"),
    **dict.fromkeys(("tensorrt_rtx", "cuda"), "rtx"),
}
"""The extra that brings a module."""


class _LazyGroup(click.Group):
    """A group that imports a verb when it is asked for, and lists them in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command = importlib.import_module(f"nsn_edge.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb. A device has no torch, and a verb that needs it says what to install."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module not in _EXTRAS:
                raise
            from nsn_edge.errors import MissingDependencyError

            raise MissingDependencyError(module, _EXTRAS[module], f"the verb {ctx.invoked_subcommand}") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nsn-edge")
def main() -> None:
    """Cut a transformer into a Nested Subspace Network, export it once, switch its rank on the device."""


def entry_point() -> None:
    """What the `nsn-edge` script runs: exit 0 on success, 1 on failure, 2 on a usage error."""
    # Before anything loads OpenMP: its threads spin while they wait, and on a busy machine that starves the one that
    # has work. Measured on two cores beside another job, adapting MiniLM: 332 s spinning, 24 s passive.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from nsn_edge.cli.common import run_main

    sys.exit(run_main(main, sys.argv[1:]))
