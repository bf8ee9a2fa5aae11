"""LongScores of several runs, and published ones, in one view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcbench.reporting import published
from lcbench.reporting.longscore.view import Entry, LongView, view
from lcbench.scoring.longscore.curve import Curve
from lcbench.scoring.longscore.plain import from_tasks, mean_of_curves
from lcbench.scoring.longscore.result import LongScores
from lcbench.tasks.facts import HUNDRED

TABLES = ("100-longbench-instruct", "100-longbench-base")
"""Published tables of 100-LongBench: by a judge, and by the original metrics."""


@dataclass(frozen=True)
class Part:
    """One run's share.

    Attributes:
        run: its folder. scores: the ``longscore`` part of its scores.json, None without one. judged: whether a judge
        graded it. labels: method id to (label, model) in the report.
    """

    run: str
    scores: Mapping[str, Any] | None
    judged: bool
    labels: Mapping[str, tuple[str, str]]


def merge(parts: Sequence[Part], *, with_published: bool = False) -> LongView | None:
    """The view of all parts; None when no run has LongScores.

    Args:
        with_published: set published models beside one's own, on the tasks that both have.
    """
    read = [(part, LongScores.from_dict(part.scores)) for part in parts if part.scores is not None]
    if not read:
        return None
    entries: dict[str, Entry] = {}
    notes = [note for _, scores in read for note in scores.notes]
    if len({scores.mode for _, scores in read}) > 1:
        notes.append("These runs were scored with different --mode: their bases differ, so LongScores do not compare.")
    if len({part.judged for part, _ in read}) > 1:
        notes.append("Some of these runs were graded by a judge and some not: QA and summaries do not compare.")
    for part, scores in read:
        for method, curves in scores.curves.items():
            label, model = part.labels.get(method, (method, ""))
            own = {curve.name: curve for curve in curves}
            before = entries.get(label)
            entries[label] = Entry(label, _joined(before, own), model=model, method=method)
    splits = [(part.run if len(read) > 1 else "", one) for part, scores in read for one in scores.splits]
    beside: list[Entry] = []
    if with_published:
        beside = published_entries()
        notes += _caution(any(part.judged for part, _ in read))
    return view(list(entries.values()), beside, splits, notes)


def _joined(before: Entry | None, own: Mapping[str, Curve]) -> Mapping[str, Curve]:
    """Curves of one column from two runs. The mean is made anew, without intervals: the samples are not here."""
    if before is None:
        return own
    merged = {**before.curves, **own}
    tasks = [curve for curve in merged.values() if curve.suite == HUNDRED and not curve.members]
    mean = mean_of_curves(tasks) if len(tasks) > 1 else None
    rest = {name: curve for name, curve in merged.items() if not curve.members}
    return rest if mean is None else {mean.name: mean, **rest}


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
