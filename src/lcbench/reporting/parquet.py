"""The report as Parquet: the rows of the CSV with their types, the notes in the file's metadata."""

from __future__ import annotations

import json

from lcbench.reporting.rows import COLUMNS, flat_rows
from lcbench.reporting.table import Report

_WHOLE = ("n", "errors", "filtered", "skipped")
_REAL = ("score", "low", "high", "kv_bytes", "kv_bytes_full", "ratio")


def render(report: Report) -> bytes:
    """The bytes of the file. Read the notes with ``json.loads(schema.metadata[b"lcbench"])["notes"]``."""
    import pyarrow as pa
    import pyarrow.parquet

    types = {**dict.fromkeys(_WHOLE, pa.int64()), **dict.fromkeys(_REAL, pa.float64())}
    about = json.dumps({"schema_version": 1, "notes": list(report.notes), "runs": list(report.runs)})
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS], metadata={"lcbench": about})
    rows = [{name: utf8(value) for name, value in row.items()} for row in flat_rows(report)]
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return bytes(sink.getvalue())


def utf8(value: object) -> object:
    """Halves of surrogate pairs, which no UTF-8 file can hold, become question marks."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
