"""Scores as plain data, and their JSON form (scores.json, schema_version 1; see docs/run-directory.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcbench.scoring.longscore.result import LongScores

SCORES_VERSION = 1

Interval = tuple[float, float]


@dataclass(frozen=True)
class LengthScore:
    """Score of the rows of one length.

    Attributes:
        score: 0 to 100, two decimals; None for an empty bucket.
        n: rows scored. n_error: rows that failed and have no score.
        interval: 95 % bootstrap interval, None with fewer than two clusters.
        partial: passkey only: mean partial match in percent.
        n_skipped: prompts longer than the window, left out, in none of the other counts.
    """

    score: float | None
    n: int
    n_error: int = 0
    interval: Interval | None = None
    partial: float | None = None
    n_skipped: int = 0


@dataclass(frozen=True)
class TaskScore:
    """Score of one method on one task.

    Attributes:
        task: task id. benchmark, category, language, metric: facts of the task.
        score: 0 to 100 with two decimals, rounded as the official scorer rounds; None when no row could be scored.
        n: rows scored. n_error: rows that failed; they have no score and do not count as 0.
        interval: 95 % bootstrap interval of ``score``.
        n_judge_failed: rows among ``n_error`` that the judge gave no usable verdict on.
        n_filtered: rows left out by the QA filter, in none of the other counts.
        n_skipped: prompts longer than the window, left out by --over-length skip, in none of the other counts.
        clusters: groups of rows that share a context, which the bootstrap draws as a whole (n when none do).
        task_versions: versions of the task definition in the records; empty for official files.
        code_sim: the definition used, for code tasks.
        by_length: LongBench-E: official buckets; passkey: length in words.
        partial: passkey: mean partial match in percent.
        columns: additional metrics in percent (rouge1, rouge2, rougeL, rougeLsum), never part of ``score``.
        passkey: results in the layout of longctx_bench, 0 to 1, unrounded.
    """

    task: str
    benchmark: str
    category: str
    language: str
    metric: str
    score: float | None
    n: int
    n_error: int
    interval: Interval | None
    clusters: int
    task_versions: tuple[int, ...] = ()
    code_sim: str | None = None
    by_length: Mapping[str, LengthScore] = field(default_factory=dict)
    partial: float | None = None
    columns: Mapping[str, float] = field(default_factory=dict)
    passkey: Mapping[str, Any] | None = None
    n_judge_failed: int = 0
    n_filtered: int = 0
    n_skipped: int = 0


@dataclass(frozen=True)
class GroupScore:
    """Mean over tasks or over categories.

    Attributes:
        label: what it is, in words.
        score: mean of the members' rounded scores, two decimals.
        members: task ids, or category keys, that entered. missing: those that belong to it and are not there.
        n_tasks, of_tasks: tasks that entered, and tasks that belong to it.
        interval: 95 % bootstrap interval, tasks drawn independently.
        by_length: LongBench-E: the same mean for every bucket.
    """

    label: str
    score: float
    members: tuple[str, ...]
    missing: tuple[str, ...] = ()
    n_tasks: int = 0
    of_tasks: int = 0
    interval: Interval | None = None
    by_length: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing that belongs to the mean is missing."""
        return not self.missing


@dataclass(frozen=True)
class MethodScores:
    """All scores of one method (or of one folder of official files).

    Attributes:
        tasks: task id to score. categories: e.g. "en/few-shot" to mean. overall: "macro_en", "macro_zh", "micro15",
        "micro16", "macro_e".
    """

    tasks: Mapping[str, TaskScore]
    categories: Mapping[str, GroupScore] = field(default_factory=dict)
    overall: Mapping[str, GroupScore] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreTable:
    """What `lcbench score` found.

    Attributes:
        source: "run", "folder" or "file". name: its name, without the way to it.
        methods: method id to scores; a single folder or file is one method named after it.
        options: how it was scored: code_sim, strict_recursion, seed, resamples, confidence.
        notes: sentences the user should read.
        lcbench: version of lcbench.
        longscore: LongScores, None where no task exists at several lengths or they were not asked for.
        judge: who graded and how, with the rows it gave no verdict on; None without a judge.
    """

    source: str
    name: str
    methods: Mapping[str, MethodScores]
    options: Mapping[str, Any]
    notes: tuple[str, ...]
    lcbench: str
    longscore: LongScores | None = None
    judge: Mapping[str, Any] | None = None

    @property
    def n_error(self) -> int:
        """Failed rows of all methods and tasks."""
        return sum(task.n_error for method in self.methods.values() for task in method.tasks.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without NaN; keys that a task has no use for are left out."""
        optional: dict[str, Any] = {}
        if self.longscore is not None:
            optional["longscore"] = self.longscore.to_dict()
        if self.judge is not None:
            optional["judge"] = dict(self.judge)
        return {
            "schema_version": SCORES_VERSION,
            "lcbench": self.lcbench,
            "source": {"kind": self.source, "name": self.name},
            "options": dict(self.options),
            "notes": list(self.notes),
            "methods": {
                name: {
                    "tasks": {task: _task(one) for task, one in method.tasks.items()},
                    "categories": {key: _group(one) for key, one in method.categories.items()},
                    "overall": {key: _group(one) for key, one in method.overall.items()},
                }
                for name, method in self.methods.items()
            },
            **optional,
        }


_OPTIONAL_TASK_KEYS = (
    "code_sim",
    "by_length",
    "partial",
    "columns",
    "passkey",
    "n_judge_failed",
    "n_filtered",
    "n_skipped",
)


def _task(score: TaskScore) -> dict[str, Any]:
    data = asdict(score)
    del data["task"]
    for key in _OPTIONAL_TASK_KEYS:
        if data[key] is None or data[key] == {} or (key.startswith("n_") and not data[key]):
            del data[key]
    for bucket in data.get("by_length", {}).values():
        if bucket["partial"] is None:
            del bucket["partial"]
        if not bucket["n_skipped"]:
            del bucket["n_skipped"]
        bucket["interval"] = _listed(bucket["interval"])
    data["interval"] = _listed(data["interval"])
    data["task_versions"] = list(score.task_versions)
    return data


def _group(score: GroupScore) -> dict[str, Any]:
    data: dict[str, Any] = {
        "label": score.label,
        "score": score.score,
        "interval": _listed(score.interval),
        "members": list(score.members),
        "missing": list(score.missing),
        "n_tasks": score.n_tasks,
        "of_tasks": score.of_tasks,
        "complete": score.complete,
    }
    if score.by_length:
        data["by_length"] = dict(score.by_length)
    return data


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
