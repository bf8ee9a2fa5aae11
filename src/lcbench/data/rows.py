"""JSON lines and parquet tables to rows: every line checked against the schema, the values exactly as written.

The rows go through `datasets` with the features of the manifest, but not through its JSON loader: that one guesses
types before it casts, so that ``"2020-01-01"`` comes back as ``"2020-01-01 00:00:00"``, a number where text should be
passes silently, a missing field becomes null, and an error names no line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lcbench.data.manifest import FileEntry
from lcbench.data.schema import FieldType, Schema, row_problem
from lcbench.errors import CorruptFile

if TYPE_CHECKING:
    from datasets import Dataset


def parse_rows(content: bytes, schema: Schema, where: str, next_step: str) -> list[dict[str, Any]]:
    """All rows of a JSON-lines file.

    Args:
        content: the file. Lines end with a line feed; the last one may lack it.
        where: what messages call the file.

    Raises:
        CorruptFile: a line is not UTF-8, not JSON, or not a row of ``schema``; the line number is in the message.
    """
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        problem, row = _parse(line, schema)
        if problem:
            raise CorruptFile(f"{where}, line {number}: {problem}.", next_step)
        rows.append(row)
    return rows


def read_table(
    entry: FileEntry, content: bytes, schema: Schema, where: str, next_step: str, limit: int | None = None
) -> list[dict[str, Any]]:
    """Rows of a "rows" or "parquet" file, at most ``limit``; every line of JSON is checked nevertheless.

    Raises:
        CorruptFile: as `parse_rows` and `parse_parquet`.
    """
    if entry.kind == "parquet":
        return parse_parquet(content, schema, where, next_step, limit)
    rows = parse_rows(content, schema, where, next_step)
    return rows if limit is None else rows[: max(0, limit)]


def parse_parquet(
    content: bytes, schema: Schema, where: str, next_step: str, limit: int | None = None
) -> list[dict[str, Any]]:
    """The first ``limit`` rows of a parquet file, of the columns in ``schema``; further columns are left out.

    Raises:
        CorruptFile: not a parquet file, a column that is missing, or a value of another type (row number in it).
    """
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(arrow.BufferReader(content))
        missing = [name for name in schema if name not in file.schema_arrow.names]
        if missing:
            raise CorruptFile(f"{where} has no column '{missing[0]}'.", next_step)
        rows: list[dict[str, Any]] = []
        for batch in file.iter_batches(batch_size=256, columns=list(schema)):
            rows += batch.to_pylist()
            if limit is not None and len(rows) >= limit:
                break
    except (arrow.ArrowException, OSError) as error:
        raise CorruptFile(f"{where} cannot be read as a parquet file.", next_step) from error
    rows = rows if limit is None else rows[: max(0, limit)]
    for number, row in enumerate(rows, 1):
        problem = row_problem(schema, row)
        if problem:
            raise CorruptFile(f"{where}, row {number}: {problem}.", next_step)
    return rows


def as_dataset(rows: Sequence[dict[str, Any]], schema: Schema) -> Dataset:
    """Checked rows as a typed, in-memory `datasets.Dataset`. Touches neither network nor cache."""
    from datasets import Dataset, Features

    features = Features({name: _feature(kind) for name, kind in schema.items()})
    return Dataset.from_dict({name: [row[name] for row in rows] for name in schema}, features=features)


def parse_object(content: bytes, where: str, next_step: str) -> dict[str, Any]:
    """A JSON file that holds one object. Raises CorruptFile, with the line where there is one."""
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CorruptFile(f"{where}, line {line}: not UTF-8 text.", next_step) from error
    except json.JSONDecodeError as error:
        raise CorruptFile(f"{where}, line {error.lineno}: not JSON ({error.msg}).", next_step) from error
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{where}: not JSON.", next_step) from error
    if not isinstance(value, dict):
        raise CorruptFile(f"{where}: not a JSON object.", next_step)
    return value


def _parse(line: bytes, schema: Schema) -> tuple[str, Any]:
    """What is wrong with a line ("" for nothing), and its row."""
    if not line.strip():
        return "the line is empty", None
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start + 1})", None
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg}, column {error.colno})", None
    except (ValueError, RecursionError):
        return "not JSON that can be read", None
    return row_problem(schema, row), row


def _feature(kind: FieldType) -> Any:
    from datasets import Value

    if kind.element is not None:
        return [_feature(kind.element)]
    return Value({"int": "int64", "float": "float64"}.get(kind.kind, kind.kind))
