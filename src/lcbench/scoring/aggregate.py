"""From scores of samples to the score of a task, rounded as the official scripts round."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from lcbench.scoring.bootstrap import Bootstrap, Replicates
from lcbench.scoring.google_rouge import COLUMNS
from lcbench.scoring.samples import LONGBENCH_E, Sample, TaskSamples
from lcbench.scoring.table import LengthScore, TaskScore

BUCKETS = ("0-4k", "4-8k", "8k+")
"""Length buckets of LongBench-E: below 4,000, below 8,000, and the rest."""

Values = tuple[float, ...]


def bucket_of(length: float) -> str:
    """The LongBench-E bucket of a published length; 4,000 is in "4-8k" and 8,000 in "8k+"."""
    return BUCKETS[0] if length < 4000 else BUCKETS[1] if length < 8000 else BUCKETS[2]


def task_score(
    task: TaskSamples, values: Sequence[Values | None], code_sim: str, bootstrap: Bootstrap
) -> tuple[TaskScore, Replicates | None]:
    """Score of one task and the bootstrap replicates of it.

    Args:
        values: for each sample its score, then the partial match (passkey) or the additional columns; None for a
            sample that failed.
    """
    if task.facts.metric == "passkey":
        return _passkey_score(task, values, bootstrap)
    pairs = [(s, v) for s, v in zip(task.samples, values, strict=True) if v is not None]
    scores = [v[0] for _, v in pairs]
    clusters = _clusters([s for s, _ in pairs])
    replicates = bootstrap.replicates(scores, clusters, task.task)
    extra = list(zip(*(v[1:] for _, v in pairs), strict=True))
    result = _make(
        task,
        score=percent(scores),
        n=len(scores),
        interval=bootstrap.interval(replicates),
        clusters=len(scores) if clusters is None else len(set(clusters)),
        code_sim=code_sim if task.facts.metric == "code_sim" else None,
        by_length=_buckets(task, values, bootstrap) if task.benchmark == LONGBENCH_E else {},
        columns={name: percent(column) for name, column in zip(COLUMNS, extra, strict=False)},
    )
    return result, replicates


def percent(scores: Sequence[float]) -> float | None:
    """100 x mean with two decimals: sum first, in file order, then Python's exact rounding, as `scorer` does it."""
    total = 0.0
    for score in scores:
        total += score
    return round(100 * total / len(scores), 2) if scores else None


def bucket_percent(scores: Sequence[float]) -> float | None:
    """100 x mean with two decimals as `scorer_e` computes it: numpy's mean and rounding, which differ on ties."""
    import numpy as np

    return float(round(100 * np.mean(scores), 2)) if scores else None


def _buckets(task: TaskSamples, values: Sequence[Values | None], bootstrap: Bootstrap) -> dict[str, LengthScore]:
    """Scores by length as `scorer_e` computes them."""
    result = {}
    for bucket in BUCKETS:
        rows = [
            (s, v)
            for s, v in zip(task.samples, values, strict=True)
            if s.length is not None and bucket_of(s.length) == bucket
        ]
        pairs = [(s, v) for s, v in rows if v is not None]
        scores = [v[0] for _, v in pairs]
        # The only bucket is the task itself: one stream of random numbers, one interval.
        key = task.task if len(rows) == len(task.samples) else f"{task.task} {bucket}"
        replicates = bootstrap.replicates(scores, _clusters([s for s, _ in pairs]), key)
        result[bucket] = LengthScore(
            score=bucket_percent(scores),
            n=len(scores),
            n_error=len(rows) - len(scores),
            interval=bootstrap.interval(replicates),
            n_skipped=sum(n for size, n in task.skipped_lengths.items() if bucket_of(float(size)) == bucket),
        )
    return result


def _clusters(samples: Sequence[Sample]) -> list[Hashable] | None:
    """One label a sample, or None when no two samples are known to share a context."""
    labels: list[Hashable] = [index if s.cluster is None else s.cluster for index, s in enumerate(samples)]
    return None if len(set(labels)) == len(labels) else labels


def _passkey_score(
    task: TaskSamples, values: Sequence[Values | None], bootstrap: Bootstrap
) -> tuple[TaskScore, Replicates | None]:
    """Exact and partial match: means over repeats, then over the cells (length, depth), as longctx_bench does.

    Repeats of a cell share their background and differ in the key alone, so the bootstrap draws whole cells.
    """
    cells: dict[tuple[str, str], list[Values]] = {}
    errors: dict[str, int] = {}
    for number, (sample, value) in enumerate(zip(task.samples, values, strict=True)):
        length, depth = _cell(sample, number)
        errors[length] = errors.get(length, 0) + (value is None)
        if value is not None:
            cells.setdefault((length, depth), []).append(value)
    means = {cell: tuple(sum(column) / len(column) for column in zip(*v, strict=True)) for cell, v in cells.items()}
    replicates = bootstrap.replicates([m[0] for m in means.values()], None, task.task)
    by_length, official = {}, {}
    for length, n_error in errors.items():
        own = {depth: mean for (where, depth), mean in means.items() if where == length}
        key = task.task if len(errors) == 1 else f"{task.task} {length}"
        drawn = bootstrap.replicates([m[0] for m in own.values()], None, key)
        by_length[length] = LengthScore(
            score=percent([m[0] for m in own.values()]),
            n=sum(len(v) for (where, _), v in cells.items() if where == length),
            n_error=n_error,
            interval=bootstrap.interval(drawn),
            partial=percent([m[1] for m in own.values()]),
            n_skipped=task.skipped_lengths.get(length, 0),
        )
        official[length] = {depth: _named(mean) for depth, mean in own.items()}
    for length, count in task.skipped_lengths.items():
        by_length.setdefault(length, LengthScore(None, 0, n_skipped=count))
    result = _make(
        task,
        score=percent([m[0] for m in means.values()]),
        n=sum(len(v) for v in cells.values()),
        interval=bootstrap.interval(replicates),
        clusters=len(means),
        by_length=by_length,
        partial=percent([m[1] for m in means.values()]),
        passkey={
            "processed_results": official,
            "background_len_wise_results": {k: _named(_column_means(v.values())) for k, v in _by(means).items() if v},
            "overall_results": _named(_column_means(means.values())) if means else {},
        },
    )
    return result, replicates


def _by(means: Mapping[tuple[str, str], Values]) -> dict[str, dict[str, Values]]:
    result: dict[str, dict[str, Values]] = {}
    for (length, depth), mean in means.items():
        result.setdefault(length, {})[depth] = mean
    return result


def _cell(sample: Sample, number: int) -> tuple[str, str]:
    """Length in words and depth as JSON keys, whole numbers without a point; without a depth, a cell of its own."""
    length = sample.meta.get("length_words", sample.length)
    depth = sample.meta.get("depth")
    return _key(length), f"row {number + 1}" if depth is None else _key(depth)


def _key(value: Any) -> str:
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def _column_means(rows: Any) -> Values:
    return tuple(sum(column) / len(column) for column in zip(*rows, strict=True))


def _named(mean: Values) -> dict[str, float]:
    return {"exact_match": mean[0], "partial_match": mean[1]}


def _make(task: TaskSamples, *, score: float | None, n: int, **rest: Any) -> TaskScore:
    return TaskScore(
        task=task.task,
        benchmark=task.benchmark,
        category=task.facts.category,
        language=task.facts.language,
        metric=task.facts.metric,
        score=score,
        n=n,
        n_error=len(task.samples) - n,
        task_versions=task.versions,
        n_skipped=task.skipped,
        **rest,
    )
