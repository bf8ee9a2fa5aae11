"""LongScore as plain tables of text, which the terminal and Markdown only have to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lcbench.reporting.longscore.view import Entry, LongView, Ranking, Standing
from lcbench.reporting.words import interval_text, score_text
from lcbench.scoring.longscore.curve import Curve, Interval, Rung
from lcbench.scoring.longscore.decompose import Amount
from lcbench.scoring.longscore.ladder import Counts

BELOW = "↓"
"""Marks a score that lies significantly below the base."""
PUBLISHED = " †"
"""Marks what others measured."""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: one line above it. header: of the columns. rows: of texts, as long as the header. left: how many columns
        are text (left-aligned); the others are numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


def grids(view: LongView, *, over_length: bool = True) -> list[Grid]:
    """Rankings, a line a task and method, what the losses are made of, and scores over length."""
    found = [ranking(one) for one in _main_rankings(view)]
    found.append(summary(view))
    if view.splits:
        found.append(losses(view))
    if over_length:
        found += [lengths(view, name) for name in view.names]
    return found


def sentences(view: LongView) -> list[str]:
    """The sentence of each method: of the mean where there is one, else of every task."""
    main = [(where, one) for where, one in view.splits if _is_mean(view, one.task)] or list(view.splits)
    return [f"{where}: {one.sentence}" if where else one.sentence for where, one in main]


def legend(view: LongView) -> list[str]:
    """What the tables' words and marks mean."""
    lines = [
        "LongScore: mean over the lengths of 100 x (score - base score) / base score; 0 keeps the base ability, "
        "-100 loses all of it. The base is not in the average.",
        f"{BELOW} significantly below the base (95 % interval of the difference); breaks at: the first such length, "
        "with … when a longer one is not below.",
    ]
    if any(one.published for one in view.entries):
        lines.append(f"{PUBLISHED.strip()} published by others, not run here; no samples, so no intervals.")
    return lines


def _is_mean(view: LongView, name: str) -> bool:
    return any(name in one.curves and one.curves[name].members for one in view.entries)


def _main_rankings(view: LongView) -> list[Ranking]:
    """Rankings of means where there are any, else of every task: the tasks' own stand in the summary."""
    return [one for one in view.rankings if one.members] or list(view.rankings)


def ranking(one: Ranking) -> Grid:
    """Average score and LongScore side by side."""
    tasks = f", mean of {len(one.members)} tasks" if one.members else ""
    header = ("", "base", "average", "95 %", "rank", "LongScore", "95 %", "rank", "move", "breaks at")
    return Grid(
        f"Two rankings: {one.name}{tasks}, over {', '.join(one.lengths)}",
        header,
        tuple(_standing(line) for line in one.standings),
    )


def _standing(line: Standing) -> tuple[str, ...]:
    return (
        line.label + (PUBLISHED if line.published else ""),
        score_text(line.base),
        score_text(line.average),
        _interval(line.average_interval),
        "–" if line.rank_average is None else str(line.rank_average),
        score_text(line.long_score),
        _interval(line.long_score_interval),
        "–" if line.rank_long_score is None else str(line.rank_long_score),
        line.mark,
        line.breakdown or "",
    )


def summary(view: LongView) -> Grid:
    """A line for every task and entry, its samples counted."""
    header = ("task", "", "base", "average", "LongScore", "95 %", "breaks at", "kept", "failed", "filtered", "cut")
    rows = []
    for name in view.names:
        for index, (one, curve) in enumerate(_having(view, name)):
            rows.append(
                (
                    name if index == 0 else "",
                    _label(one),
                    score_text(curve.base.score),
                    score_text(curve.average),
                    score_text(curve.long_score),
                    _interval(curve.long_score_interval),
                    _breakdown(curve),
                    *_counts(sum((rung.counts for rung in curve.rungs), curve.base.counts), one.published),
                )
            )
    return Grid("LongScore by task", header, tuple(rows), left=2)


def lengths(view: LongView, name: str) -> Grid:
    """One task over length: score, and below it the change against the base in percent of the base."""
    found = _having(view, name)
    labels: dict[str, float] = {}
    for _, curve in found:
        labels |= {rung.label: rung.size for rung in curve.rungs}
    ordered = sorted(labels, key=labels.__getitem__)
    rows = []
    for one, curve in found:
        at = {rung.label: rung for rung in curve.rungs}
        rows.append((_label(one), score_text(curve.base.score), *(_rung(at.get(label)) for label in ordered)))
    return Grid(f"{name}: score (change in % of the base)", ("", _base_label(found), *ordered), tuple(rows))


def losses(view: LongView) -> Grid:
    """Every method against the reference: the change in points and its two parts."""
    header = ("task", "", "change", "95 %", "long-context", "95 %", "base ability", "95 %", "shared")
    rows = [
        (
            one.task,
            f"{one.method} ({where})" if where else one.method,
            *_amount(one.change),
            *_amount(one.long_context),
            *_amount(one.base_ability),
            str(one.shared),
        )
        for where, one in view.splits
    ]
    against = ", ".join(dict.fromkeys(one.against for _, one in view.splits))
    return Grid(f"Change against {against} at length, in points, and what it is made of", header, tuple(rows), left=2)


def _having(view: LongView, name: str) -> list[tuple[Entry, Curve]]:
    return [(one, one.curves[name]) for one in view.entries if name in one.curves]


def _label(one: Entry) -> str:
    return one.label + (PUBLISHED if one.published else "")


def _base_label(found: Sequence[tuple[Entry, Curve]]) -> str:
    return "/".join(dict.fromkeys(curve.base.label for _, curve in found))


def _breakdown(curve: Curve) -> str:
    if curve.breakdown is None:
        return ""
    return curve.breakdown + ("" if curve.lasting else " …")


def _rung(rung: Rung | None) -> str:
    if rung is None:
        return ""
    change = "" if rung.value is None else f" ({rung.value:+.1f})".replace("-", "−")
    return f"{score_text(rung.score)}{BELOW if rung.below_base else ''}{change}"


def _counts(counts: Counts, published: bool) -> tuple[str, ...]:
    if published:
        return "", "", "", ""
    return (
        str(counts.kept),
        _nonzero(counts.failed + counts.judge_failed),
        _nonzero(counts.filtered),
        _nonzero(counts.cut),
    )


def _nonzero(number: int) -> str:
    return str(number) if number else ""


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else interval_text(*interval)


def _amount(amount: Amount) -> tuple[str, str]:
    return ("–" if amount.value is None else f"{amount.value:+.2f}".replace("-", "−")), _interval(amount.interval)
