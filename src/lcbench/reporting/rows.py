"""The report as a flat table: one row a method and line, for CSV and Parquet alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lcbench.reporting.longscore.data import rows as longscore_rows
from lcbench.reporting.table import Report

COLUMNS = (
    "model",
    "method",
    "task",
    "kind",
    "length",
    "metric",
    "score",
    "low",
    "high",
    "n",
    "errors",
    "filtered",
    "skipped",
    "kv_bytes",
    "kv_bytes_full",
    "ratio",
    "memory",
    "run",
)

_EMPTY = {**dict.fromkeys(COLUMNS, ""), **dict.fromkeys(COLUMNS[6:16])}
"""A row without anything in it: no text, no numbers."""


def flat_rows(report: Report) -> Iterator[dict[str, Any]]:
    """One dict a cell, keyed by `COLUMNS`, raw: scores 0 to 100, bytes as numbers, None where there is nothing.

    ``kind`` tells whole tasks, parts of one length, means, and what belongs to LongScore apart; ``memory`` is of whole
    tasks alone.
    """
    for line in report.lines:
        for column in report.columns:
            cell = report.cells.get((line, column))
            if cell is not None:
                yield {
                    "model": column.model,
                    "method": column.method,
                    "task": line.name,
                    "kind": line.kind,
                    "length": line.length,
                    "metric": line.metric,
                    "score": cell.score,
                    "low": cell.low,
                    "high": cell.high,
                    "n": cell.n,
                    "errors": cell.errors,
                    "filtered": cell.filtered,
                    "skipped": cell.skipped,
                    "kv_bytes": cell.kv_bytes,
                    "kv_bytes_full": cell.kv_bytes_full,
                    "ratio": cell.ratio,
                    "memory": cell.memory if line.kind == "task" else "",
                    "run": cell.run,
                }
    for row in () if report.longscore is None else longscore_rows(report.longscore):
        yield {**_EMPTY, **row}
