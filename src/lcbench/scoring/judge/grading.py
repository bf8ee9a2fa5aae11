"""What has to be asked about the predictions of a run, and the scores that follow from the verdicts.

The order is the reference's: first the answers given without the context, whose questions leave the count when they
are good enough (QA filter); then what is left. A row whose verdict cannot be had has no score; it is never a 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lcbench.scoring.judge.asking import Asker
from lcbench.scoring.judge.rubric import Grades, Kind, Question, prompts_sha256, qa_score, summary_score
from lcbench.scoring.longscore.ladder import split_task
from lcbench.scoring.rows import scored_text
from lcbench.scoring.samples import Sample, TaskSamples
from lcbench.store.schema import PredictionRecord
from lcbench.tasks.facts import HUNDRED

QA, SUMMARY = "qa_f1", "rouge"
METRIC = {QA: "qa_judge", SUMMARY: "summary_judge"}
"""Original metric to the judged one that takes its place."""
THRESHOLD = 0.5
"""QA filter: a question whose answer without the context scores this much leaves the count."""
UNANSWERABLE = "unanswerable"


@dataclass(frozen=True)
class Failure:
    """A row without a verdict."""

    method: str
    task: str
    sample: str
    reason: str


@dataclass(frozen=True)
class Verdicts:
    """Scores of one task by one method.

    Attributes:
        values: for each sample its score, None without one. filtered, failed: indices. unfiltered: rows of a question
        that has no answer without the context.
    """

    values: tuple[tuple[float] | None, ...]
    filtered: frozenset[int]
    failed: frozenset[int]
    unfiltered: int = 0


@dataclass
class Grading:
    """Grades the question answering and summary tasks of 100-LongBench.

    Attributes:
        asker: asks the judge. threshold: of the QA filter; 0 turns it off. failures: rows without a verdict.
    """

    asker: Asker
    threshold: float = THRESHOLD
    failures: list[Failure] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What scores.json says about the judge."""
        return {
            **self.asker.judge.identity,
            "qa_filter": self.threshold,
            "prompts_sha256": prompts_sha256(),
            "failures": [asdict(one) for one in self.failures],
        }

    def grade(
        self, methods: Mapping[str, Sequence[TaskSamples]], without_context: Mapping[str, Sequence[PredictionRecord]]
    ) -> dict[tuple[str, str], Verdicts]:
        """Verdicts by method and task id, for the tasks a judge grades.

        Args:
            methods: method id to its tasks. without_context: task name without a length to the answers given without
            the context.

        Raises:
            NetworkError, UsageError: from the judge. Whatever ``confirm`` raises.
        """
        jobs = [
            _Job(method, task, self._rows(task, without_context))
            for method, tasks in methods.items()
            for task in tasks
            if is_judged(task)
        ]
        rows = [row for job in jobs for row in job.rows]
        first = [question for row in rows for question in row.first]
        self.asker.recall([*first, *(question for row in rows for question in row.main)])
        # Before the first round is answered, all of the second may be needed.
        self.asker.preview([*first, *(question for row in rows for question in self._second(row, unknown=row.main))])
        self.asker.ask(first)
        self.asker.ask([question for row in rows for question in self._second(row)])
        return {(job.method, job.task.task): self._verdicts(job) for job in jobs}

    # -- what is asked -----------------------------------------------------------------------------------------------

    def _rows(self, task: TaskSamples, without: Mapping[str, Sequence[PredictionRecord]]) -> list[_Row]:
        answers: dict[str, PredictionRecord] = {}
        if self.threshold > 0 and task.facts.metric == QA:
            answers = {_question_id(record.meta): record for record in without.get(_bare(task.task), ())}
        rows = []
        for index, sample in enumerate(task.samples):
            asked = _question_id(sample.meta)
            other = answers.get(asked) if asked else None
            text = scored_text(task.facts, other.pred) if other is not None and other.ok else None
            rows.append(_row(task, index, sample, text))
        return rows

    def _second(self, row: _Row, unknown: tuple[Question, ...] = ()) -> tuple[Question, ...]:
        """Questions of the second round that the first has not made needless; ``unknown`` before it is answered."""
        if not all(question in self._grades for question in row.first):
            return unknown
        if isinstance(self._best(row.alone, qa_score), str) or self._filtered(row):
            return ()
        if row.fluency is not None:
            grades = self._grades[row.fluency]
            # Without fluency the score is 0 whatever the precision.
            return row.main if not isinstance(grades, str) and grades["fluency"] else ()
        return row.main

    @property
    def _grades(self) -> Mapping[Question, Grades | str]:
        return self.asker.grades

    # -- what follows from it ----------------------------------------------------------------------------------------

    def _best(self, questions: Sequence[Question], score: Callable[[Grades], float]) -> float | str:
        """Best score over the accepted answers, or why there is none: one missing verdict could be the best."""
        best = 0.0
        for question in questions:
            grades = self._grades[question]
            if isinstance(grades, str):
                return grades
            best = max(best, score(grades))
        return best

    def _filtered(self, row: _Row) -> bool:
        """Whether the question was answered well enough without its context."""
        best = self._best(row.alone, qa_score)
        return bool(row.alone) and not isinstance(best, str) and best >= self.threshold

    def _score(self, job: _Job, row: _Row) -> float | str:
        if not row.main and row.fluency is None:
            return 0.0  # an empty prediction
        if job.task.facts.metric == QA:
            return self._best(row.main, qa_score)
        assert row.fluency is not None
        fluency = self._grades[row.fluency]
        if isinstance(fluency, str):
            return fluency
        if not fluency["fluency"]:
            return 0.0
        return self._best(row.main, lambda precision: summary_score(fluency, precision))

    def _verdicts(self, job: _Job) -> Verdicts:
        values: list[tuple[float] | None] = [None] * len(job.rows)
        filtered, failed = set(), set()
        for row in job.rows:
            if not row.ok:
                continue
            if self._filtered(row):
                filtered.add(row.index)
                continue
            alone = self._best(row.alone, qa_score)
            score = alone if isinstance(alone, str) else self._score(job, row)
            if isinstance(score, str):
                failed.add(row.index)
                self.failures.append(Failure(job.method, job.task.task, row.sample, score))
            else:
                values[row.index] = (score,)
        filters = self.threshold > 0 and job.task.facts.metric == QA
        unfiltered = sum(row.ok and not row.has_answer_without for row in job.rows) if filters else 0
        return Verdicts(tuple(values), frozenset(filtered), frozenset(failed), unfiltered)


