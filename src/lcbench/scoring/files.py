"""Prediction files of the official scripts, read strictly: what cannot be right is refused by file and line.

A file holds one JSON object a line with ``pred``, ``answers``, ``all_classes`` and ``length``, may be compressed, and
is named after its dataset up to the first dot. The records of a run directory are such files too.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcbench.errors import CorruptFile, UnknownName, UsageError
from lcbench.scoring.rows import task_facts
from lcbench.scoring.samples import LONGBENCH, Sample, TaskSamples, cluster_key
from lcbench.store.schema import STATUS_ERROR, STATUS_OK

SUFFIXES = (".jsonl", ".jsonl.gz")
MOST_BYTES = 4 << 30
"""Most bytes a file may have once unpacked: more is a broken or a hostile file."""

_BLOCK = 1 << 16  # bytes unpacked at once: a fault is found where it stands
_MEND = "Mend or delete that line."


def dataset_of(path: Path) -> str:
    """The dataset a file is named after: its name up to the first dot, or, with task options (``@``), its stem."""
    name = path.name
    if "@" in name:
        for suffix in SUFFIXES:
            name = name.removesuffix(suffix)
        return name
    return name.partition(".")[0]


def find_files(folder: Path) -> dict[str, Path]:
    """Dataset name to file, for the prediction files right in ``folder``, by name.

    Raises:
        UsageError: two files of one dataset, or a folder that cannot be read. CorruptFile: a link that leads nowhere.
    """
    try:
        paths = sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith("."))
    except OSError as error:
        raise UsageError(f"Cannot read {folder}: {error.strerror}.", "Check the folder and its permissions.") from None
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise CorruptFile(f"{path} is a link to a file that is not there.", "Mend or delete the link.")
        if not path.is_file():
            continue
        other = found.setdefault(dataset_of(path), path)
        if other is not path:
            raise UsageError(
                f"{other.name} and {path.name} in {folder} are both named after the dataset {dataset_of(path)}.",
                "Score them one by one: lcbench score FILE",
            )
    return found


def read_file(path: Path) -> TaskSamples:
    """Read one predictions file; the benchmark is that of the task, LongBench where nothing else is known.

    Raises:
        UsageError: not named like a predictions file. UnknownName: not named after a task.
        CorruptFile: unreadable, not UTF-8, not JSON, a field missing or of the wrong type, no rows (line named).
    """
    try:
        facts = task_facts(dataset_of(path), f", which {path} is named after")
    except UnknownName:
        if path.name.endswith(SUFFIXES):
            raise
        raise UsageError(
            f"{path} is not a predictions file: its name does not end in {' or '.join(SUFFIXES)}.",
            "Give a run directory, a predictions file such as qasper.jsonl, or a folder of them.",
        ) from None
    rows = _parse_lines(path, _read_text(path))
    if not rows:
        raise CorruptFile(f"{path} holds no predictions.", "Give a file with one JSON object a line.")
    # Records of a run: a sample that failed and was tried again has several lines, and the last one counts.
    latest: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for number, row in rows:
        known = isinstance(row.get("_id"), str) and "status" in row
        latest[f"id {row['_id']}" if known else f"line {number}"] = (number, row)
    counts = facts.metric == "count"
    samples = tuple(_sample(path, number, row, counts) for number, row in latest.values())
    versions = {row["task_version"] for _, row in latest.values() if isinstance(row.get("task_version"), int)}
    return TaskSamples(
        dataset_of(path), facts, facts.benchmark or LONGBENCH, samples, str(path), tuple(sorted(versions))
    )


def _read_text(path: Path) -> str:
    try:
        data = _unpacked(path) if path.name.endswith(".gz") else _bytes(path)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.", "Give a run directory, a predictions file or a folder.") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CorruptFile(f"Cannot read {path}: {reason}.", "Check the file and its permissions.") from None
    if len(data) > MOST_BYTES:
        raise CorruptFile(f"{path} holds more than {MOST_BYTES >> 30} GiB.", "Split it, or give the right file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorruptFile(f"{path}, line {line}: not UTF-8 text.", "Convert the file to UTF-8.") from None


def _bytes(path: Path) -> bytes:
    with open(path, "rb") as plain:
        return plain.read(MOST_BYTES + 1)


def _unpacked(path: Path) -> bytes:
    """The content of a gzip file. Raises CorruptFile with the line that can no longer be read."""
    data = bytearray()
    with gzip.open(path, "rb") as packed:
        try:
            while len(data) <= MOST_BYTES and (block := packed.read1(_BLOCK)):
                data += block
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            line = data.count(b"\n") + 1
            what = (
                "the gzip file breaks off here" if isinstance(error, EOFError) else f"not a sound gzip file ({error})"
            )
            raise CorruptFile(f"{path}, line {line}: {what}.", "Copy or download it again.") from None
    return bytes(data)


def _parse_lines(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """Line number and object of every line. Blank lines are allowed at the end of the file only."""
    # Only these three end a line: str.splitlines would also cut at line separators inside a text.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n \t").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if lines == [""]:
            break
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise _corrupt(path, number, "not valid JSON" if line.strip() else "an empty line") from None
        if not isinstance(row, dict):
            raise _corrupt(path, number, "not a JSON object")
        rows.append((number, row))
    return rows


def _sample(path: Path, number: int, row: Mapping[str, Any], counts: bool) -> Sample:
    """One row as a sample. Where the metric ``counts``, answers may be numbers: the official one takes their str()."""
    for name in ("pred", "answers"):
        if name not in row:
            raise _corrupt(path, number, f"'{name}' is missing")
    if not isinstance(row["pred"], str):
        raise _corrupt(path, number, "'pred' is not text")
    answers = _as_texts(row["answers"]) if counts else row["answers"]
    if not _is_texts(answers):
        raise _corrupt(path, number, "'answers' is not a list of texts")
    classes = row.get("all_classes")
    if classes is not None and not _is_texts(classes):
        raise _corrupt(path, number, "'all_classes' is neither a list of texts nor null")
    length = row.get("length")
    if length is not None and not _is_length(length):
        raise _corrupt(path, number, "'length' is not a number")
    status = row.get("status", STATUS_OK)
    if status not in (STATUS_OK, STATUS_ERROR):
        raise _corrupt(path, number, "'status' is neither ok nor error")
    meta = row.get("meta")
    context = row.get("context")
    meta = meta if isinstance(meta, dict) else {}
    return Sample(
        prediction=row["pred"],
        answers=tuple(answers),
        all_classes=None if classes is None else tuple(classes),
        length=length,
        ok=status == STATUS_OK,
        cluster=cluster_key(meta, context if isinstance(context, str) else None),
        where=f"line {number}",
        meta=meta,
        id=row["_id"] if isinstance(row.get("_id"), str) else "",
        cut=row.get("truncated_from") is not None,
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _as_texts(value: Any) -> Any:
    """A list with its numbers as ``str`` writes them (3 is "3", 3.0 is "3.0"); anything else as it is."""
    if not isinstance(value, list):
        return value
    return [str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for v in value]


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _corrupt(path: Path, line: int, why: str) -> CorruptFile:
    return CorruptFile(f"{path}, line {line}: {why}.", _MEND)
