"""The tables that ``lcbench score`` prints, made to fit 80 columns: tasks with their lengths, extra ROUGE, means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from lcbench.scoring.table import GroupScore, Interval, LengthScore, MethodScores, ScoreTable, TaskScore

_LEAST_TASK, _LEAST_METRIC = 14, 6
"""Letters across that names get at least: more lines, rather than cropped numbers."""


def tables_of(method: MethodScores, console: Console) -> list[Table]:
    """The tables of one method, in reading order, for the width of ``console``."""
    tasks = _tasks(method)
    # Columns of numbers are cropped where there is no room: then intervals go below their scores.
    if not _fit_names(tasks, console.width):
        tasks = _tasks(method, narrow=True)
        _fit_names(tasks, console.width)
    tables = [tasks]
    if any(one.columns for one in method.tasks.values()):
        tables.append(_google_rouge(method))
    means = _worth_showing(method)
    if means:
        tables.append(_means(method, means))
    return tables


def _fit_names(grid: Table, width: int) -> bool:
    """Give the first two columns, which may fold, what the numbers leave of ``width``; whether that is enough."""
    shown = [[Text.from_markup(str(cell)).plain for cell in (c.header, *c.cells)] for c in grid.columns]
    task, metric, *numbers = [max(len(line) for cell in cells for line in cell.splitlines()) for cells in shown]
    _, right, _, left = grid.padding
    between = 1 + left + right  # the box draws a blank between columns, and one at each end
    room = width - sum(numbers) - between * (len(numbers) + 1) - 2
    grid.columns[0].width = min(task, max(_LEAST_TASK, room - metric))
    grid.columns[1].width = min(metric, max(_LEAST_METRIC, room - grid.columns[0].width))
    return grid.columns[0].width + grid.columns[1].width <= room


def _tasks(method: MethodScores, *, narrow: bool = False) -> Table:
    """One line a task, and below it one for each length, where it has several."""
    scores = list(method.tasks.values())
    partial = any(s.partial is not None for s in scores)
    judged = any(s.n_filtered or s.n_judge_failed for s in scores)
    grid = Table(box=SIMPLE_HEAD, padding=(0, 0) if narrow else (0, 1), pad_edge=False)
    grid.add_column("task", overflow="fold")
    grid.add_column("metric", overflow="fold")
    skipped = any(s.n_skipped for s in scores)
    fates = [*(["skipped"] if skipped else []), *(["filtered", "no verdict"] if judged else [])]
    found = ["score\n95 %"] if narrow else ["score", "95 % interval"]
    for title in ("n", "errors", *fates, *found, *(["partial"] if partial else [])):
        grid.add_column(title.replace("no verdict", "no\nverdict") if narrow else title, justify="right", no_wrap=True)
    for one in scores:
        more = [str(one.n_skipped)] if skipped else []
        more += [str(one.n_filtered), str(one.n_judge_failed)] if judged else []
        grid.add_row(escape(one.task), escape(one.metric), *_cells(one, partial, more, narrow))
        lengths = [length for length, s in one.by_length.items() if s.n or s.n_error or s.n_skipped]
        for length in sorted(lengths, key=_place) if len(one.by_length) > 1 else ():
            part = one.by_length[length]
            own = [str(part.n_skipped or ""), *[""] * (len(more) - 1)] if skipped else [""] * len(more)
            grid.add_row(f"  length {escape(length)}", "", *_cells(part, partial, own, narrow))
    return grid


def _place(length: str) -> float:
    """Where a length belongs: by its number ("384"), or by the first of its bucket ("4-8k")."""
    number = re.match(r"\d+(\.\d+)?", length)
    return float(number.group()) if number else 0.0


def _cells(one: TaskScore | LengthScore, partial: bool, fates: Sequence[str], narrow: bool) -> list[str]:
    errors = f"[red]{one.n_error}[/]" if one.n_error else "0"
    found = [_number(one.partial)] if partial else []
    score = [_number(one.score), _interval(one.interval)]
    if narrow:
        score = ["\n".join(text for text in score if text != "-") or "-"]
    return [str(one.n), errors, *fates, *score, *found]


def _google_rouge(method: MethodScores) -> Table:
    """Google's ROUGE in a table of its own: these numbers are not LongBench's and enter no mean."""
    scores = [one for one in method.tasks.values() if one.columns]
    columns = list(dict.fromkeys(name for one in scores for name in one.columns))
    grid = Table("Google rouge-score", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for title in columns:
        grid.add_column(title, justify="right", no_wrap=True)
    for one in scores:
        grid.add_row(escape(one.task), *(_number(one.columns.get(name)) for name in columns))
    return grid


def _worth_showing(method: MethodScores) -> dict[str, GroupScore]:
    """Every category, and the overall means of at least two tasks that do not say the same as one above."""
    shown: dict[str, GroupScore] = {}
    seen: set[tuple[str, ...]] = set()
    for key, one in [*method.categories.items(), *method.overall.items()]:
        tasks = [t for m in one.members for t in (method.categories[m].members if m in method.categories else [m])]
        if key in method.categories or (len(tasks) > 1 and (one.complete or tuple(tasks) not in seen)):
            shown[key] = one
        seen.add(tuple(tasks))
    return shown


def _means(method: MethodScores, groups: dict[str, GroupScore]) -> Table:
    buckets = list(dict.fromkeys(b for g in groups.values() for b, v in g.by_length.items() if v is not None))
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    grid.add_column("mean over", overflow="fold")
    for title in ("tasks", "score", "95 % interval", *buckets):
        grid.add_column(title, justify="right")
    first = next((key for key in groups if key in method.overall), None)
    for key, one in groups.items():
        if key == first:
            grid.add_section()
        grid.add_row(
            escape(one.label if key in method.overall else key),
            str(one.n_tasks) if one.complete else f"{one.n_tasks} of {one.of_tasks}",
            _number(one.score),
            _interval(one.interval),
            *(_number(one.by_length.get(b)) for b in buckets),
        )
    return grid


def intervals_of(table: ScoreTable) -> Iterator[Interval]:
    """The intervals of all tasks, lengths and means."""
    for method in table.methods.values():
        tasks = method.tasks.values()
        found = [one.interval for one in tasks] + [part.interval for one in tasks for part in one.by_length.values()]
        found += [one.interval for one in (*method.categories.values(), *method.overall.values())]
        yield from (interval for interval in found if interval is not None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(value: Interval | None) -> str:
    return "-" if value is None else f"{value[0]:.1f}–{value[1]:.1f}"
