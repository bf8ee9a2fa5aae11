"""The report as Markdown (GitHub's tables): scores, then KV bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lcbench.reporting.efficiency import efficiency_notes
from lcbench.reporting.efficiency_table import cells_of, columns_of
from lcbench.reporting.table import Cell, Report
from lcbench.reporting.words import bytes_text, clean, interval_text, ratio_text, score_text


def render(report: Report) -> str:
    """Two tables, a third where the efficiency bench was run, and the notes; ends in a newline."""
    tasks = [line for line in report.lines if line.kind == "task"]
    labels = [_escape(report.label(column)) for column in report.columns]
    scores = [["task", "metric", "n", "errors", *labels]]
    for line in report.lines:
        cells = [report.cells.get((line, column)) for column in report.columns]
        failed = str(report.failures(line)) if line.kind != "mean" else ""
        name = _escape(line.title) if line.kind != "mean" else f"**{_escape(line.name)}**"
        scores.append([name, _escape(line.metric), report.samples(line), failed, *(_score(cell) for cell in cells)])
    kept = [["task", *labels]]
    for line in tasks:
        kept.append([_escape(line.name), *(_kept(report.cells.get((line, column))) for column in report.columns)])
    parts = ["Score (0 to 100) and 95 % interval", "", *_table(scores, left=2)]
    parts += [
        "",
        "KV bytes kept, mean a sample, and how many times the full cache is larger",
        "",
        *_table(kept, left=1),
    ]
    if not report.lines:
        parts = []
    notes = list(report.notes)
    if report.efficiency:
        parts += [""] * bool(parts) + _efficiency(report)
        notes += efficiency_notes(report.efficiency)
    if notes:
        parts += ["", *(f"- {_escape(note)}" for note in notes)]
    return "\n".join(parts) + "\n"


def _efficiency(report: Report) -> list[str]:
    columns = columns_of(report.efficiency)
    rows = [columns, *([_escape(text) for text in cells_of(row, columns)] for row in report.efficiency)]
    return ["Speed and memory, each method alone", "", *_table(rows, left=1)]


def _score(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = " ".join(piece for piece in (score_text(cell.score), interval_text(cell.low, cell.high)) if piece)
    return f"{text} ({_count(cell.errors, 'error')})" if cell.errors else text


def _kept(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = bytes_text(cell.kv_bytes)
    if cell.ratio is not None:
        text += f" ({ratio_text(cell.ratio)})"
    return f"{text} simulated" if cell.memory == "simulated" else text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    rule = ["---" if i < left else "---:" for i in range(len(rows[0]))]
    return [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]


def _escape(text: str) -> str:
    """``text`` so that Markdown and HTML show it as it is."""
    shown = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~!])", r"\\\1", shown)
