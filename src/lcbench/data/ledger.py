"""``lock.json`` of a data set's folder: what is installed, where it came from and what its bytes are.

::

    {"qasper.jsonl": {"sha256": "…", "size": 510195, "rows": 18, "source": "…",
                      "subset": {"rows": 18, "of": 200, "name": "qasper.first18.jsonl"}, "date": "…"}}

Where a manifest knows no checksum, the first download is written here and later ones have to match.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from lcbench.data.disk import write_atomically
from lcbench.errors import CorruptFile

LEDGER = "lock.json"


@dataclass(frozen=True)
class Subset:
    """A file that is only the beginning of the official one.

    Attributes:
        rows: rows it has. of: rows of the official file. name: what it was called where it came from.
    """

    rows: int
    of: int
    name: str

    @property
    def note(self) -> str:
        """For people: ``"first 18 of 200 rows"``."""
        return f"first {self.rows} of {self.of} rows"


@dataclass(frozen=True)
class Installed:
    """One installed file.

    Attributes:
        sha256, size: of the file. rows: lines of a "rows" file, None for others.
        source: where it came from, without secrets. date: when (UTC, ISO 8601).
        subset: None when it is the whole official file.
    """

    sha256: str
    size: int
    rows: int | None
    source: str
    subset: Subset | None
    date: str


def now() -> str:
    """The present moment as `Installed.date` writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def dataset_folder(home: Path, dataset: str) -> Path:
    """Folder of a data set below ``home``; not created."""
    return home / "data" / dataset


def read_ledger(folder: Path) -> dict[str, Installed]:
    """File name to what is installed, {} when nothing is. Raises CorruptFile."""
    path = folder / LEDGER
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _corrupt(path) from error
    try:
        return {str(name): _installed(data) for name, data in json.loads(text).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(path) from error


def write_ledger(folder: Path, entries: Mapping[str, Installed]) -> None:
    """Replace the ledger at once. Raises CannotWrite."""
    data = {name: asdict(entry) for name, entry in sorted(entries.items())}
    write_atomically(folder / LEDGER, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


def _installed(data: Mapping[str, object]) -> Installed:
    subset = data["subset"]
    part = None
    if subset is not None:
        if not isinstance(subset, dict):
            raise TypeError("subset")
        part = Subset(_int(subset["rows"]), _int(subset["of"]), str(subset["name"]))
    rows = data["rows"]
    return Installed(
        sha256=str(data["sha256"]), size=_int(data["size"]), rows=None if rows is None else _int(rows),
        source=str(data["source"]), subset=part, date=str(data["date"]),
    )  # fmt: skip


def _int(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not a whole number")
    return value


def _corrupt(path: Path) -> CorruptFile:
    return CorruptFile(
        f"{path} cannot be read as the list of installed files.",
        "Delete it and give the download command again; files that are complete stay.",
    )
