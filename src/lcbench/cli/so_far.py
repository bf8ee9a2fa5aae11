"""What a run has come to so far: samples, failures, scores and bytes of each method on each task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lcbench.errors import LcbenchError
from lcbench.reporting.words import short_names

if TYPE_CHECKING:
    from lcbench.store.rundir import RunDirectory
    from lcbench.store.schema import PredictionRecord

_SECONDS_FOR_OLD = 3.0  # scoring what an earlier call answered may take this long, then it is left to `lcbench score`
_MOST_COLUMNS = 3  # tasks that get a column each


@dataclass
class Cell:
    """One method on one task.

    Attributes:
        answered, failed: samples. scored, points: samples that have a score, and its sum (0 to 1 each).
        held, full: KV bytes of the answered samples, and of their full caches. simulated: whether they only count as
            dropped.
    """

    answered: int = 0
    failed: int = 0
    scored: int = 0
    points: float = 0.0
    held: int = 0
    full: int = 0
    simulated: bool = False

    @property
    def score(self) -> float | None:
        """Mean of what is scored, 0 to 100."""
        return 100 * self.points / self.scored if self.scored else None


@dataclass
class SoFar:
    """Adds up records as they come. Scores are means of what is there: no intervals, and failed samples in no mean.

    Attributes:
        methods, tasks: ids in the order of the run.
        whole: whether every answered sample was scored.
    """

    methods: Sequence[str]
    tasks: Sequence[str]
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    whole: bool = True
    _unscored: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, run: RunDirectory) -> SoFar:
        """A run's good records, as far as they can be scored in three seconds."""
        found = cls(run.methods, run.tasks)
        ends = time.monotonic() + _SECONDS_FOR_OLD
        for task in run.tasks:
            for method in run.methods_of(task):
                for record in run.records(method, task):
                    if record.ok:
                        found.add(method, task, record, score=time.monotonic() < ends)
        return found

    def add(self, method: str, task: str, record: PredictionRecord, *, score: bool = True) -> float | None:
        """Take a record; its score from 0 to 1, or None where it has none."""
        cell = self.cells.setdefault((method, task), Cell())
        if not record.ok:
            cell.failed += 1
            return None
        cell.answered += 1
        cell.held += record.kv_bytes or 0
        cell.full += record.kv_bytes_full or 0
        cell.simulated |= record.memory == "simulated"
        if task in self._unscored:
            return None
        value = self._score(task, record) if score else None
        if value is None:
            self.whole = self.whole and score
            return None
        cell.scored += 1
        cell.points += value
        return value

    def _score(self, task: str, record: PredictionRecord) -> float | None:
        from lcbench.scoring import score_row

        try:
            return score_row(task, record.pred, record.answers, record.all_classes)
        except LcbenchError:  # a task of another package, or answers that only a judge can grade
            self._unscored.add(task)
            return None

    def score(self, method: str, tasks: Sequence[str] | None = None) -> float | None:
        """Mean over tasks of a method's scores, of the tasks that have one."""
        scores = [self.cells[method, t].score for t in tasks or self.tasks if (method, t) in self.cells]
        there = [score for score in scores if score is not None]
        return sum(there) / len(there) if there else None

    def table(self, *, final: bool, most: int | None = None) -> Table:
        """Methods down; scores, bytes and failures across.

        Args:
            final: whether the run is at its end; else its scores are called "so far".
            most: rows at most; the rest is counted in a last one.
        """
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        each = len(self.tasks) <= _MOST_COLUMNS and final
        label = "score" if final and self.whole else "score so far"
        table.add_column("method", overflow="fold")
        table.add_column("samples", justify="right", no_wrap=True)
        names = short_names(self.tasks)
        for task in self.tasks if each else ():
            table.add_column(Text(f"{names[task]}\n{label}"), justify="right", overflow="fold")
        if not each:
            mean = f"\nmean of {len(self.tasks)} tasks" if len(self.tasks) > 1 else ""
            table.add_column(f"{label}{mean}", justify="right")
        table.add_column("KV bytes", justify="right")
        failed = any(cell.failed for cell in self.cells.values())
        if failed:
            table.add_column("failed", justify="right", no_wrap=True)
        shown = [m for m in self.methods if any((m, t) in self.cells for t in self.tasks)]
        for method in shown[:most]:
            own = [self.cells[method, t] for t in self.tasks if (method, t) in self.cells]
            columns = [[task] for task in self.tasks] if each else [list(self.tasks)]
            scores = [self.score(method, tasks) for tasks in columns]
            lost = sum(cell.failed for cell in own)
            table.add_row(
                Text(method),
                str(sum(cell.answered for cell in own)),
                *("" if score is None else f"{score:.1f}" for score in scores),
                Text(_bytes(own)),
                *([Text(str(lost) if lost else "", "red")] if failed else []),
            )
        if most is not None and len(shown) > most:
            table.add_row(Text(f"… {len(shown) - most} more", "dim"))
        return table


def _bytes(cells: Sequence[Cell]) -> str:
    """Share of the full cache that a method holds: ``25 % (4.0x less)``."""
    held, full = sum(cell.held for cell in cells), sum(cell.full for cell in cells)
    if not held or not full:
        return ""
    text = f"{100 * held / full:.1f} %"
    if full >= 1.05 * held:
        text += f" ({full / held:.1f}x less)"
    return text + (" simulated" if any(cell.simulated for cell in cells) else "")
