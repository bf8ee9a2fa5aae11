"""All figures that a report has data for."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lcbench.errors import CannotWrite
from lcbench.reporting.figures import bars, efficiency, heatmap, lengths, pareto, radar, style
from lcbench.reporting.figures.naming import file_names, methods_told_apart
from lcbench.reporting.figures.part import REASONS, REFERENCE, ModelPart, parts_of
from lcbench.reporting.longscore.view import Entry
from lcbench.reporting.samples import Samples, mean_interval
from lcbench.reporting.table import Column, Line, Report
from lcbench.reporting.words import bytes_text, score_text, short_names
from lcbench.scoring.bootstrap import Bootstrap
from lcbench.scoring.paired import Pairs, compare_pairs
from lcbench.scoring.per_sample import ScoredSample
from lcbench.store.rundir import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawn:
    """One figure.

    Attributes:
        name: for files and anchors. title: what it shows. alt: what a reader who cannot see it should know.
        figure: as drawn.
    """

    name: str
    title: str
    alt: str
    figure: Figure


def figures_of(report: Report, samples: Samples, runs: Sequence[RunDirectory]) -> tuple[list[Drawn], list[str]]:
    """The figures, and a sentence for every kind that the report has no data for.

    Raises:
        UsageError: matplotlib is not installed.
    """
    style.require_matplotlib()
    drawn: list[Drawn] = []
    missing: list[str] = []
    parts = parts_of(report, samples, runs)
    for name, make in _KINDS.items():
        without = []
        for part in parts:
            own = list(make(part, runs))
            without += [] if own else [part]
            for one in own:
                file = f"{one.name}-{part.file}" if part.file else one.name
                drawn.append(Drawn(file, one.title + part.title, one.alt, one.figure))
        missing += _why_missing(name, without, all_=len(without) == len(parts))
    return drawn, missing


def _why_missing(kind: str, parts: Sequence[ModelPart], *, all_: bool) -> list[str]:
    """Why a kind of figure is not there, and of what, where it is there of others."""
    reasons: dict[str, list[str]] = {}
    for part in parts:
        reasons.setdefault(REASONS[kind](part), []).append(part.title.removeprefix(" – "))
    if all_:
        return [f"no {kind} figure: {'; '.join(reasons) or 'no predictions'}"]
    return [f"no {kind} figure of {' and '.join(whose)}: {why}" for why, whose in reasons.items()]


def write_figures(figures: Sequence[Drawn], folder: Path) -> list[Path]:
    """Write every figure as svg, pdf and png; the files. Raises CannotWrite."""
    from lcbench.store.files import make_folder

    try:
        make_folder(folder)
    except CannotWrite as error:
        raise CannotWrite(error.message, "Choose another folder with --figures.") from None
    paths = []
    for one in figures:
        for suffix in style.FORMATS:
            path = folder / f"{one.name}.{suffix}"
            style.save(one.figure, path)
            paths.append(path)
    return paths


# -- accuracy against bytes ------------------------------------------------------------------------------------------


def _pareto(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
    tasks, columns = part.sharing()
    points = [point for c in columns if (point := _point(part, tasks, c)) is not None]
    if len(points) < 2:
        return
    names = short_names(t.name for t in part.tasks())
    what = names[tasks[0].name] if len(tasks) == 1 else f"mean of {len(tasks)} tasks"
    if len(points) < len(part.columns):
        what += f"; {len(points)} of {len(part.columns)} methods have it"
    held = next((c for c in columns if c.method == REFERENCE), columns[0])
    whole = [part.report.cells[t, held].kv_bytes_full for t in tasks]
    full = statistics.fmean(w for w in whole if w) if any(whole) else None
    title = "Accuracy against KV bytes"
    figure = pareto.draw(points, title=title + part.title, full_bytes=full, score_label=f"score, {what}")
    front = ", ".join(f"{p.method} {score_text(p.score)} at {bytes_text(p.kv_bytes)}" for p in pareto.front_of(points))
    yield Drawn("pareto", title, f"{title}, {what}, {len(points)} methods. On the Pareto front: {front}.", figure)


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


def _radar(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
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


def _heatmap(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
    names = short_names(t.name for t in part.tasks())
    for number, task in enumerate(t for t in part.tasks() if t.metric == "passkey"):
        grids = []
        for column in part.columns:
            cells = _grid(part.samples.get((task, column), ()))
            if cells:
                grids.append(heatmap.Grid(part.label(column), cells, part.report.part_of(task, column)))
        if not grids:
            continue
        title = f"Keys found by length and depth: {names[task.name]}"
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


# -- length ----------------------------------------------------------------------------------------------------------


def _lengths(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
    """Of each task and mean: with base and breakdown point where it has a LongScore, else the scores alone."""
    names = short_names(t.name for t in part.tasks())
    view = part.report.longscore
    files = file_names(names.get(name, name) for name in [*names, *(view.names if view else ())])
    own = {part.report.label(column): column for column in part.columns}
    ladders = view.names if view is not None and any(one.label in own for one in view.entries) else ()
    for name in [*(task for task in names if task not in ladders), *ladders]:
        rows = [line for line in part.report.lines if line.kind == "length" and line.name == name]
        known = {one.label: one for one in view.entries if name in one.curves} if view and name in ladders else {}
        long_ = {own[label]: _long_curve(part, one, own[label], name) for label, one in known.items() if label in own}
        curves = [
            curve
            for c in part.columns
            if (curve := long_.get(c) or _curve(part, rows, c, beside=bool(long_))) is not None
        ]
        if not long_ and not any(sum(s is not None for s in curve.scores) > 1 for curve in curves):
            continue
        published = [_long_curve(part, one, None, name) for one in known.values() if one.published and long_]
        unit = "words of background" if rows and rows[0].metric == "passkey" else "length of the context in words"
        if long_:
            told = next(one.curves[name].unit for one in known.values())
            unit = f"length in {told}" if told else "length"
        shown = names.get(name, name)
        left = [part.label(c) for c in part.columns if c not in long_ and _curve(part, rows, c) is None and rows]
        yield _length_figure(part, shown, files[shown], [*curves, *published], unit, left)


def _length_figure(
    part: ModelPart, name: str, file: str, curves: Sequence[lengths.LengthCurve], x_label: str, left: Sequence[str]
) -> Drawn:
    """``left``: methods that have no score at any length."""
    title = f"Score against length: {name}"
    without = f"; no scores: {', '.join(left)}" if left else ""
    labels = {length for curve in curves for length in curve.lengths}
    figure = lengths.draw(
        curves,
        title=title + part.title + without,
        x_label=x_label,
        positions={label: float(label) for label in labels} if all(label.isdecimal() for label in labels) else None,
        reference=next((c.label for c in curves if part.reference and c.label == part.label(part.reference)), None),
    )
    alt = "; ".join(
        f"{c.label}: "
        + ", ".join(f"{n} {score_text(s)}" for n, s in zip(c.lengths, c.scores, strict=True))
        + (f", breaks down at {c.breakdown}" if c.breakdown else "")
        for c in curves
    )
    return Drawn(f"length-{file}", title, f"{title}. {alt}{without}.", figure)


def _long_curve(part: ModelPart, entry: Entry, column: Column | None, name: str) -> lengths.LengthCurve:
    """The base and every length of a curve, with the length at which it breaks down. ``column``: None if published."""
    curve = entry.curves[name]
    rungs = (curve.base, *curve.rungs)
    ends = [rung.interval or (None, None) for rung in rungs]
    return lengths.LengthCurve(
        f"{entry.label} (published)" if column is None else _length_label(part, column, name),
        tuple(rung.label for rung in rungs),
        tuple(rung.score for rung in rungs),
        tuple(low for low, _ in ends),
        tuple(high for _, high in ends),
        curve.breakdown,
    )


def _length_label(part: ModelPart, column: Column, name: str) -> str:
    return part.label(column, *(t for t in part.tasks() if t.name == name and (t, column) in part.report.cells))


def _curve(
    part: ModelPart, rows: Sequence[Line], column: Column, *, beside: bool = False
) -> lengths.LengthCurve | None:
    """Scores by length; ``beside``: in a figure of LongScores, which this method has none of."""
    known = [(row.length, cell) for row in rows if (cell := part.report.cells.get((row, column))) is not None]
    if all(cell.score is None for _, cell in known):
        return None
    label = _length_label(part, column, rows[0].name)
    return lengths.LengthCurve(
        f"{label}, no LongScore" if beside else label,
        tuple(name for name, _ in known),
        tuple(cell.score for _, cell in known),
        tuple(cell.low for _, cell in known),
        tuple(cell.high for _, cell in known),
    )


# -- against full ----------------------------------------------------------------------------------------------------


def _bars(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
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


# -- speed -----------------------------------------------------------------------------------------------------------


def _efficiency(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
    shared = sum(other.name == part.name for other in parts_of(part.report, part.samples, runs)) > 1
    points: dict[tuple[str, int, int], efficiency.SpeedPoint] = {}
    bandwidths = []
    for run in runs:
        if shared and str(run.path) not in part.runs:
            continue  # a speed of another model of that name, or drawn with the run that measured it
        weights = _number(_mapping(run.provenance.get("model")).get("weight_bytes"))
        for row in run.efficiency():
            if row.get("model") == part.name:
                point = _speed(row, weights)
                if point is not None:
                    points[point.method, point.prompt_tokens, point.batch] = point
                bandwidths.append(_bandwidth(row))
    if not points:
        return
    names = methods_told_apart(method for method, _, _ in points)
    points = {key: replace(point, method=names[point.method]) for key, point in points.items()}
    title = "Decoding speed against its physical limit"
    measured = max((b for b in bandwidths if b), default=None)
    figure = efficiency.draw(list(points.values()), title=title + part.title, bandwidth=measured)
    alt = "; ".join(
        f"{p.method} at {p.prompt_tokens} tokens {p.tokens_per_second:.1f} tokens/s" for p in points.values()
    )
    yield Drawn("efficiency", title, f"{title}. {alt}.", figure)


def _speed(row: Mapping[str, object], weights: float | None) -> efficiency.SpeedPoint | None:
    weights = _number(row.get("weight_bytes")) or weights
    kept, speed = _number(row.get("kv_bytes")), _number(row.get("decode_tokens_per_second"))
    tokens, batch = _number(row.get("prompt_tokens")), _number(row.get("batch")) or 1
    step = _number(row.get("step_bytes")) or (weights + kept if weights and kept else None)
    if not step or not speed or not tokens:
        return None
    read = _number(row.get("kv_read_bytes"))
    return efficiency.SpeedPoint(str(row.get("method")), int(tokens), int(batch), step, speed, read)


def _bandwidth(row: Mapping[str, object]) -> float | None:
    """Bytes a second of the limit that `lcbench bench` measured."""
    limit, moved = _number(row.get("limit_tokens_per_second")), _number(row.get("step_bytes"))
    return limit / (_number(row.get("batch")) or 1) * moved if limit and moved else None


def _number(value: object) -> float | None:
    return float(value) if _is_number(value) and value else None  # type: ignore[arg-type]


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


_KINDS: dict[str, Callable[[ModelPart, Sequence[RunDirectory]], Iterator[Drawn]]] = {
    "Pareto": _pareto,
    "radar": _radar,
    "passkey": _heatmap,
    "length": _lengths,
    "against full": _bars,
    "efficiency": _efficiency,
}
