"""The report as Markdown (GitHub's tables): scores, then KV bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lcbench.reporting.efficiency import EfficiencyRow, efficiency_notes
from lcbench.reporting.efficiency_table import cells_of, columns_of
from lcbench.reporting.gfm import escape, table_lines
from lcbench.reporting.longscore import markdown as longscore
from lcbench.reporting.table import Cell, Report
from lcbench.reporting.words import bytes_text, explained, interval_text, ratio_text, score_text, short_names


def render(report: Report) -> str:
    """Two tables, a third where the efficiency bench was run, and the notes; ends in a newline."""
    tasks = [line for line in report.lines if line.kind == "task"]
    labels = [escape(report.label(column)) for column in report.columns]
    names = short_names(line.name for line in tasks)
    scores = [["task", "metric", "n", "errors", *labels]]
    for line in report.lines:
        cells = [report.cells.get((line, column)) for column in report.columns]
        failed = str(report.failures(line)) if line.kind != "mean" else ""
        shown = replace(line, name=names.get(line.name, line.name))
        name = escape(shown.title) if line.kind != "mean" else f"**{escape(line.name)}**"
        scores.append([name, escape(line.metric), report.samples(line), failed, *(_score(cell) for cell in cells)])
    kept = [["task", *labels]]
    for line in tasks:
        kept.append([escape(names[line.name]), *(_kept(report.cells.get((line, column))) for column in report.columns)])
    parts = ["Score (0 to 100) and 95 % interval", "", *table_lines(scores, left=2)]
    parts += [
        "",
        "KV bytes kept, mean a sample, and how many times the full cache is larger",
        "",
        *table_lines(kept, left=1),
    ]
    if not report.lines:
        parts = []
    notes = [*explained(names), *report.notes]
    if notes:
        parts += ["", *(f"- {escape(note)}" for note in notes)]
    if report.longscore is not None:
        parts += longscore.lines(report.longscore)
    if report.efficiency:
        parts += [""] * bool(parts) + _efficiency(report.efficiency)
    return "\n".join(parts) + "\n"


def _efficiency(rows: Sequence[EfficiencyRow]) -> list[str]:
    columns = columns_of(rows)
    table = [columns, *([escape(text) for text in cells_of(row, columns)] for row in rows)]
    notes = [f"- {escape(note)}" for note in efficiency_notes(rows)]
    return ["Speed and memory, each method alone", "", *table_lines(table, left=1), "", *notes]


def _score(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = " ".join(piece for piece in (score_text(cell.score), interval_text(cell.low, cell.high)) if piece)
    unscored = [_count(cell.errors, "error")] if cell.errors else []
    unscored += [f"{cell.filtered} filtered"] if cell.filtered else []
    unscored += [f"{cell.skipped} skipped"] if cell.skipped else []
    return f"{text} ({', '.join(unscored)})" if unscored else text


def _kept(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = bytes_text(cell.kv_bytes)
    if cell.ratio is not None:
        text += f" ({ratio_text(cell.ratio)})"
    return f"{text} simulated" if cell.memory == "simulated" else text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
