"""The figures that are drawn of a report's cells and samples: Pareto, radar, passkey map, difference to full."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from lcbench.reporting.figures import bars, heatmap, pareto, radar
from lcbench.reporting.figures.drawn import Drawn
from lcbench.reporting.figures.part import REFERENCE, ModelPart
from lcbench.reporting.samples import mean_interval
from lcbench.reporting.table import Column, Line
from lcbench.reporting.words import bytes_text, score_text, short_names
from lcbench.scoring.bootstrap import Bootstrap
from lcbench.scoring.paired import Pairs, compare_pairs
from lcbench.scoring.per_sample import ScoredSample
from lcbench.store.rundir import RunDirectory

# -- accuracy against bytes ------------------------------------------------------------------------------------------


def pareto_of(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
    """Score against bytes of the methods that share the most tasks; nothing where fewer than two have both."""
    tasks, columns = part.sharing()
    points = [point for c in columns if (point := _point(part, tasks, c)) is not None]
    if len(points) < 2:
        return
    names = short_names(t.name for t in part.tasks())
    what = names[tasks[0].name] if len(tasks) == 1 else f"mean of {len(tasks)} tasks"
    if len(points) < len(part.columns):
        what += f"; {len(points)} of {len(part.columns)} methods have it"
    what += _left_out(part, tasks)
    held = next((c for c in columns if c.method == REFERENCE), columns[0])
    whole = [part.report.cells[t, held].kv_bytes_full for t in tasks]
    full = statistics.fmean(w for w in whole if w) if any(whole) else None
    title = "Accuracy against KV bytes"
    figure = pareto.draw(points, title=title + part.title, full_bytes=full, score_label=f"score, {what}")
    front = ", ".join(f"{p.method} {score_text(p.score)} at {bytes_text(p.kv_bytes)}" for p in pareto.front_of(points))
    yield Drawn("pareto", title, f"{title}, {what}, {len(points)} methods. On the Pareto front: {front}.", figure)


def _left_out(part: ModelPart, tasks: Sequence[Line]) -> str:
    """What the figure of some tasks does not show: samples that failed; "" for none."""
    found = [s for t in tasks for c in part.columns for s in part.samples.get((t, c), ()) if s.score is None]
    return f"; {len(found)} failed and left out" if found else ""


def _point(part: ModelPart, tasks: Sequence[Line], column: Column) -> pareto.MethodPoint | None:
    cells = [part.report.cells[t, column] for t in tasks]
    scores = [c.score for c in cells if c.score is not None]
    sizes = [size for t in tasks if (size := _bytes(part, t, column))]
    if not scores or len(scores) < len(cells) or len(sizes) < len(cells):
        return None
    if len(cells) == 1:
        low, high = cells[0].low, cells[0].high
    else:
        low, high = mean_interval([(t.name, part.samples[t, column]) for t in tasks]) or (None, None)
    simulated = any(c.memory == "simulated" for c in cells)
    label, parted = part.label(column, *tasks), any(part.report.part_of(t, column) for t in tasks)
    return pareto.MethodPoint(
        label, statistics.fmean(sizes), statistics.fmean(scores), low, high, simulated, parted=parted
    )


def _bytes(part: ModelPart, task: Line, column: Column) -> float | None:
    """Bytes a sample; of a part of the rows, which may be shorter ones, as many as at its ratio all rows would have."""
    cell = part.report.cells[task, column]
    if not part.report.part_of(task, column) or cell.ratio is None:
        return cell.kv_bytes
    whole = [
        c.kv_bytes_full
        for other in part.scored(task)
        if not part.report.part_of(task, other) and (c := part.report.cells[task, other]).kv_bytes_full
    ]
    return whole[0] / cell.ratio if whole and whole[0] else cell.kv_bytes


# -- categories ------------------------------------------------------------------------------------------------------


def radars_of(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
    """Scores by category, English and Chinese apart; nothing of fewer than three categories."""
    for language, title in (("en", "Scores by category"), ("zh", "Scores by category, Chinese")):
        spokes = _categories(part, language)
        if len(spokes) < 3:
            continue
        ran = [t for t in part.tasks() if all((t, c) in part.report.cells for c in part.columns)]
        rows = {c: [of.get(c) for of in spokes.values()] for c in part.columns}
        scores = {part.label(c, *ran): row for c, row in rows.items() if any(s is not None for s in row)}
        reference = part.label(part.reference, *ran) if part.reference else None
        figure = radar.draw(list(spokes), scores, title=title + part.title, reference=reference)
        alt = "; ".join(
            f"{label}: " + ", ".join(f"{n} {score_text(s)}" for n, s in zip(spokes, row, strict=True))
            for label, row in scores.items()
        )
        yield Drawn("radar" if language == "en" else "radar-zh", title, f"{title}. {alt}.", figure)


def _categories(part: ModelPart, language: str) -> dict[str, dict[Column, float | None]]:
    """Category to the score of each column: the mean of its tasks that every column has."""
    from lcbench.scoring.rows import task_facts

    members: dict[str, list[Line]] = {}
    for task in part.tasks():
        facts = task_facts(task.name)
        if facts.language in (language, "code") and all((task, c) in part.report.cells for c in part.columns):
            members.setdefault(facts.category, []).append(task)
    if language == "zh" and not any(task_facts(t.name).language == "zh" for ts in members.values() for t in ts):
        return {}
    return {
        category: {c: _mean([part.report.cells[t, c].score for t in tasks]) for c in part.columns}
        for category, tasks in members.items()
    }


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known and len(known) == len(scores) else None


# -- passkey ---------------------------------------------------------------------------------------------------------


def passkeys_of(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
    """Keys found by length and depth: a figure a passkey task, a map a method."""
    names = short_names(t.name for t in part.tasks())
    for number, task in enumerate(t for t in part.tasks() if t.metric == "passkey"):
        grids = []
        for column in part.columns:
            cells = _grid(part.samples.get((task, column), ()))
            if cells:
                grids.append(heatmap.Grid(part.label(column), cells, part.report.part_of(task, column)))
        if not grids:
            continue
        title = f"Keys found by length and depth: {names[task.name]}{_left_out(part, [task])}"
        alt = ", ".join(f"{grid.method} {100 * grid.mean:.0f} %" for grid in grids)
        name = "passkey" if number == 0 else f"passkey-{number + 1}"
        yield Drawn(name, title, f"{title}. Found in all: {alt}.", heatmap.draw(grids, title=title + part.title))


def _grid(samples: Sequence[ScoredSample]) -> dict[tuple[float, float], float]:
    found: dict[tuple[float, float], list[float]] = {}
    for sample in samples:
        meta = sample.record.meta
        length, depth = meta.get("length_words", sample.record.length), meta.get("depth")
        if sample.score is not None and _is_number(length) and _is_number(depth):
            found.setdefault((float(length), float(depth)), []).append(sample.score)  # type: ignore[arg-type]
    return {cell: statistics.fmean(scores) for cell, scores in found.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- against full ----------------------------------------------------------------------------------------------------


def against_full_of(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
    """The difference to the full cache of the same rows, task by task and method by method."""
    names = short_names(t.name for t in part.tasks())
    found = []
    for column in part.columns:
        for task in part.tasks():
            reference = part.reference_of(task, column)
            if reference is None or column.method == REFERENCE:
                continue
            pairs = _pairs(task.name, part.samples.get((task, reference), ()), part.samples.get((task, column), ()))
            if pairs is not None:
                result, _ = compare_pairs(pairs, Bootstrap())
                low, high = result.interval or (None, None)
                found.append(
                    bars.Difference(
                        part.label(column),
                        names[task.name],
                        result.difference,
                        low,
                        high,
                        result.first,
                        part.report.part_of(task, column) or part.report.part_of(task, reference),
                    )
                )
    if not found:
        return
    title = "Difference to the full cache by task"
    figure = bars.draw(found, reference=REFERENCE, about=part.title)
    alt = "; ".join(f"{d.method} on {d.task} {d.points:+.1f}{d.rows and f' ({d.rows})'}" for d in found)
    yield Drawn("against-full", title, f"{title}, in points. {alt}.", figure)


def _pairs(task: str, first: Sequence[ScoredSample], second: Sequence[ScoredSample]) -> Pairs | None:
    by_id = {s.record.id: s for s in second if s.score is not None}
    both = [(a, by_id[a.record.id]) for a in first if a.score is not None and a.record.id in by_id]
    if not both:
        return None
    return Pairs(
        task,
        tuple(a.score or 0.0 for a, _ in both),
        tuple(b.score or 0.0 for _, b in both),
        tuple(a.cluster for a, _ in both),
    )
