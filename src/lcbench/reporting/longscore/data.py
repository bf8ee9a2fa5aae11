"""LongScore for programs: rows of the CSV file, and the ``longscore`` part of the JSON report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from lcbench.reporting.longscore.view import Entry, LongView
from lcbench.scoring.longscore.curve import Curve, Interval, Rung


def data_of(view: LongView) -> dict[str, Any]:
    """Plain JSON types: ``entries`` with their curves, ``rankings``, ``splits`` and ``notes``."""
    return {
        "entries": [{**asdict(one), "curves": {n: asdict(c) for n, c in one.curves.items()}} for one in view.entries],
        "rankings": [
            {**asdict(one), "standings": [{**asdict(line), "move": line.move} for line in one.standings]}
            for one in view.rankings
        ],
        "splits": [{"run": where, **asdict(one)} for where, one in view.splits],
        "notes": [*view.notes, *view.warnings()],
    }


def rows(view: LongView) -> Iterator[dict[str, Any]]:
    """Rows of a flat table, by column name. ``kind`` is "base score", "average", "longscore", and for every length
    "score at length" and "long-context value"."""
    for one in view.entries:
        for curve in one.curves.values():
            base = _row(one, curve, "base score", curve.base.score, curve.base.interval)
            yield {**base, **_counted(curve.base)}
            yield _row(one, curve, "average", curve.average, curve.average_interval)
            yield _row(one, curve, "longscore", curve.long_score, curve.long_score_interval)
            for rung in curve.rungs:
                row = _row(one, curve, "score at length", rung.score, rung.interval)
                yield {**row, "length": rung.label, **_counted(rung)}
                row = _row(one, curve, "long-context value", rung.value, rung.value_interval)
                yield {**row, "length": rung.label, **_counted(rung)}


def _row(one: Entry, curve: Curve, kind: str, value: float | None, interval: Interval | None) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {
        "model": one.model,
        "method": one.method if not one.published else "published",
        "task": curve.name,
        "kind": kind,
        "score": value,
        "low": low,
        "high": high,
    }


def _counted(rung: Rung) -> dict[str, int]:
    """What became of the samples of one length."""
    counts = rung.counts
    return {
        "n": counts.kept,
        "errors": counts.failed + counts.judge_failed,
        "filtered": counts.filtered,
        "skipped": counts.skipped,
    }
