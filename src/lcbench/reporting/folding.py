"""A report with its tasks folded into their categories, for where there is no room for all."""

from __future__ import annotations

import statistics
from dataclasses import replace

from lcbench.reporting.table import Cell, Column, Line, Report


def foldable(report: Report) -> int:
    """Number of tasks that folding would hide."""
    return len({name for line in _foldable(report) for name in line.members})


def _foldable(report: Report) -> list[Line]:
    """Categories that say something of every score they would hide.

    In merged runs, a method may have one task of a category only and so no mean over it: then its tasks stay.
    """
    categories: dict[str, list[Line]] = {}
    for line in report.lines:
        if line.category:
            categories.setdefault(_category(line), []).append(line)
    tasks = [(line.name, column) for line, column in report.cells if line.kind == "task"]
    found = []
    for own in categories.values():
        members = {name for line in own for name in line.members}
        said = {(name, column) for line, column in report.cells if line in own for name in line.members}
        if all(task in said for task in tasks if task[0] in members):
            found += own
    return found


def _category(line: Line) -> str:
    return line.name.partition(", part:")[0]


def folded(report: Report) -> Report:
    """Categories of two tasks and more as one line each, in the place of their first task; all else as it was.

    A category stays on a line a task where its mean would leave out a method's score. A category's bytes are the mean
    over its tasks; its line names how many they are.
    """
    categories = _foldable(report)
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
    count, _, which = part.partition(",")  # "3 tasks", and where several parts of one size differ, "set 1"
    metric = f"{len(category.members)} {'of its ' if count else ''}tasks" + (f",{which}" if which else "")
    return Line(name, metric, members=category.members)


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
