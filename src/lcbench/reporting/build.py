"""From run directories to a `Report`: scores where they are up to date, else computed now."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lcbench.reporting.apart import folder_names, settings_of, told_apart
from lcbench.reporting.efficiency import distinguished, efficiency_of
from lcbench.reporting.longscore.merge import Part, merge
from lcbench.reporting.longscore.view import LongView
from lcbench.reporting.notes import merged_notes, notes_of, overall_notes
from lcbench.reporting.same_method import Key, key_of, shown_ids
from lcbench.reporting.scored import scores_of, shared_options
from lcbench.reporting.table import Cell, Column, Line, Report
from lcbench.reporting.words import NO_WIDTH, has_no_width
from lcbench.scoring.merged import long_scores_merged, score_merged
from lcbench.store.rundir import RunDirectory
from lcbench.store.schema import PredictionRecord

_NOTHING_BESIDE = (
    "no published scores beside: they are of 100-LongBench, and no task here has LongScores "
    "(`lcbench score --longscore` makes them for other tasks at several lengths)"
)


def build(runs: Sequence[RunDirectory], *, with_published: bool = False) -> Report:
    """One table of all ``runs``, merged by model and method.

    Runs of the same model and method with different tasks share a column. Where two of them hold the same task, each
    run has a column of its own, marked with its folder. Other weights under one name are another model; runs with
    other data or truncation of a task stand apart. Notes say both.

    Args:
        with_published: set published LongScores beside the runs' own.

    Raises:
        NotARun: a run without any prediction. CorruptFile: a predictions file with a bad line.
    """
    distinct = _distinct(runs)
    measured = {run.path: efficiency_of(run) for run in distinct}
    # A folder of the bench alone has no predictions, and needs none.
    ids = shown_ids(distinct)
    parts = [_part(run, ids) for run in distinct if run.tasks or not measured[run.path]]
    not_compared = _set_apart(parts)
    columns = _columns(parts)
    cells: dict[tuple[Line, Column], Cell] = {}
    labels = {name: label for part in parts for name, label in part.labels.items()}
    for column in dict.fromkeys(columns.values()):
        sharing = [part for part in parts if columns.get((part.path, column.method)) == column]
        for part in sharing:
            for line, cell in part.cells[column.method].items():
                if line.kind != "mean" or len(sharing) == 1:
                    cells[line, column] = cell
        if len(sharing) > 1:
            for line, cell, label in _merged_means(sharing, column.method, ids):
                cells[line, column] = cell
                labels.update({} if line.category else {line.name: label})
    apart = _told_apart(line for line, _ in cells)
    cells = {(apart.get(line, line), column): cell for (line, column), cell in cells.items()}
    labels.update({made.name: _of_tasks(labels.get(line.name, ""), line.members) for line, made in apart.items()})
    lines = list(dict.fromkeys(line for line, _ in cells))
    names = list(dict.fromkeys(line.name for line in lines))
    lines.sort(key=lambda line: (line.kind == "mean", names.index(line.name)))
    notes = merged_notes([(part.run, part.notes) for part in parts])
    whole = [cell for (line, _), cell in cells.items() if line.kind == "task"]
    notes = [*not_compared, *notes, *overall_notes(lines, whole, labels)]
    notes += [NO_WIDTH] if any(has_no_width(cell.low, cell.high) for cell in cells.values()) else []
    report = Report(
        tuple(lines),
        tuple(dict.fromkeys(columns.values())),
        cells,
        tuple(dict.fromkeys(notes)),
        tuple(str(run.path) for run in distinct),
        efficiency=tuple(distinguished([row for rows in measured.values() for row in rows])),
    )
    longscore = merge(_long_parts(parts, columns, report, ids), with_published=with_published)
    if longscore is None and with_published:
        report = replace(report, notes=(*report.notes, _NOTHING_BESIDE))
    more = _without_longscore(parts, columns, report, longscore)
    return replace(report, longscore=longscore, notes=(*report.notes, *more))


def _without_longscore(
    parts: Sequence[_Part], columns: Mapping[tuple[str, str], Column], report: Report, longscore: LongView | None
) -> list[str]:
    """Runs with scores by length that are not in the LongScores of the others."""
    ranked = {one.label for one in longscore.entries} if longscore else set()
    return [
        f"{part.path}: no LongScores, so it is not in their tables and rankings; "
        f"`lcbench score {part.path} --longscore` makes them"
        for part in parts
        if longscore
        and any(line.kind == "length" for lines in part.cells.values() for line in lines)
        and not any(report.label(columns[part.path, method]) in ranked for method in part.cells)
    ]


def _long_parts(
    parts: Sequence[_Part],
    columns: Mapping[tuple[str, str], Column],
    report: Report,
    ids: Mapping[tuple[str, str], str],
) -> list[Part]:
    """What the runs give to LongScore: those of one model whose columns are shared give it together."""
    groups: dict[tuple[str, str], list[_Part]] = {}
    for part in parts:
        groups.setdefault((part.model, part.setting), []).append(part)
    found = []
    for (model, _), own in groups.items():
        labels = [{method: (report.label(columns[part.path, method]), model) for method in part.cells} for part in own]
        held = {(method, columns[part.path, method]) for part in own for method in part.cells}
        apart = len(held) > len({method for method, _ in held})
        together = {method: label for one in labels for method, label in one.items()}
        if len(own) > 1 and not apart and any(part.judged for part in own):
            found.append(Part(model, None, True, together, _task_scores(own)))
        elif len(own) > 1 and not apart:
            runs = [part.run for part in own]
            made = long_scores_merged(runs, shared_options(runs), ids)
            found.append(Part(model, None if made is None else made.to_dict(), False, together))
        else:
            for part, label in zip(own, labels, strict=True):
                spelled = {m: label[ids[part.path, m]] for m in part.run.methods if ids[part.path, m] in label}
                found.append(Part(part.path, part.longscore, part.judged, spelled))
    return found


def _task_scores(parts: Sequence[_Part]) -> dict[str, dict[str, float]]:
    """Method to task to score, over all of these runs."""
    found: dict[str, dict[str, float]] = {}
    for part in parts:
        for method, cells in part.cells.items():
            known = {line.name: cell.score for line, cell in cells.items() if line.kind == "task"}
            found.setdefault(method, {}).update({task: score for task, score in known.items() if score is not None})
    return found


@dataclass
class _Part:
    """What one run gives to the report.

    Attributes:
        model: its name, with what tells it from others of that name. identity: digest of the weights, dtype, load_in.
        setting: see `Column`. cells: by the ids under which methods are shown.
        labels: name of a mean to what it is, in words.
        keys: shown id to what the method is (`same_method.key_of`).
    """

    run: RunDirectory
    path: str
    model: str
    identity: tuple[str, str, str]
    records: Mapping[tuple[str, str], Sequence[PredictionRecord]]
    setting: str = ""
    cells: dict[str, dict[Line, Cell]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    longscore: Mapping[str, Any] | None = None
    judged: bool = False
    keys: dict[str, Key | None] = field(default_factory=dict)


def _distinct(runs: Sequence[RunDirectory]) -> list[RunDirectory]:
    return list({run.path.resolve(): run for run in runs}.values())


def _part(run: RunDirectory, ids: Mapping[tuple[str, str], str]) -> _Part:
    records = {(m, t): run.records(m, t) for m in run.methods for t in run.tasks}
    scores = scores_of(run, records)
    model = _mapping(run.provenance.get("model"))
    name = str(model.get("name") or _mapping(run.spec.get("model")).get("name") or "unknown model")
    identity = (str(model.get("identity")), str(model.get("dtype")), str(model.get("load_in")))
    part = _Part(run, str(run.path), name, identity, records)
    for method in run.methods:
        found = scores["methods"].get(method)
        if found is None:
            continue
        lines: dict[Line, Cell] = {}
        for task in run.tasks:
            score = found["tasks"].get(task)
            if score is not None:
                lines[Line(task, score["metric"])] = _cell(score, records[method, task], part.path, method)
                lines.update(_lengths(task, score, part.path, method))
        for line, cell, label in _means(found):
            lines[line] = replace(cell, run=part.path)
            if not line.category:  # a category's mean is its own explanation
                part.labels[line.name] = label
        shown = ids[part.path, method]
        part.cells[shown], part.keys[shown] = lines, key_of(run, method)
        if shown != method:
            part.notes.append(f"{method} is shown as {shown}: the same parameters")
    part.notes += [*notes_of(run, records), *scores["notes"]]
    part.longscore, part.judged = scores.get("longscore"), "judge" in scores
    return part


# -- cells -----------------------------------------------------------------------------------------------------------


def _cell(score: Mapping[str, Any], records: Sequence[PredictionRecord], path: str, method: str) -> Cell:
    good = [record for record in records if record.ok]
    held = [record.kv_bytes for record in good if record.kv_bytes is not None]
    full = [record.kv_bytes_full for record in good if record.kv_bytes_full is not None]
    low, high = score["interval"] or (None, None)
    return Cell(
        score=score["score"],
        low=low,
        high=high,
        n=score["n"],
        errors=score["n_error"],
        filtered=score.get("n_filtered", 0),
        skipped=score.get("n_skipped", 0),
        kv_bytes=statistics.fmean(held) if held else None,
        kv_bytes_full=statistics.fmean(full) if full else None,
        memory="simulated" if any(r.memory == "simulated" for r in records) else "real",
        run=path,
        run_method=method,
    )


def _lengths(task: str, score: Mapping[str, Any], path: str, method: str) -> dict[Line, Cell]:
    """The task's score by length, where there are several lengths."""
    buckets = score.get("by_length", {})
    if len(buckets) < 2:
        return {}
    lines = {}
    ordered = sorted(buckets, key=int) if all(length.isdecimal() for length in buckets) else list(buckets)
    for length in ordered:  # records come longest first
        one = buckets[length]
        low, high = one["interval"] or (None, None)
        line = Line(task, score["metric"], "length", length)
        skipped = one.get("n_skipped", 0)
        lines[line] = Cell(
            one["score"], low, high, one["n"], one["n_error"], skipped=skipped, run=path, run_method=method
        )
    return lines


