"""Threads that ask, several at a time; none of them keeps the command from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Callers:
    """Runs functions in so many threads, in the order in which they come.

    A `ThreadPoolExecutor` would do, were it not that Python waits for its threads when it ends: a server that hangs
    would then hold a run that another answer has ended for as long as one call may take.

    Args:
        count: functions at a time.
    """

    def __init__(self, count: int) -> None:
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._count = count
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """The result to come of a function."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self._asked.put(work)
        if len(self._threads) < self._count:
            thread = threading.Thread(target=self._run, name=f"call-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def end(self) -> None:
        """Begin nothing more; what runs may end, and nobody waits for it."""
        while not self._asked.empty():
            self._asked.get()
        for _ in self._threads:
            self._asked.put(None)

    def _run(self) -> None:
        while (work := self._asked.get()) is not None:
            work()
