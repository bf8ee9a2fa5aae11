"""Score against length of each task and mean of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lcbench.reporting.figures import lengths
from lcbench.reporting.figures.drawn import Drawn
from lcbench.reporting.figures.naming import file_names
from lcbench.reporting.figures.part import ModelPart
from lcbench.reporting.longscore.view import Entry
from lcbench.reporting.table import Column, Line
from lcbench.reporting.words import score_text, short_names
from lcbench.store.rundir import RunDirectory


def lengths_of(part: ModelPart, runs: Sequence[RunDirectory]) -> Iterator[Drawn]:
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