def _means(scores: Mapping[str, Any]) -> list[tuple[Line, Cell, str]]:
    """Means over at least two tasks, with what they are in words; a part of a mean says so in its name.

    Parts that say the same (the mean of 15 and of 16 tasks, when only five were run) are listed once.
    """
    found = []
    seen: set[tuple[tuple[str, ...], float]] = set()
    categories = scores.get("categories", {})
    for key, group in [*categories.items(), *scores.get("overall", {}).items()]:
        tasks = tuple(
            dict.fromkeys(t for m in group["members"] for t in _mapping(categories.get(m)).get("members", [m]))
        )
        if len(tasks) < 2 or (not group["complete"] and (tasks, group["score"]) in seen):
            continue
        seen.add((tasks, group["score"]))
        low, high = group["interval"] or (None, None)
        name = key if group["complete"] else f"{key}, part: {len(tasks)} tasks"
        line = Line(name, kind="mean", members=tasks, category=key in categories)
        found.append((line, Cell(group["score"], low, high), group["label"]))
    return found


def _told_apart(lines: Iterable[Line]) -> dict[Line, Line]:
    """Means of one name over other tasks ("micro15, part: 6 tasks" of two runs), each to itself with a number."""
    named: dict[str, list[Line]] = {}
    for line in dict.fromkeys(lines):
        if line.kind == "mean":
            named.setdefault(line.name, []).append(line)
    return {
        line: replace(line, name=f"{line.name}, set {number}")
        for own in named.values()
        for number, line in enumerate(own, 1)
        if len(own) > 1
    }


