"""The report as CSV: one row a method and task, raw numbers, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io

from lcbench.reporting.longscore.data import rows
from lcbench.reporting.table import Report
from lcbench.reporting.words import clean

HEADER = (
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
    "kv_bytes",
    "kv_bytes_full",
    "ratio",
    "memory",
    "run",
    "notes",
)
# What makes a spreadsheet read a cell as a formula, full-width forms included.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def render(report: Report) -> str:
    """Comma-separated text with a header, lines ending in LF; scores 0 to 100, bytes as whole numbers.

    ``kind`` tells whole tasks, parts of one length, means, and what belongs to LongScore apart.
    The notes are repeated in every row, so that a row taken out of the file still says what it is.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    notes = _text(" | ".join(report.notes), longest=5000)
    for line in report.lines:
        for column in report.columns:
            cell = report.cells.get((line, column))
            if cell is None:
                continue
            writer.writerow(
                [
                    _text(column.model),
                    _text(column.method),
                    _text(line.name),
                    line.kind,
                    _text(line.length),
                    _text(line.metric),
                    _number(cell.score, 4),
                    _number(cell.low, 4),
                    _number(cell.high, 4),
                    cell.n,
                    cell.errors,
                    _number(cell.kv_bytes, 0),
                    _number(cell.kv_bytes_full, 0),
                    _number(cell.ratio, 4),
                    cell.memory if line.kind == "task" else "",
                    _text(cell.run),
                    notes,
                ]
            )
    for row in () if report.longscore is None else rows(report.longscore):
        named = {**dict.fromkeys(HEADER, ""), **row, "notes": notes}
        writer.writerow([_text(v) if k in ("model", "method", "task", "length") else v for k, v in named.items()])
    return buffer.getvalue()


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _text(text: str, longest: int = 300) -> str:
    shown = clean(text, longest)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown
