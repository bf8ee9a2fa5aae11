"""The file that makes a folder a run directory: run.json, read and judged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcbench.errors import NotARun
from lcbench.store.files import cannot_write
from lcbench.store.schema import SCHEMA_VERSION

RUN_FILE = "run.json"
SHARDS = "shards"
"""Folder of the shards of a run (`store.shards`)."""


def load_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises OSError and ValueError."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError("not an object")
    return data


def read_info(path: Path) -> dict[str, Any]:
    """What stands in a run directory's run.json.

    Raises:
        NotARun: it is not there or not whole, or a later lcbench wrote it.
    """
    step = "Give the folder that `lcbench run` wrote, or run one: lcbench run --model demo --method full,kivi"
    file = path / RUN_FILE
    try:
        info = load_object(file)
    except (FileNotFoundError, NotADirectoryError):
        if not path.exists():
            raise NotARun(f"{path} does not exist.", step) from None
        if not path.is_dir():
            raise NotARun(f"{path} is a file, not a run directory.", step) from None
        if (path / SHARDS).is_dir():
            step = f"Join them when all are done: lcbench merge {path}"
            raise NotARun(f"{path} is a run in shards that are not merged yet.", step) from None
        raise NotARun(f"{path} is not a run directory: it has no {RUN_FILE}.", step) from None
    except OSError as error:
        raise NotARun(f"{file} cannot be read: {error.strerror or type(error).__name__}.", step) from None
    except (ValueError, RecursionError):
        raise NotARun(f"{path} is not a run directory: its {RUN_FILE} is broken.", step) from None
    _check_info(path, info)
    return info


def _check_info(path: Path, info: Mapping[str, Any]) -> None:
    version = info.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NotARun(
            f"{path} was written by a newer lcbench (schema {version}, this one reads {SCHEMA_VERSION}).",
            "Upgrade: pip install --upgrade lcbench",
        )
    spec, provenance = info.get("spec"), info.get("provenance")
    well_formed = (
        isinstance(version, int)
        and version >= 1
        and isinstance(spec, dict)
        and isinstance(provenance, dict)
        and is_names(spec.get("methods"))
        and is_names(spec.get("tasks"))
    )
    if not well_formed:
        raise NotARun(f"{path} is not a run directory: its {RUN_FILE} is broken.", "Give another folder.")


def is_names(value: Any) -> bool:
    """Whether these are the names of methods or tasks: a list of texts, each once."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(v, str) and v for v in value)
        and len(set(value)) == len(value)
    )


def refuse_foreign(path: Path) -> None:
    """Raise NotARun for a folder that something else lives in.

    A folder with other people's files is no place for a run. Hidden files (locks, leftovers) do not count."""
    try:
        others = [entry.name for entry in path.iterdir() if not entry.name.startswith(".") and entry.name != SHARDS]
    except OSError as error:
        raise cannot_write(path, error) from None
    if others and not (path / RUN_FILE).exists():
        raise NotARun(
            f"{path} holds other files (such as {sorted(others)[0]}) but no {RUN_FILE}.",
            "Choose a new or an empty folder with --out.",
        )