def _of_tasks(label: str, tasks: Sequence[str]) -> str:
    return "; ".join([*([label] if label else []), f"over {', '.join(tasks)}"])


def _merged_means(
    parts: Sequence[_Part], method: str, ids: Mapping[tuple[str, str], str]
) -> list[tuple[Line, Cell, str]]:
    """Means over the tasks of several runs."""
    runs = [part.run for part in parts]
    return _means(score_merged(runs, method, shared_options(runs), ids))


# -- columns ---------------------------------------------------------------------------------------------------------


def _columns(parts: Sequence[_Part]) -> dict[tuple[str, str], Column]:
    """(run, method) to its column."""
    holders: dict[tuple[str, str, str], list[_Part]] = {}
    for part in parts:
        for method in part.cells:
            holders.setdefault((part.model, part.setting, method), []).append(part)
    names = folder_names([part.path for part in parts])
    columns = {}
    for part in parts:
        for method in part.cells:
            sharing = holders[part.model, part.setting, method]
            tasks = [line.name for one in sharing for line in one.cells[method] if line.kind == "task"]
            keys = {key for one in sharing if (key := one.keys.get(method)) is not None}
            mergeable = len(keys) < 2 and len(set(tasks)) == len(tasks)
            own = " + ".join(names[one.path] for one in sharing) if part.setting else ""
            run = own if mergeable else names[part.path]
            columns[part.path, method] = Column(part.model, method, run, part.setting)
    return columns


def _set_apart(parts: Sequence[_Part]) -> list[str]:
    """Tell models of one name and other weights apart, and runs that asked otherwise; a note about each."""
    models, notes = told_apart([(part.path, part.model, part.identity) for part in parts])
    for part in parts:
        part.model = models[part.path]
    settings, more = settings_of([(part.run, part.model, part.records) for part in parts])
    for part in parts:
        part.setting = settings[part.path]
    return [*notes, *more]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
