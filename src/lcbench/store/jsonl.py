"""Reading JSON lines that a killed process may have left unfinished."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lcbench.errors import CorruptFile
from lcbench.store.files import cannot_write

_BLOCK = 1 << 16


def corrupt(path: Path, line: int, why: str) -> CorruptFile:
    """The user's error for a bad line."""
    return CorruptFile(
        f"{path}, line {line}: {why}.",
        "Mend or delete that line; a deleted answer is made again when the run is continued.",
    )


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of every whole line; nothing when there is no file.

    A last line without its newline is what a kill leaves behind: it is skipped.

    Raises:
        CorruptFile: a whole line that is not a JSON object (file and line named), or a file that cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.endswith(b"\n"):
                    yield number, _parse(path, number, raw)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CorruptFile(
            f"Cannot read {path}: {error.strerror or type(error).__name__}.", "Check the file and its permissions."
        ) from None


def _parse(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise corrupt(path, number, "not valid JSON") from None
    if not isinstance(data, dict):
        raise corrupt(path, number, "not a JSON object")
    return data


def torn_bytes(path: Path) -> int:
    """Bytes after the last newline; 0 when the file ends well or does not exist. Raises CorruptFile."""
    try:
        with open(path, "rb") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - _BLOCK)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    return size - (start + newline + 1)
                end = start
            return size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise CorruptFile(
            f"Cannot read {path}: {error.strerror or type(error).__name__}.", "Check the file and its permissions."
        ) from None


def cut_torn(path: Path) -> int:
    """Cut off what follows the last newline; returns how many bytes that was. Raises CannotWrite, CorruptFile."""
    torn = torn_bytes(path)
    if torn:
        try:
            with open(path, "r+b") as file:
                file.truncate(file.seek(0, os.SEEK_END) - torn)
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error) from None
    return torn
