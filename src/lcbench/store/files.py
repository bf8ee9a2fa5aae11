"""Writing so that a kill, a power cut or a full disk never leaves half a file or half a line."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcbench.errors import CannotWrite


def cannot_write(path: Path, error: OSError) -> CannotWrite:
    """The user's error for a failed write at ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CannotWrite(
            f"No space left to write {path}.", "Free some space and give the same command again: the run continues."
        )
    reason = error.strerror or type(error).__name__
    return CannotWrite(f"Cannot write {path}: {reason}.", "Choose another place with --out, one that you may write to.")


def sync_folder(folder: Path) -> None:
    """Make names created in ``folder`` durable; a no-op where folders cannot be synced."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def make_folder(folder: Path) -> None:
    """Create ``folder`` with its parents, durably. Raises CannotWrite, also when a file is in the way."""
    made = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise CannotWrite(f"{folder} is a file, not a folder.", "Choose another place with --out.") from None
    except OSError as error:
        raise cannot_write(folder, error) from None
    for one in made:
        sync_folder(one.parent)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``data`` as JSON, at once; see `write_text`."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8, at once; see `write_bytes`. Raises CannotWrite."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` at once: readers see the old file or the new one, whatever happens.

    The temporary file lies beside it, hidden, and carries the process id; it is synced before it is renamed.

    Raises:
        CannotWrite: the folder is not writable or the disk is full; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise cannot_write(path, error) from None
    sync_folder(path.parent)


def append_line(path: Path, line: str, *, sync: bool = True) -> None:
    """Append ``line`` and a newline as a whole or not at all; on return it is on the disk (with ``sync``).

    Raises:
        CannotWrite: not writable or no space left; what was written of the line is cut off again.
    """
    data = line.encode("utf-8") + b"\n"
    created = not path.exists()
    if created:
        make_folder(path.parent)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _append(fd, data, sync)
        finally:
            os.close(fd)
    except OSError as error:
        raise cannot_write(path, error) from None
    if created and sync:
        sync_folder(path.parent)


def _append(fd: int, data: bytes, sync: bool) -> None:
    size = os.fstat(fd).st_size
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if sync:
            os.fsync(fd)
    except BaseException:
        # Also on Ctrl-C: the next line must start at the beginning of a line.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, size)
        raise
