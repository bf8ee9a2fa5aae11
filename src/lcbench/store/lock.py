"""One writer a run directory: a lock that the operating system drops when its holder dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lcbench.errors import CannotWrite, RunLocked
from lcbench.store.files import cannot_write, write_json


class RunLock:
    """Exclusive lock on a folder, held by this process until `release`, or until it dies in whatever way.

    ``.lock`` is what is locked (flock where there is one); ``.lock.json`` says who holds it, for people. Children made
    by fork without exec keep the lock alive as long as they live.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self._folder = folder
        self._holder = folder / ".lock.json"
        self._lock: Any = FileLock(str(folder / ".lock"), thread_local=False)

    def acquire(self) -> None:
        """Take the lock now or not at all.

        Raises:
            RunLocked: another process holds it. CannotWrite: the folder cannot be written or locked.
        """
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunLocked(
                f"{self._folder} is in use by {self._describe_holder()}.",
                "Wait until it ends, or choose another folder with --out.",
            ) from None
        except OSError as error:
            raise cannot_write(self._folder, error) from None
        except NotImplementedError:
            raise CannotWrite(
                f"The file system of {self._folder} has no file locks.", "Choose --out on a local disk."
            ) from None
        try:
            since = datetime.now(timezone.utc).isoformat(timespec="seconds")
            write_json(self._holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let go; safe to call twice."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._holder.unlink()
            self._lock.release()

    def _describe_holder(self) -> str:
        try:
            holder = json.loads(self._holder.read_text(encoding="utf-8"))
            return f"process {int(holder['pid'])} on {str(holder['host'])[:80]} (since {str(holder['since'])[:40]})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def is_locked(folder: Path) -> bool:
    """Whether a living process holds the lock of ``folder``. Leaves no trace in a folder that was never locked."""
    from filelock import FileLock, Timeout

    file = folder / ".lock"
    if not file.exists():
        return False
    lock = FileLock(str(file), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False
