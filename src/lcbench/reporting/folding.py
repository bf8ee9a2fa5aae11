"""A report with its tasks folded into their categories, for where there is no room for all."""

from __future__ import annotations

import statistics
from dataclasses import replace

from lcbench.reporting.table import Cell, Column, Line, Report
from lcbench.tasks.facts import HUNDRED


def foldable(report: Report) -> int:
    """Number of tasks that folding would hide."""
    return len({name for line in _foldable(_with_lengths(report)) for name in line.members})


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


def _with_lengths(report: Report) -> Report:
    """With a mean over the lengths of each task of 100-LongBench, whose every length is a task of its own.

    Only where the scores at each length stand in the report as well, among those over length.
    """
    if report.longscore is None:
        return report
    lengths: dict[str, list[Line]] = {}
    for line in report.lines:
        if line.kind == "task" and line.name.startswith(f"{HUNDRED}/"):
            lengths.setdefault(line.name.partition("@")[0], []).append(line)
    added: dict[tuple[Line, Column], Cell] = {}
    for task, own in lengths.items():
        mean = Line(task, kind="mean", members=tuple(line.name for line in own), category=True)
        for column in report.columns:
            scores = [cell.score for line in own if (cell := report.cells.get((line, column))) is not None]
            known = [score for score in scores if score is not None]
            if len(own) > 1 and len(known) == len(own):
                added[mean, column] = Cell(statistics.fmean(known))
    means = tuple(dict.fromkeys(line for line, _ in added))
    return replace(report, lines=(*report.lines, *means), cells={**report.cells, **added})


def folded(report: Report) -> Report:
    """Categories of two tasks and more as one line each, in the place of their first task; all else as it was.

    A category stays on a line a task where its mean would leave out a method's score. A category's bytes are the mean
    over its tasks; its line names how many they are.
    """
    report = _with_lengths(report)
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
    what = "their categories"
    if any(category.name.startswith(f"{HUNDRED}/") for category in categories):
        every = all(category.name.startswith(f"{HUNDRED}/") for category in categories)
        what = "means over their lengths" if every else "their categories and means over their lengths"
    note = f"{len(hidden)} tasks are folded into {what}; --every-task shows each"
    kept = {(line, column): cell for (line, column), cell in cells.items() if line in lines}
    return replace(report, lines=tuple(lines), cells=kept, notes=(note, *report.notes))


def _as_task(category: Line) -> Line:
    name, _, part = category.name.partition(", part:")
    count, _, which = part.partition(",")  # "3 tasks", and where several parts of one size differ, "set 1"
    if category.name.startswith(f"{HUNDRED}/"):
        return Line(name, f"{len(category.members)} lengths", members=category.members)
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
