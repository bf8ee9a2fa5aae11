"""What torch's allocator held at most: the tensors of a piece of work and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from lcbench.measure.device import kind_of, synchronize

_MARK = "lcbench part: "


class AllocatorPeak:
    """Context manager: ``with AllocatorPeak(device, held=…) as peak:`` and in it ``with peak.part("read"): …``.

    On CUDA the allocator keeps the count itself and nothing is slowed down. On a CPU torch's profiler records every
    allocation, which takes time: measure seconds in another pass. The resident set of the process is no substitute
    there: it does not shrink when tensors are freed, so a second measurement would start from the peak of the first.

    Args:
        held: bytes of tensors alive at the start. Used on a CPU alone, where nobody else keeps that count: there the
            recorder knows nothing of memory from before the block, and misses it when it is freed inside.

    Attributes:
        start: bytes alive when the block began.
        parts: name to the most bytes of tensors alive at once during that part, in order; filled when the block ends.
        left: name to the bytes alive when that part ended; likewise.
    """

    def __init__(self, device: object = "cpu", *, held: int = 0) -> None:
        self._device = device
        self._cuda = kind_of(device) == "cuda"
        self._stack = ExitStack()
        self._profile: Any = None
        self.start = held
        self.parts: dict[str, int] = {}
        self.left: dict[str, int] = {}

    def __enter__(self) -> AllocatorPeak:
        import torch

        if self._cuda:
            synchronize(self._device)
            self.start = int(torch.cuda.memory_allocated(str(self._device)))
        else:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes a line to stderr each time
            profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
            self._profile = self._stack.enter_context(profile)
        return self

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the work, told apart from the others by ``name``."""
        import torch

        if not self._cuda:
            with torch.profiler.record_function(_MARK + name):
                yield
            return
        synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(str(self._device))
        yield
        synchronize(self._device)
        self.parts[name] = int(torch.cuda.max_memory_allocated(str(self._device)))
        self.left[name] = int(torch.cuda.memory_allocated(str(self._device)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._profile is not None and error is None:
            found = _by_part(self._profile.profiler.kineto_results.events(), self.start)
            self.parts = {name: most for name, (most, _) in found.items()}
            self.left = {name: end for name, (_, end) in found.items()}
        self._profile = None


def _by_part(events: Any, held: int) -> dict[str, tuple[int, int]]:
    """For each marked part the highest sum of allocations and frees, from ``held`` on, and the one at its end."""
    named = [event for event in events if event.name().startswith(_MARK)]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    parts = {}
    for event in sorted(named, key=lambda event: event.start_ns()):
        start, end, now, most = event.start_ns(), event.start_ns() + event.duration_ns(), held, 0
        for when, change in changes:
            if when > end:
                break
            most = max(most, now) if when >= start else 0
            now += change
        parts[event.name().removeprefix(_MARK)] = (max(most, now), now)
    return parts
