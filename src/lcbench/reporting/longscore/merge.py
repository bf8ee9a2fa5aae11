"""LongScores of several runs, and published ones, in one view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lcbench.reporting import published
from lcbench.reporting.longscore.view import Entry, LongView, view
from lcbench.scoring.longscore.curve import Curve
from lcbench.scoring.longscore.ladder import is_hundred
from lcbench.scoring.longscore.plain import from_tasks, mean_of_curves
from lcbench.scoring.longscore.result import LongScores

TABLES = ("100-longbench-instruct", "100-longbench-base")
"""Published tables of 100-LongBench: by a judge, and by the original metrics."""


@dataclass(frozen=True)
class Part:
    """The share of one run, or of several runs of one model.

    Attributes:
        where: its folder, or the model. scores: as the ``longscore`` part of scores.json, None without one. judged:
        whether a judge graded it. labels: method id to (label, model) in the report. task_scores: method id to task id
        to score, where these are all there is: runs of one model that a judge graded.
    """

    where: str
    scores: Mapping[str, Any] | None
    judged: bool
    labels: Mapping[str, tuple[str, str]]
    task_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def merge(parts: Sequence[Part], *, with_published: bool = False) -> LongView | None:
    """The view of all parts; None when no run has LongScores.

    Args:
        with_published: set published models beside one's own, on the tasks that both have.
    """
    read = [(part, LongScores.from_dict(part.scores)) for part in parts if part.scores is not None]
    entries = {one.label: one for part in parts for one in _from_scores(part)}
    if not read and not entries:
        return None
    notes = [note for _, scores in read for note in scores.notes]
    if len({scores.mode for _, scores in read}) > 1:
        notes.append("These runs were scored with different --mode: their bases differ, so LongScores do not compare.")
    if entries:
        notes.append("Runs of one model were graded by a judge one by one: put together they have no intervals.")
    if len({part.judged for part in parts}) > 1:
        notes.append("Some of these runs were graded by a judge and some not: QA and summaries do not compare.")
    for part, scores in read:
        for method, curves in scores.curves.items():
            label, model = part.labels.get(method, (method, ""))
            own = {curve.name: curve for curve in curves}
            before = entries.get(label)
            entries[label] = Entry(label, _joined(before, own), model=model, method=method)
    splits = [(part.where if len(read) > 1 else "", one) for part, scores in read for one in scores.splits]
    beside: list[Entry] = []
    if with_published:
        beside = published_entries()
        notes += _caution(any(part.judged for part in parts))
    return view(list(entries.values()), beside, splits, notes)


def _from_scores(part: Part) -> list[Entry]:
    """Entries of methods of which the scores of whole tasks are known alone."""
    found = []
    for method, scores in part.task_scores.items():
        tasks = from_tasks({task: score for task, score in scores.items() if is_hundred(task)})
        mean = mean_of_curves(tasks) if len(tasks) > 1 else None
        label, model = part.labels[method]
        curves = {curve.name: curve for curve in ([] if mean is None else [mean]) + tasks}
        if curves:
            found.append(Entry(label, curves, model=model, method=method))
    return found


def _joined(before: Entry | None, own: Mapping[str, Curve]) -> Mapping[str, Curve]:
    """Curves of one column from two runs that do not share all of their columns: the mean is left to each run."""
    if before is None:
        return own
    return {name: curve for name, curve in {**before.curves, **own}.items() if not curve.members}


def published_entries() -> list[Entry]:
    """The published models of 100-LongBench, each with the curves of its tasks."""
    found = []
    for name in TABLES:
        table = published.load(name)
        for row in table.rows:
            curves = {curve.name: curve for curve in from_tasks(row.scores)}
            found.append(Entry(row.model, curves, published=True, model=row.model, method=row.label))
    return found


def _caution(judged: bool) -> list[str]:
    """Where published scores do not compare with one's own."""
    sources = [published.load(name) for name in TABLES]
    notes = [f"† {table.title}: {table.source} ({table.paper}). {' '.join(table.notes)}" for table in sources]
    other = "those of the base models are not" if judged else "those of the instruct models are"
    notes.append(
        f"QA and summaries are graded by {'a judge' if judged else 'the original metrics'} here; {other} graded by a "
        "judge: on these tasks, and in means with them, they do not compare."
    )
    return notes
