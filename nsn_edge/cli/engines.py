"""The options by which `run` and `profile` choose what executes the graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from nsn_edge.bundle.engine_record import BACKENDS, PRECISIONS
from nsn_edge.errors import UsageError

if TYPE_CHECKING:
    from nsn_edge.runtimes.engines import Engine, OnnxRuntimeEngine

_Command = TypeVar("_Command", bound=Callable[..., Any])

ONNXRUNTIME = "onnxruntime"
_OF_ONNXRUNTIME = {"threads": "--threads", "provider": "--provider", "share_weights": "--share-weights"}


@dataclass(frozen=True)
class EngineChoice:
    """What was asked for."""

    name: str
    """`onnxruntime`, or one of `BACKENDS`."""
    precision: str | None
    """Of an engine that `nsn-edge build` made."""
    folder: Path | None
    """Where those are; None for `engines` in the bundle."""

    def make(self, of_onnxruntime: Callable[[], OnnxRuntimeEngine]) -> Engine:
        """The engine.

        Args:
            of_onnxruntime: makes that one, from the options that only it has.

        Raises:
            UsageError: an option of the one was given for the other.
        """
        if self.name == ONNXRUNTIME:
            for option, value in (("--engine-precision", self.precision), ("--engines", self.folder)):
                if value is not None:
                    raise UsageError(
                        f"{option} is about engines that nsn-edge build made, and onnxruntime runs graphs",
                        f"add --engine {' or --engine '.join(BACKENDS)}",
                    )
            return of_onnxruntime()
        context = click.get_current_context()
        for parameter, option in _OF_ONNXRUNTIME.items():
            if context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE:
                raise UsageError(f"{option} is an option of onnxruntime, not of {self.name}", "leave it out")
        from nsn_edge.runtimes.engines.tensorrt import TensorRtEngine

        return TensorRtEngine(self.name, self.precision, engines=self.folder)


def engine_options(function: _Command) -> _Command:
    """Add `--engine`, `--engine-precision` and `--engines` to a verb, which gets them as the keyword `choice`."""

    @functools.wraps(function)
    def with_choice(
        *arguments: Any, engine: str, engine_precision: str | None, engines: Path | None, **others: Any
    ) -> Any:
        return function(*arguments, choice=EngineChoice(engine, engine_precision, engines), **others)

    folder = click.option(
        "--engines",
        type=click.Path(path_type=Path),
        help="Where nsn-edge build --engines put them.  [default: engines in the bundle]",
    )
    precision = click.option(
        "--engine-precision",
        type=click.Choice(PRECISIONS),
        help="Of engines built by nsn-edge build, where there are several.",
    )
    name = click.option(
        "--engine",
        default=ONNXRUNTIME,
        show_default=True,
        type=click.Choice([ONNXRUNTIME, *BACKENDS]),
        help="What executes the graphs; the others run what nsn-edge build made on this device.",
    )
    return name(precision(folder(with_choice)))  # type: ignore[return-value]
