"""A sign of life while nothing happens that could be told."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Thread


class Heart:
    """Calls ``beat`` from a thread of its own whenever nothing was told for ``every`` seconds.

    Args:
        beat: tells it; a file that cannot be written any more ends the thread, and nothing else.
        every: seconds.
    """

    def __init__(self, beat: Callable[[], None], every: float) -> None:
        self._beat, self._every = beat, every
        self._stopped = Event()
        self._last = time.monotonic()
        self._thread: Thread | None = None

    def start(self) -> None:
        self.told()
        self._thread = Thread(target=self._run, name="lcbench-heart", daemon=True)
        self._thread.start()

    def told(self) -> None:
        """Something was told just now."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """No beat comes after this."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopped.wait(max(0.01, self._last + self._every - time.monotonic())):
            if time.monotonic() - self._last < self._every:
                continue
            self.told()
            try:
                self._beat()
            except (OSError, ValueError):  # ValueError: the file was closed
                return
