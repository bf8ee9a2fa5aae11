"""What is scored: the predictions of one task by one method, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lcbench.store.schema import PredictionRecord
from lcbench.tasks.facts import TaskFacts

LONGBENCH = "longbench"
LONGBENCH_E = "longbench-e"


@dataclass(frozen=True)
class Sample:
    """One prediction.

    Attributes:
        prediction: the generated text, uncut.
        answers: accepted answers.
        all_classes: labels of its own row; the official scorer uses those of the last row for all.
        length: published length of the row, None when the file has none.
        ok: False for a sample that failed; it has no score, and is counted.
        cluster: equal for samples whose prompts share a context; None when that is not known.
        where: the line or row, for messages.
        meta: what the task recorded (passkey: length in words, depth, repeat).
        id: of the row, "" where the file has none.
        cut: whether its prompt had to be shortened.
    """

    prediction: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...] | None = None
    length: float | None = None
    ok: bool = True
    cluster: str | None = None
    where: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    cut: bool = False


@dataclass(frozen=True)
class TaskSamples:
    """All predictions of one task by one method, in file order.

    Attributes:
        task: task id, as the predictions file is named.
        facts: category, metric and cut of the task.
        benchmark: "longbench", "longbench-e", "passkey", …; decides how lengths are grouped.
        samples: in file order.
        source: file name, for messages.
        versions: versions of the task definition found in the records, ascending.
        skipped: prompts of the task that were longer than the window and never asked.
        skipped_lengths: how many of each length, where the run says so.
        pending: the run asks for it and has no answer yet.
    """

    task: str
    facts: TaskFacts
    benchmark: str
    samples: tuple[Sample, ...]
    source: str
    versions: tuple[int, ...] = ()
    skipped: int = 0
    skipped_lengths: Mapping[str, int] = field(default_factory=dict)
    pending: bool = False

    @property
    def all_classes(self) -> tuple[str, ...] | None:
        """The labels of the last row, which the official scorer uses for every row of a file."""
        return self.samples[-1].all_classes if self.samples else None


def from_record(record: PredictionRecord, where: str) -> Sample:
    """A sample from a record of a run directory."""
    classes = record.all_classes
    return Sample(
        prediction=record.pred,
        answers=tuple(record.answers),
        all_classes=None if classes is None else tuple(classes),
        length=record.length,
        ok=record.ok,
        cluster=cluster_key(record.meta, None),
        where=where,
        meta=record.meta,
        id=record.id,
        cut=record.truncated_from is not None,
    )


def cluster_key(meta: Mapping[str, Any], context: str | None) -> str | None:
    """What tells that two rows share a context: the record's own mark, or a hash of the context where a file has it."""
    marked = meta.get("context_id")
    if isinstance(marked, str | int):
        return str(marked)
    return hashlib.sha256(context.encode("utf-8", "surrogatepass")).hexdigest()[:16] if context else None


def task_versions(records: Sequence[PredictionRecord]) -> tuple[int, ...]:
    """Versions of the task definition in ``records``, ascending."""
    return tuple(sorted({record.task_version for record in records}))
