"""Seconds of a piece of work, its queued device work included."""

from __future__ import annotations

import time
from types import TracebackType

from lcbench.measure.device import synchronize


class Stopwatch:
    """Context manager: ``with Stopwatch(device) as watch: …`` then ``watch.seconds``.

    The device is synchronized before the clock starts and before it is read, so that neither earlier work is counted
    nor the block's own work missed. One instance may be used again; it then measures anew.

    Attributes:
        seconds: wall time of the last finished block; 0.0 before. Also set when the block raises.
    """

    def __init__(self, device: object = "cpu") -> None:
        self._device = device
        self._start: float | None = None
        self.seconds = 0.0

    def __enter__(self) -> Stopwatch:
        synchronize(self._device)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            synchronize(self._device)  # after an error the device may not answer; that would hide the error
        self.seconds = self.lap()
        self._start = None

    def lap(self) -> float:
        """Seconds since the block began, without waiting for the device. 0.0 outside a block."""
        return 0.0 if self._start is None else time.perf_counter() - self._start
