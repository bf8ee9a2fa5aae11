"""The single samples behind the cells of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lcbench.reporting.scored import options_of
from lcbench.reporting.table import Column, Line, Report
from lcbench.scoring.bootstrap import Bootstrap, mean_of
from lcbench.scoring.per_sample import ScoredSample, score_samples
from lcbench.store.rundir import RunDirectory

Samples = Mapping[tuple[Line, Column], Sequence[ScoredSample]]
"""(whole task, column) to its samples in file order."""

Interval = tuple[float, float]


def samples_of(report: Report, runs: Sequence[RunDirectory]) -> Samples:
    """Every sample of every whole task of ``report``, scored as the report's numbers are."""
    by_path = {str(run.path): run for run in runs}
    result: dict[tuple[Line, Column], Sequence[ScoredSample]] = {}
    for path, run in by_path.items():
        here = [
            (line, column, cell.run_method or column.method)
            for (line, column), cell in report.cells.items()
            if line.kind == "task" and Path(cell.run) == Path(path)
        ]
        found = score_samples(run, [(method, line.name) for line, _, method in here], options_of(run))
        result.update({(line, column): found[method, line.name] for line, column, method in here})
    return result


def mean_interval(tasks: Sequence[tuple[str, Sequence[ScoredSample]]]) -> Interval | None:
    """95 % interval of the mean over tasks, in percent; tasks are drawn independently, as in scores.json.

    Args:
        tasks: task id and samples. None when a task has fewer than two clusters.
    """
    bootstrap = Bootstrap()
    drawn = []
    for task, samples in tasks:
        good = [sample for sample in samples if sample.score is not None]
        scores = [sample.score or 0.0 for sample in good]
        drawn.append(bootstrap.replicates(scores, [sample.cluster for sample in good], task))
    return bootstrap.interval(mean_of(drawn))
