"""What limits of the process and of its control groups leave of the memory: containers, batch systems, ``ulimit``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")

# Of a control group: what it may hold, what it holds, and what of that are files that can go (a key of memory.stat).
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def bytes_left() -> int | None:
    """Bytes that this process may still take by the limits set for it; None where there are none, or none to be read.

    Source: the kernel's documentation of control groups, versions 1 and 2 (memory controller), and getrlimit(2).
    """
    left = [*_by_groups(), *_by_process()]
    return max(0, min(left)) if left else None


def _by_groups() -> Iterator[int]:
    """What is left in each control group that this process is in, and in those above it."""
    for version, folder in _folders():
        limit, usage, files = _FILES[version]
        most, held = _number(folder / limit), _number(folder / usage)
        if most is not None and held is not None:
            yield most - held + _entry(folder / "memory.stat", files)


def _folders() -> Iterator[tuple[int, Path]]:
    for line in _lines(_MEMBERSHIP):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, root = 2, _GROUPS
        elif "memory" in controllers.split(","):
            version, root = 1, _GROUPS / "memory"
        else:
            continue
        # A container may be told a path that only its host has; its own group is then mounted at the root.
        folder = root / path.strip("/")
        while folder.is_relative_to(root):
            yield version, folder
            folder = folder.parent


def _by_process() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield most - 1024 * _entry(_STATUS, field + ":")


def _number(file: Path) -> int | None:
    """A file that holds one number; None where it says that there is no limit, or is not there."""
    text = next(_lines(file), "")
    return int(text) if text.isdecimal() else None


def _entry(file: Path, name: str) -> int:
    """A number in a file of lines like ``name 123``, 0 where there is none."""
    for line in _lines(file):
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return 0


def _lines(file: Path) -> Iterator[str]:
    try:
        yield from file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
