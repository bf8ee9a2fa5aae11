"""Scores over length as the figure draws them: the base first, bands, and where each line breaks down."""

from __future__ import annotations

from lcbench.reporting.figures.lengths import LengthCurve
from lcbench.reporting.longscore.tables import PUBLISHED, breakdown_text, shown_name
from lcbench.reporting.longscore.view import LongView
from lcbench.reporting.words import score_text
from lcbench.scoring.longscore.curve import Curve


def length_curves(view: LongView, name: str) -> list[LengthCurve]:
    """The curves of one task, or of the mean, in the order of the entries."""
    return [
        _length_curve(one.label + (PUBLISHED if one.published else ""), one.curves[name])
        for one in view.entries
        if name in one.curves
    ]


def _length_curve(label: str, curve: Curve) -> LengthCurve:
    rungs = (curve.base, *curve.rungs)
    return LengthCurve(
        label,
        tuple(rung.label for rung in rungs),
        tuple(rung.score for rung in rungs),
        tuple(rung.interval[0] if rung.interval else None for rung in rungs),
        tuple(rung.interval[1] if rung.interval else None for rung in rungs),
        curve.breakdown,
    )


def positions(view: LongView, name: str) -> dict[str, float]:
    """Places of the lengths in ascending order, at equal distances: they double from one to the next."""
    sizes: dict[str, float] = {}
    for one in view.entries:
        if name in one.curves:
            curve = one.curves[name]
            sizes |= {rung.label: rung.size for rung in (curve.base, *curve.rungs)}
    ordered = sorted(sizes, key=sizes.__getitem__)
    return {label: float(place) for place, label in enumerate(ordered)}


def title_of(view: LongView, name: str) -> str:
    """``kv_retrieval over length``."""
    return f"{shown_name(view, name)} over length"


def alt_text(view: LongView, name: str) -> str:
    """What a reader who cannot see the figure should know."""
    said = []
    for one in view.entries:
        if name in one.curves:
            curve = one.curves[name]
            points = ", ".join(f"{rung.label} {score_text(rung.score)}" for rung in (curve.base, *curve.rungs))
            broken = breakdown_text(curve)
            said.append(f"{one.label}: {points}" + (f", breaks at {broken}" if broken else ""))
    return f"{title_of(view, name)}. {'; '.join(said)}."