def is_judged(task: TaskSamples) -> bool:
    """Whether a judge grades this task: question answering and summaries of 100-LongBench."""
    return task.benchmark == HUNDRED and task.facts.metric in METRIC


@dataclass(frozen=True)
class _Row:
    """One row. alone: questions about the answer without the context. main: about the prediction (QA), or its
    precision (summaries); empty for an empty prediction."""

    index: int
    sample: str
    ok: bool
    alone: tuple[Question, ...]
    fluency: Question | None
    main: tuple[Question, ...]
    has_answer_without: bool

    @property
    def first(self) -> tuple[Question, ...]:
        """Questions of the first round: their verdicts can make the others needless."""
        return self.alone if self.fluency is None else (*self.alone, self.fluency)


@dataclass(frozen=True)
class _Job:
    method: str
    task: TaskSamples
    rows: list[_Row]


def _row(task: TaskSamples, index: int, sample: Sample, without: str | None) -> _Row:
    """``without``: what the model answered without the context, None when that is not known."""
    kind: Kind = "qa" if task.facts.metric == QA else "precision"
    asked = str(sample.meta.get("question") or "")
    text = scored_text(task.facts, sample.prediction)
    text = text.strip() if kind == "precision" else text
    main: tuple[Question, ...] = ()
    alone: tuple[Question, ...] = ()
    if sample.ok and text:
        main = tuple(Question(kind, text, answer, asked if kind == "qa" else "") for answer in sample.answers)
    if sample.ok and without and UNANSWERABLE not in without.lower():
        alone = tuple(Question("qa", without, answer, asked) for answer in sample.answers)
    return _Row(
        index,
        sample.id or sample.where,
        sample.ok,
        alone,
        Question("fluency", text) if main and kind == "precision" else None,
        main,
        without is not None,
    )


def _question_id(meta: Mapping[str, Any]) -> str:
    """What joins a row with the same question asked without its context; "" where the task does not say."""
    value = meta.get("question_id")
    return value if isinstance(value, str) else ""


def _bare(task: str) -> str:
    """Task id without its length, other options kept: what joins a task with its answers without context."""
    split = split_task(task)
    return split[0] if split else task
