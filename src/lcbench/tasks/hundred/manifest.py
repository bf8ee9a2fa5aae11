"""``build.json`` beside the files of a build: which files it made, so that one that is gone is missed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lcbench.data.disk import write_atomically
from lcbench.errors import CorruptFile
from lcbench.tasks.facts import HUNDRED

NAME = "build.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a build made.

    Attributes:
        files: name to SHA-256. pools: whether the documents came from ``--pools`` and not from the downloaded data.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    pools: bool = False


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a build; None for a build without one. Raises CorruptFile."""
    path = folder / NAME
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _corrupt(path) from error
    files = data.get("files") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise _corrupt(path)
    return Manifest(files, data.get("pools") is True)


def add_to_manifest(folder: Path, name: str, sha256: str, *, pools: bool) -> None:
    """Note one file that was made. Raises CorruptFile, CannotWrite."""
    old = read_manifest(folder) or Manifest()
    _write(folder, replace(old, files={**old.files, name: sha256}, pools=pools))


def drop_from_manifest(folder: Path, name: str) -> None:
    """Forget a file that a build with other options removed. Raises CorruptFile, CannotWrite."""
    old = read_manifest(folder)
    if old is not None and name in old.files:
        _write(folder, replace(old, files={key: value for key, value in old.files.items() if key != name}))


def _write(folder: Path, manifest: Manifest) -> None:
    data = {
        "suite": HUNDRED,
        "format": FORMAT,
        "pools": manifest.pools,
        "files": {name: manifest.files[name] for name in sorted(manifest.files)},
    }
    write_atomically(folder / NAME, (json.dumps(data, indent=2) + "\n").encode("utf-8"))


def _corrupt(path: Path) -> CorruptFile:
    return CorruptFile(f"{path} is not the manifest of a build.", "Delete it: the files of the build do without.")
