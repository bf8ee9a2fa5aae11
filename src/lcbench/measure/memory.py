"""How much memory a piece of work needed at most. What of it is weights or KV cache is for the caller to say."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import TracebackType

from lcbench.measure.confines import bytes_left
from lcbench.measure.device import kind_of, synchronize

_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Context manager: ``with PeakMemory(device) as peak: …`` then ``peak.bytes``.

    On CUDA the figures are the allocator's (``max_memory_allocated``, peak reset on entry). Elsewhere they are the
    resident set of this process: reset on entry where Linux allows it, else the peak of the process's whole life.

    Attributes:
        bytes: most bytes in use at once during the block, those held before it included.
        start_bytes: bytes in use when the block began.
        exact: whether the peak could be reset, so that ``bytes`` speaks of the block alone.
    """

    def __init__(self, device: object = "cpu") -> None:
        self._device = device
        self._cuda = kind_of(device) == "cuda"
        self.bytes = 0
        self.start_bytes = 0
        self.exact = True

    def __enter__(self) -> PeakMemory:
        if self._cuda:
            import torch

            synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(str(self._device))
            self.start_bytes = int(torch.cuda.memory_allocated(str(self._device)))
        else:
            self.exact = _reset_peak()
            self.start_bytes = resident_bytes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda:
            import torch

            if error is None:
                synchronize(self._device)
            self.bytes = int(torch.cuda.max_memory_allocated(str(self._device)))
        else:
            # The kernel keeps the two counters apart and may lag with one of them.
            self.bytes = max(peak_resident_bytes(), self.start_bytes)


def resident_bytes() -> int:
    """Memory of this process in RAM now; its lifetime peak where the system does not tell (macOS)."""
    return _status("VmRSS") or _lifetime_peak()


def peak_resident_bytes() -> int:
    """Most memory of this process in RAM since the last reset, or since it began where nothing can be reset."""
    return _status("VmHWM") or _lifetime_peak()


def available_bytes(device: object = "cpu") -> int:
    """Memory that a process could take on ``device`` now: free on a GPU (what this process has cached but does not use
    counts as free); on a CPU what the system calls available, or half of all memory where it does not say, and no more
    than limits of the process and of its container leave (`measure.confines`)."""
    if kind_of(device) == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(str(device))
        return int(free + torch.cuda.memory_reserved(str(device)) - torch.cuda.memory_allocated(str(device)))
    free = _field(_MEMORY, "MemAvailable") or _physical_bytes() // 2
    left = bytes_left()
    return free if left is None else min(free, left)


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**32


def _reset_peak() -> bool:
    """Ask Linux to forget the peak so far. False where it is not Linux or not allowed."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
        return True
    return False


def _status(field: str) -> int:
    """A size from /proc/self/status in bytes, 0 where there is none."""
    return _field(_STATUS, field)


def _field(file: Path, field: str) -> int:
    try:
        for line in file.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _lifetime_peak() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
