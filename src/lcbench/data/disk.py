"""Writing below the data folder: atomic, durable, and with one clear sentence when it cannot be done."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lcbench.errors import CannotWrite

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ROOM_STEP = "Free some space, or set LCBENCH_HOME to a folder on a larger disk."
_MARGIN = 16 << 20


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into CannotWrite naming ``path``. Keep reads of other files out of the block."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CannotWrite(f"No space left to write {path}.", _ROOM_STEP) from error
        reason = error.strerror or type(error).__name__
        raise CannotWrite(
            f"Cannot write {path}: {reason}.", "Set LCBENCH_HOME to a folder that you may write to."
        ) from error


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents. Raises CannotWrite."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise CannotWrite when the disk of ``folder`` (which exists) has less than ``needed`` bytes, and a little more.

    Quotas are not seen here; they surface as a failed write.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if needed + _MARGIN > free:
        raise CannotWrite(
            f"No space left for {what} in {folder}: it takes {size_text(needed)} and {size_text(free)} are free.",
            _ROOM_STEP,
        )


def publish(temporary: Path, final: Path) -> None:
    """Make ``temporary`` durable and give it its final name at once; both lie on one file system."""
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, final)
    sync_folder(final.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: readers see the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
        publish(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where the platform can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def size_text(count: int) -> str:
    """Bytes for people, in powers of 1024: ``"114.2 MiB"``."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            break
    return f"{value:.1f} {unit}"
