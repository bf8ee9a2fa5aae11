"""What takes the samples of several runs of one model: means over tasks, and LongScores over lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lcbench.scoring.bootstrap import Bootstrap
from lcbench.scoring.longscore.ladder import Scored, is_no_context
from lcbench.scoring.longscore.result import LongScores, long_scores
from lcbench.scoring.run import DEFAULTS, ScoreOptions, _all_values, _of_run, _table
from lcbench.store.rundir import RunDirectory


def score_merged(
    runs: Sequence[RunDirectory],
    method: str,
    options: ScoreOptions = DEFAULTS,
    ids: Mapping[tuple[str, str], str] | None = None,
) -> dict[str, Any]:
    """The scores of ``method`` over the tasks of all ``runs``, as one entry of ``methods`` in scores.json.

    Args:
        ids: (run, its method id) to the id that ``method`` is one of; None: each its own.

    No task may be in two of the runs. Raises CorruptFile, UnknownName.
    """
    known = ids or {}
    own = [(run, m) for run in runs for m in run.methods if known.get((str(run.path), m), m) == method]
    samples = [_of_run(run, m, task) for run, m in own for task in run.tasks]
    table = _table("run", method, {method: [one for one in samples if not one.pending]}, options, ())
    found: dict[str, Any] = table.to_dict()["methods"][method]
    return found


def long_scores_merged(
    runs: Sequence[RunDirectory], options: ScoreOptions = DEFAULTS, ids: Mapping[tuple[str, str], str] | None = None
) -> LongScores | None:
    """LongScores over the tasks, lengths and methods of all ``runs``: a base in one and a length in another, or full in
    one and a method in another, are as good as in one run. None when no task exists at several lengths.

    ``ids`` as for `score_merged`. No method may have a task in two of the runs. Raises CorruptFile, UnknownName,
    BadValue.
    """
    known = ids or {}
    keys = [(run, method, task) for run in runs for method in run.methods for task in run.tasks]
    found = [
        (known.get((str(run.path), method), method), _of_run(run, method, task))
        for run, method, task in keys
        if not is_no_context(task)
    ]
    # What one run still waits for another may have.
    there = {(method, samples.task) for method, samples in found if not samples.pending}
    found = [(m, samples) for m, samples in found if not samples.pending or (m, samples.task) not in there]
    scored: dict[str, list[Scored]] = {}
    values = _all_values([samples for _, samples in found], options)
    for (method, samples), own in zip(found, values, strict=True):
        scored.setdefault(method, []).append(Scored(samples, own))
    return long_scores(scored, options.longscore, Bootstrap(options.seed, options.resamples))
