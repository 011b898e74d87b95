"""What every verb shares: options, output, progress, and errors turned into one line and an exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.progress import Progress

_Command = TypeVar("_Command", bound=Callable[..., Any])

_JSON_FILE = "nsn_edge.json_file"

INTERRUPTED = 130
"""The shell's code for a command that Ctrl-C ended."""


def verb_options(function: _Command) -> _Command:
    """Add `--json` (keyword `as_json`), `--json-file` (which `emit` heeds) and `--debug` to a verb."""
    debug = click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the whole traceback when something fails."
    )
    json_file = click.option(
        "--json-file",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=_remember_json_file,
        help="Write the JSON document to this file too.",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
    return as_json(json_file(debug(function)))


def _remember_json_file(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    ctx.meta[_JSON_FILE] = path


def emit(data: Mapping[str, Any], render: Callable[[Console], None], as_json: bool) -> None:
    """Print a verb's result on stdout: one JSON document for programs, or what `render` draws for people.

    With `--json-file` the document is written there as well, in one step; of several results the last one stays.
    """
    json_file = click.get_current_context().meta.get(_JSON_FILE)
    if json_file is not None:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1)
        atomic_write_bytes(json_file, text.encode() + b"\n")
    if as_json:
        click.echo(json.dumps(data, ensure_ascii=False, allow_nan=False))
    else:
        render(Console(width=None if sys.stdout.isatty() else _plain_width(), highlight=False))


def read_texts(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not blank.

    Raises:
        UsageError: the file is missing, not UTF-8 text, or blank.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text", "convert it, one text per line") from error
    texts = [line for line in lines if line]
    if not texts:
        raise UsageError(f"{path} holds no text", "put one text on each line")
    return texts


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A `Progress` callback shown on stderr: live bars on a terminal, one line per stage elsewhere."""
    if not sys.stderr.isatty():
        yield _PlainProgress()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=False) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks or bars.tasks[tasks[stage]].finished:
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield report


class _PlainProgress:
    """For logs and pipes: a line when a stage starts, every ten seconds, and when it ends."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage in self._last and now - self._last[stage] < 10 and done != total:
            return
        self._last[stage] = now
        of = f"/{total}" if total else ""
        click.echo(f"{stage}: {done}{of}", err=True)


def run_main(main: click.Command, arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; print errors as one line on stderr.

    With `--debug` anywhere on the line the exception is left to Python, traceback and all.
    """
    debug = "--debug" in arguments
    try:
        code = main.main(args=list(arguments), prog_name="nsn-edge", standalone_mode=False)
    except NsnEdgeError as error:
        if debug:
            raise
        return _fail(error.message + (f". {error.hint}" if error.hint else ""), error.exit_code)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            error.show()
            return error.exit_code
        help_line = (
            f" Try: {error.ctx.command_path} --help" if isinstance(error, click.UsageError) and error.ctx else ""
        )
        return _fail(" ".join(f"{error.format_message()}{help_line}".split()), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing half-written was left behind", INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`nsn-edge ... | head`): say nothing, and keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        return _fail(
            f"{type(error).__name__}: {' '.join(str(error).split())[:500]}. "
            "This is not an error we foresaw: run it again with --debug and report the traceback",
            1,
        )
    return code if isinstance(code, int) else 0  # `ctx.exit(n)` and `--help` come back as n


def _fail(message: str, code: int) -> int:
    click.echo(f"nsn-edge: {message}", err=True)
    return code


def _plain_width() -> int:
    """Tables in files and pipes keep their columns whatever the caller's terminal is."""
    return int(os.environ.get("COLUMNS", "120"))
