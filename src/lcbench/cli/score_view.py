"""The tables that ``lcbench score`` prints, made to fit 80 columns: tasks with their lengths, extra ROUGE, means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from lcbench.scoring.table import GroupScore, Interval, LengthScore, MethodScores, TaskScore


def tables_of(method: MethodScores) -> list[Table]:
    """The tables of one method, in reading order."""
    tables = [_tasks(method)]
    if any(one.columns for one in method.tasks.values()):
        tables.append(_google_rouge(method))
    means = _worth_showing(method)
    if means:
        tables.append(_means(method, means))
    return tables


def _tasks(method: MethodScores) -> Table:
    """One line a task, and below it one for each length, where it has several."""
    scores = list(method.tasks.values())
    partial = any(s.partial is not None for s in scores)
    judged = any(s.n_filtered or s.n_judge_failed for s in scores)
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    grid.add_column("task", overflow="fold", min_width=min(14, max(len(s.task) for s in scores)))
    grid.add_column("metric", overflow="fold")
    skipped = any(s.n_skipped for s in scores)
    fates = [*(["skipped"] if skipped else []), *(["filtered", "no verdict"] if judged else [])]
    for title in ("n", "errors", *fates, "score", "95 % interval", *(["partial"] if partial else [])):
        grid.add_column(title, justify="right", no_wrap=True)
    for one in scores:
        more = [str(one.n_skipped)] if skipped else []
        more += [str(one.n_filtered), str(one.n_judge_failed)] if judged else []
        grid.add_row(escape(one.task), escape(one.metric), *_cells(one, partial, more))
        lengths = [length for length, s in one.by_length.items() if s.n or s.n_error or s.n_skipped]
        for length in sorted(lengths, key=_place) if len(one.by_length) > 1 else ():
            part = one.by_length[length]
            own = [str(part.n_skipped or ""), *[""] * (len(more) - 1)] if skipped else [""] * len(more)
            grid.add_row(f"  length {escape(length)}", "", *_cells(part, partial, own))
    return grid


def _place(length: str) -> float:
    """Where a length belongs: by its number ("384"), or by the first of its bucket ("4-8k")."""
    number = re.match(r"\d+(\.\d+)?", length)
    return float(number.group()) if number else 0.0


def _cells(one: TaskScore | LengthScore, partial: bool, fates: Sequence[str]) -> list[str]:
    errors = f"[red]{one.n_error}[/]" if one.n_error else "0"
    found = [_number(one.partial)] if partial else []
    return [str(one.n), errors, *fates, _number(one.score), _interval(one.interval), *found]


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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(value: Interval | None) -> str:
    return "-" if value is None else f"{value[0]:.1f}–{value[1]:.1f}"
