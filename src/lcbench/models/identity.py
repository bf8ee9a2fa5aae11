"""Which weights exactly: content hashes of local weight files, each file hashed once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lcbench.errors import ModelError

Say = Callable[[str], None]

_BLOCK = 1 << 22
_SLOW = 1 << 30  # bytes from which hashing is worth a word to the user


def weight_files(folder: Path) -> list[Path]:
    """The files transformers reads the weights of a model folder from, sorted by name.

    Raises:
        ModelError: there are none, or one that an index names is absent.
    """
    for kind in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{kind}.index.json"
        if (folder / kind).is_file():
            return [folder / kind]
        if index.is_file():
            return _indexed(index)
    raise ModelError(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin nor an index of either.",
        "Complete the download, or give another folder.",
    )


def _indexed(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        raise ModelError(f"{index} cannot be read as an index of weight files.", "Download it again.") from None
    files = [index.parent / str(name) for name in sorted(names)]
    for file in files:
        if not file.is_file():
            raise ModelError(f"{index.name} names {file.name}, which is not in {index.parent}.", "Download it again.")
    return files


def weights_sha256(files: Sequence[Path], home: Path, say: Say) -> str:
    """Hex digest over name and content of the files, in order; unchanged files are not read again."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {file_sha256(file, home, say)}\n".encode())
    return total.hexdigest()


def file_sha256(path: Path, home: Path, say: Say) -> str:
    """Hex digest of one file. Remembered in ``home/state`` by path, size and modification time."""
    path = path.resolve()
    stat = path.stat()
    stamp = [stat.st_size, stat.st_mtime_ns]
    memory = home / "state" / "hashes.json"
    known = _read(memory).get(str(path))
    if isinstance(known, dict) and known.get("stamp") == stamp and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    if stat.st_size >= _SLOW:
        say(f"Hashing {path.name} ({stat.st_size / 1e9:.1f} GB), once.")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    with contextlib.suppress(OSError, Timeout):  # a hash that cannot be remembered is still right
        _remember(memory, str(path), {"stamp": stamp, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def _read(memory: Path) -> dict[str, Any]:
    try:
        data = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _remember(memory: Path, key: str, entry: dict[str, Any]) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{memory}.lock", timeout=5):
        data = {**_read(memory), key: entry}
        handle, part = tempfile.mkstemp(dir=memory.parent, prefix=memory.name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, sort_keys=True)
        os.replace(part, memory)
