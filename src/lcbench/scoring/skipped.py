"""Prompts that a run never asked because they were longer than the window (``--over-length skip``), as run.json has it.

They leave no record, so what became of a task without a record has to be read here: all of it skipped, or not yet run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lcbench.store.rundir import RunDirectory


@dataclass(frozen=True)
class Skipped:
    """Skipped prompts of one task as one method reads it.

    Attributes:
        count: how many. all: whether none is left. lengths: how many of each length (words of passkey, published length
            of LongBench-E, short length of a base set), where the run says so; empty where it does not.
    """

    count: int = 0
    all: bool = False
    lengths: Mapping[str, int] = field(default_factory=dict)


def skipped_of(run: RunDirectory, method: str, task: str) -> Skipped:
    """What the run says about one method and task. Methods with windows of their own skip prompts of their own."""
    facts = _facts(run, task)
    own = facts.get("skipped_by_method")
    mine = own.get(method) if isinstance(own, Mapping) else None
    lengths: Mapping[str, int] = {}
    if isinstance(own, Mapping):
        count = _number(mine.get("rows")) if isinstance(mine, Mapping) else 0
        said = mine.get("lengths") if isinstance(mine, Mapping) else None
        lengths = {key: _number(value) for key, value in said.items()} if isinstance(said, Mapping) else {}
    else:
        count = _number(facts.get("skipped"))
    return Skipped(count, bool(count) and count >= _number(facts.get("rows")), lengths)


def skipped_prompts(run: RunDirectory) -> dict[str, int]:
    """Skipped prompts of each task, those of the method that skipped most; only tasks with some."""
    counts = {
        task: max((skipped_of(run, method, task).count for method in run.methods_of(task)), default=0)
        for task in run.tasks
    }
    return {task: count for task, count in counts.items() if count}


def _facts(run: RunDirectory, task: str) -> Mapping[str, Any]:
    tasks = run.provenance.get("tasks")
    facts = tasks.get(task) if isinstance(tasks, Mapping) else None
    return facts if isinstance(facts, Mapping) else {}


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
