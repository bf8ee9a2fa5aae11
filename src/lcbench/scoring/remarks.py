"""What a reader of scores has to know about the predictions behind them: said, never repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lcbench.scoring.samples import LONGBENCH, LONGBENCH_E, TaskSamples
from lcbench.scoring.skipped import skipped_of
from lcbench.store.jsonl import torn_bytes
from lcbench.store.rundir import RunDirectory

Inputs = Mapping[str, Sequence[TaskSamples]]


def of_predictions(inputs: Inputs, *, planned: bool) -> list[str]:
    """Remarks about every method's predictions, one a kind.

    Args:
        planned: they come from a run, which has its own number of rows (`of_run`).
    """
    found = []
    for method, tasks in inputs.items():
        where = f"{method}: " if len(inputs) > 1 else ""
        counts = [] if planned else [(t.task, len(t.samples), full) for t in tasks if (full := _test_set(t))]
        more = _listed((name, n, full) for name, n, full in counts if n > full)
        if more:
            found.append(f"{where}more rows than the test set has (the official script appends to old files): {more}.")
        found += [where + text for text in _small(counts)]
        found += [where + text for task in tasks for text in (*_versions(task), *_repeated(task))]
    return found


def of_run(run: RunDirectory, inputs: Inputs, tasks: Sequence[str]) -> list[str]:
    """Remarks about a run as a whole: what is small, unfinished, torn, or not of this run.

    Args:
        tasks: those of its tasks that are to be scored.
    """
    counts = {(method, one.task): len(one.samples) for method, found in inputs.items() for one in found}
    tests = {one.task: full for found in inputs.values() for one in found if (full := _test_set(one))}
    asked = [(name, rows, full) for name, full in tests.items() if (rows := _rows_asked(run, name)) is not None]
    return [
        *_small(asked),
        *_without_any(run, counts, tasks),
        *unfinished(run, counts),
        *_torn(run),
        *_foreign(run, inputs),
    ]


def unfinished(run: RunDirectory, counts: Mapping[tuple[str, str], int]) -> list[str]:
    """One sentence for every method that has some, but not all rows of a task.

    Args:
        counts: samples by (method, task).
    """
    found = []
    for task in run.tasks:
        have = {method: counts.get((method, task), 0) for method in run.methods}
        # Skipped prompts leave no record: then the method with the most rows tells how many there are.
        skipping = run.spec.get("over_length") == "skip"
        rows = None if skipping else _rows_asked(run, task)
        wanted = max(have.values()) if rows is None else rows
        found += [f"unfinished: {m} has {n} of {wanted} rows of {task}" for m, n in have.items() if 0 < n < wanted]
    return found


def _small(counts: Iterable[tuple[str, int, int]]) -> list[str]:
    fewer = _listed((name, n, full) for name, n, full in counts if n < full)
    return [f"fewer rows than the test set has: {fewer}."] if fewer else []


def _listed(counts: Iterable[tuple[str, int, int]]) -> str:
    return ", ".join(f"{name} {n} of {full}" for name, n, full in counts)


def _without_any(run: RunDirectory, counts: Mapping[tuple[str, str], int], tasks: Sequence[str]) -> list[str]:
    found = []
    for method in run.methods:
        without = {task: skipped_of(run, method, task) for task in tasks if not counts.get((method, task))}
        left_out = [f"{task} ({skipped.count})" for task, skipped in without.items() if skipped.all]
        if left_out:
            found.append(f"{method}: prompts longer than the window were skipped, none is left: {', '.join(left_out)}.")
        absent = [task for task, skipped in without.items() if not skipped.all]
        if absent:
            found.append(f"{method} has no predictions for {', '.join(absent)} yet.")
    return found


def _torn(run: RunDirectory) -> list[str]:
    """A last line without its end: left by a kill, or being written now."""
    found = []
    for method in run.methods:
        for task in run.tasks:
            torn = torn_bytes(run.predictions_path(method, task))
            if torn:
                found.append(
                    f"{method}, {task}: an unfinished last line of {torn} bytes was left out; "
                    "continuing the run makes that sample again."
                )
    return found


def _foreign(run: RunDirectory, inputs: Inputs) -> list[str]:
    """More different ids than the run has rows: some records are of other rows, or of another data set."""
    found = []
    for task in run.tasks:
        rows = _rows_asked(run, task)
        ids = {s.id for tasks in inputs.values() for one in tasks if one.task == task for s in one.samples}
        if rows is not None and len(ids) > rows:
            found.append(f"{task}: the records name {len(ids)} different rows, but the run asked for {rows}.")
    return found


def _rows_asked(run: RunDirectory, task: str) -> int | None:
    """How many rows of a task the run asked for, as run.json tells it."""
    tasks = run.provenance.get("tasks")
    facts = tasks.get(task) if isinstance(tasks, Mapping) else None
    rows = facts.get("rows") if isinstance(facts, Mapping) else None
    return rows if isinstance(rows, int) and not isinstance(rows, bool) else None


def _test_set(task: TaskSamples) -> int | None:
    """Rows of the whole test set, where the benchmark has a fixed one."""
    if task.benchmark not in (LONGBENCH, LONGBENCH_E):
        return None
    return task.facts.e_rows if task.benchmark == LONGBENCH_E else task.facts.rows


def _versions(task: TaskSamples) -> list[str]:
    """Predictions made by several versions of a task, or by another one than is installed."""
    if not task.versions:
        return []
    if len(task.versions) > 1:
        listed = ", ".join(map(str, task.versions))
        return [f"{task.task}: predictions of several task versions ({listed}); scores may not be comparable."]
    from lcbench.tasks.registry import all_tasks

    cls = all_tasks().get(task.task.partition("@")[0])
    (version,) = task.versions
    if cls is None or version == cls.version:
        return []
    what = "a newer lcbench made them" if version > cls.version else f"since then: {cls.changelog[cls.version]}"
    return [
        f"{task.task}: predictions of task version {version}, this lcbench has version {cls.version} ({what}); "
        "scores may not be comparable."
    ]


def _repeated(task: TaskSamples) -> list[str]:
    """The same id in several rows of an official file, where every row counts."""
    counts = Counter(sample.id for sample in task.samples if sample.id)
    twice = [key for key, count in counts.items() if count > 1]
    if not twice:
        return []
    extra = sum(counts[key] - 1 for key in twice)
    rows = "1 row repeats" if extra == 1 else f"{extra} rows repeat"
    return [f"{task.task}: {rows} the _id of another ({twice[0]}); all are scored, as the official script does."]
