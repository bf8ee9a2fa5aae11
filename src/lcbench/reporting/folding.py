"""A report with its tasks folded into their categories, for where there is no room for all."""

from __future__ import annotations

import statistics
from dataclasses import replace

from lcbench.reporting.table import Cell, Column, Line, Report


def foldable(report: Report) -> int:
    """Number of tasks that folding would hide."""
    return len({name for line in report.lines if line.category for name in line.members})


def folded(report: Report) -> Report:
    """Categories of two tasks and more as one line each, in the place of their first task; all else as it was.

    A category's bytes are the mean over its tasks; its line names how many they are.
    """
    categories = [line for line in report.lines if line.category]
    hidden = {name for line in categories for name in line.members}
    lines: list[Line] = []
    cells = dict(report.cells)
    for line in report.lines:
        if line.kind != "mean" and line.name in hidden:
            for category in categories:
                made = _as_task(category)
                if line.name in category.members and made not in lines:
                    lines.append(made)
                    cells.update(_cells(report, category, made))
        elif not line.category:
            lines.append(line)
    note = f"{len(hidden)} tasks are folded into their categories; --every-task shows each"
    kept = {(line, column): cell for (line, column), cell in cells.items() if line in lines}
    return replace(report, lines=tuple(lines), cells=kept, notes=(note, *report.notes))


def _as_task(category: Line) -> Line:
    name, _, part = category.name.partition(", part:")
    return Line(name, f"{len(category.members)} {'of its ' if part else ''}tasks", members=category.members)


def _cells(report: Report, category: Line, made: Line) -> dict[tuple[Line, Column], Cell]:
    result = {}
    for column in report.columns:
        cell = report.cells.get((category, column))
        if cell is None:
            continue
        own = [
            one
            for line in report.lines
            if line.kind == "task"
            and line.name in category.members
            and (one := report.cells.get((line, column))) is not None
        ]
        kept = [one.kv_bytes for one in own if one.kv_bytes is not None]
        full = [one.kv_bytes_full for one in own if one.kv_bytes_full is not None]
        result[made, column] = replace(
            cell,
            n=sum(one.n for one in own),
            errors=sum(one.errors for one in own),
            filtered=sum(one.filtered for one in own),
            skipped=sum(one.skipped for one in own),
            kv_bytes=statistics.fmean(kept) if kept else None,
            kv_bytes_full=statistics.fmean(full) if full else None,
            memory="simulated" if any(one.memory == "simulated" for one in own) else "real",
        )
    return result
