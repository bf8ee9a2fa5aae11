"""Means over the tasks of several runs of one model and method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcbench.scoring.run import DEFAULTS, ScoreOptions, _of_run, _table
from lcbench.store.rundir import RunDirectory


def score_merged(runs: Sequence[RunDirectory], method: str, options: ScoreOptions = DEFAULTS) -> dict[str, Any]:
    """The scores of ``method`` over the tasks of all ``runs``, as one entry of ``methods`` in scores.json.

    No task may be in two of the runs. Raises CorruptFile, UnknownName.
    """
    samples = [_of_run(run, method, task) for run in runs if method in run.methods for task in run.tasks]
    table = _table("run", method, {method: [one for one in samples if one.samples]}, options, ())
    found: dict[str, Any] = table.to_dict()["methods"][method]
    return found
