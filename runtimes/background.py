"""The two threads of a session that nobody waits for: one loads graphs, one frees them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from nsn_edge.errors import ClosedError

_LOADER_NICENESS = 5

T = TypeVar("T")


class Background:
    """One loader, so that loads come one after another, in the order asked for; and one that frees."""

    def __init__(self, *, give_way: bool) -> None:
        """
        Args:
            give_way: load at a lower priority than the rest of the process.
        """
        self._loader = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="nsn-edge-loader", initializer=_give_way if give_way else None
        )
        self._freer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nsn-edge-freer")

    def load(self, work: Callable[[], T]) -> Future[T]:
        """Do this when the loader is free.

        Raises:
            ClosedError: after `stop_loading`.
        """
        try:
            return self._loader.submit(work)
        except RuntimeError as error:  # what an executor raises after its shutdown
            raise ClosedError("the session was closed") from error

    def free(self, work: Callable[[], None]) -> None:
        """Freeing a graph holds the interpreter's lock for milliseconds: do it where no request waits."""
        try:
            self._freer.submit(work)
        except RuntimeError:
            work()

    def stop_loading(self) -> None:
        """Wait for the load under way; those that have not begun are cancelled."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Wait until everything is freed. Later graphs are freed by whoever gives them back."""
        self._freer.shutdown(wait=True)


def _give_way() -> None:
    """Lower the calling thread's priority, so that a load takes the processor time that requests leave.

    Measured with MiniLM on two cores that other programs kept busy: the median request during loads took 44 ms instead
    of 57 ms (31 ms undisturbed), and a load 0.35 s instead of 0.17 s; on idle cores neither changes. Lower still would
    be worse: the loader needs the interpreter's lock for moments, and must not fall asleep holding it.
    """
    if sys.platform == "linux":  # elsewhere priorities belong to processes
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADER_NICENESS)
