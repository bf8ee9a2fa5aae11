"""The report as CSV: one row a method and task, raw numbers, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from typing import Any

from lcbench.reporting.rows import COLUMNS, flat_rows
from lcbench.reporting.table import Report
from lcbench.reporting.words import clean

# What makes a spreadsheet read a cell as a formula, full-width forms included.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_DIGITS = {"score": 4, "low": 4, "high": 4, "ratio": 4, "kv_bytes": 0, "kv_bytes_full": 0}


def render(report: Report) -> str:
    """Comma-separated text with a header, lines ending in LF; scores 0 to 100, bytes as whole numbers.

    ``kind`` tells whole tasks, parts of one length, means, and what belongs to LongScore apart.
    The notes are repeated in every row, so that a row taken out of the file still says what it is.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*COLUMNS, "notes"])
    notes = _text(" | ".join(report.notes), longest=5000)
    for row in flat_rows(report):
        writer.writerow([*(_field(name, row[name]) for name in COLUMNS), notes])
    return buffer.getvalue()


def _field(name: str, value: Any) -> Any:
    if name in _DIGITS:
        return "" if value is None else f"{value:.{_DIGITS[name]}f}"
    return _text(value) if isinstance(value, str) else value if value is not None else ""


def _text(text: str, longest: int = 300) -> str:
    shown = clean(text, longest)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown
