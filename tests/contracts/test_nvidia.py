"""What TensorRT says goes to whoever waits for it, and the builder and the runtime hear one logger."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from nsn_edge.errors import EngineError, MissingDependencyError
from nsn_edge.nvidia import Messages, import_library, messages_of


class _Logger:
    """As the library's: called with a severity and a text."""

    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


@pytest.fixture
def messages() -> Messages:
    return Messages(SimpleNamespace(ILogger=_Logger))


def elsewhere(say: Callable[..., None], *arguments: Any) -> None:
    """From another thread, as the library's own do."""
    thread = threading.Thread(target=say, args=arguments)
    thread.start()
    thread.join()


def test_an_error_goes_to_the_block_of_its_thread(messages: Messages, caplog: pytest.LogCaptureFixture) -> None:
    say = messages.logger.log
    with messages.collected() as outer:
        with messages.collected() as inner:
            say(_Logger.ERROR, "mine")
            elsewhere(say, _Logger.ERROR, "another's")
        say(_Logger.INTERNAL_ERROR, "mine too")
    assert (outer, inner) == (["mine too"], ["mine"])
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.WARNING, "another's")]
    assert messages.errors == []


def test_while_an_engine_is_built_all_threads_are_kept_and_nothing_is_printed(
    messages: Messages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    say = messages.logger.log
    with messages.kept():
        say(_Logger.WARNING, "careful")
        elsewhere(say, _Logger.ERROR, "broken")
    assert (messages.errors, messages.warnings, caplog.records) == (["broken"], ["careful"], [])
    with messages.kept():
        for number in range(200):
            say(_Logger.ERROR, str(number))
    assert messages.errors[-1] == "199"
    assert len(messages.errors) < 100, "a build may say much"
    assert messages.warnings == []
    say(_Logger.INFO, "aside")
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


def test_building_and_running_share_the_logger_of_a_library() -> None:
    from nsn_edge.export.tensorrt.library import Library as Builder
    from nsn_edge.runtimes.engines.tensorrt.library import Library as Runner

    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install '.[rtx]'")
    builder, runner = Builder.load("tensorrt_rtx"), Runner.of("tensorrt-rtx")
    assert builder.module is runner.module
    assert builder.messages is runner.messages is messages_of(builder.module)


def test_a_library_within_which_something_is_missing_is_no_missing_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "tensorrt.py").write_text("import a_part_that_is_not_there")
    monkeypatch.delitem(__import__("sys").modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match="TensorRT is installed and cannot be imported: No module named 'a_part"):
        import_library("tensorrt", "building engines")


def test_a_missing_library_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError) as caught:
        import_library("tensorrt", "building engines", elsewhere="ask another machine")
    assert caught.value.message.startswith("building engines needs the package 'tensorrt'")
    assert caught.value.hint.endswith("elsewhere: ask another machine")
