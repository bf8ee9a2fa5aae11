"""Verdicts of a judge in the place of a task's own metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lcbench.scoring.aggregate import task_score
from lcbench.scoring.bootstrap import Bootstrap, Replicates
from lcbench.scoring.judge.grading import METRIC, Grading, Verdicts
from lcbench.scoring.longscore.ladder import Scored, is_no_context
from lcbench.scoring.samples import TaskSamples
from lcbench.scoring.table import TaskScore
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord
from lcbench.tasks.hundred.names import NO_CONTEXT

ASKED_ONCE_BY = "full"
"""The method that answers questions without their context, once for all methods of a run."""


def without_context(run: RunDirectory) -> dict[str, list[PredictionRecord]]:
    """Answers given without the context, by task id without a length."""
    found = {}
    for task in run.tasks:
        if is_no_context(task):
            name, _, options = task.partition("@")
            rest = ",".join(piece for piece in options.split(",") if piece != NO_CONTEXT)
            found[f"{name}@{rest}" if rest else name] = run.records(ASKED_ONCE_BY, task)
    return found


def judged_score(
    task: TaskSamples, verdicts: Verdicts, bootstrap: Bootstrap
) -> tuple[TaskScore, Replicates | None, Scored]:
    """Score of a task by a judge, its replicates, and all its samples for LongScore."""
    task = replace(task, facts=replace(task.facts, metric=METRIC[task.facts.metric]))
    kept = [i for i in range(len(task.samples)) if i not in verdicts.filtered]
    counted = replace(task, samples=tuple(task.samples[i] for i in kept))
    score, replicates = task_score(counted, [verdicts.values[i] for i in kept], "difflib", bootstrap)
    score = replace(score, n_judge_failed=len(verdicts.failed), n_filtered=len(verdicts.filtered))
    return score, replicates, Scored(task, verdicts.values, verdicts.filtered, verdicts.failed)


def remarks(grading: Grading, verdicts: Mapping[tuple[str, str], Verdicts], methods: Sequence[str]) -> list[str]:
    """What a reader must know about the verdicts, a sentence for each method."""
    said = [f"QA and summaries of 100-LongBench are graded by {grading.asker.judge.label}."]
    for method in methods:
        own = [one for (name, _), one in verdicts.items() if name == method]
        total, left_out = sum(len(one.values) for one in own), sum(len(one.filtered) for one in own)
        failed, lacking = sum(len(one.failed) for one in own), sum(one.unfiltered for one in own)
        parts = [f"{left_out} of {total} graded rows left out by the QA filter ({grading.threshold:g})"]
        if failed:
            parts.append(f"{failed} without a verdict, in no score")
        if lacking:
            parts.append(f"{lacking} not filtered, because no answer without context is known for their questions")
        said.append(f"{method}: {'; '.join(parts)}.")
    return said
